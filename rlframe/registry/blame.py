"""Whose code an exception came through, where nobody has said so on the way.

What components are called for in a run is called through the relay, which names them. Constructors,
checks, states and whatever else of theirs Python runs end here.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from rlframe.api.component import Component
from rlframe.errors import RunError
from rlframe.registry.discovery import KINDS


@contextmanager
def no_exit(what: str) -> Iterator[None]:
    """Turn `sys.exit` in the middle of the work into an error: only what has finished is a success.

    Args:
      what: is going on, as in "the run".

    Raises:
      RunError: something called sys.exit or raised SystemExit, whatever its exit code.
    """
    try:
        yield
    except SystemExit as error:
        raise RunError(f"{what} was left: {exit_told(error)}") from error


def exit_told(error: SystemExit, who: str | None = None) -> str:
    """What is wrong with an exit in the middle of the work, and where it was asked for.

    Args:
      error: as it was caught.
      who: the component whose code was called; looked for if left out.
    """
    who = who or component_in(error) or "something"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    code = "" if error.code is None else repr(error.code)
    return (
        f"{who} called sys.exit({code}) [{frame.filename}:{frame.lineno}]. That finishes nothing: "
        "return, or raise an exception that says what is wrong"
    )


def component_in(error: BaseException) -> str | None:
    """The component in whose method an error arose, in words, or None."""
    found: type[Component] | None = None  # type: ignore[type-arg]
    name = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self", frame.f_locals.get("cls"))
        kind = owner if isinstance(owner, type) else type(owner)
        if issubclass(kind, Component):
            found, name = kind, getattr(owner, "name", "")
    if found is None:
        return None
    noun = next((noun for base, noun in KINDS.values() if issubclass(found, base)), "component")
    return f"{noun}{f' {name!r}' if name else ''} (class {found.__qualname__})"

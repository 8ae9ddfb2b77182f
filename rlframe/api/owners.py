"""Whose code an exception came from: a stamp on the exception, put there where that code was called.

A reward may ask another reward, with hook plugins around both. The exception is then the mistake of
the innermost one whose call it left, so the first stamp stays, and whoever reports the exception takes
it off. A traceback could not say this: in it a wrapper that lets an exception through looks like one
that raised it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import TracebackType
from typing import Any

CALLED_BY_HOOKS = ("sample", "score", "gate", "apply", "update", "loss", "estimate")
"""Methods of components, of all kinds together."""

_STAMP = "__rlframe_stamp__"
"""Attribute of a stamped exception."""

_STAMPS = "__rlframe_stamps__"
"""Attribute of a function that stamps what it raises."""


@dataclass(frozen=True)
class Stamp:
    """Whose code raised an exception."""

    owner: object
    """The component."""
    method: str
    """The method of the owner that was called."""
    place: str | None = None
    """FILE:LINE of the method, if none of its lines raised."""


def stamp(error: BaseException, found: Stamp) -> None:
    """Put a stamp on an exception that has none."""
    # Not setattr, which an exception may refuse: a frozen dataclass does.
    vars(error).setdefault(_STAMP, found)


def stamp_of(error: BaseException) -> Stamp | None:
    """The stamp of an exception, or None."""
    found: Stamp | None = vars(error).get(_STAMP)
    return found


def take_stamp(error: BaseException) -> Stamp | None:
    """The stamp of an exception, which has none afterwards: it may be raised again by another."""
    found: Stamp | None = vars(error).pop(_STAMP, None)
    return found


class Stamped:
    """A context in which the code of one owner runs: what it raises is stamped, unless it is already.

    Args:
      owner: the component.
      method: of the owner.
    """

    def __init__(self, owner: object, method: str) -> None:
        self._stamp = Stamp(owner, method)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception | SystemExit):
            stamp(error, self._stamp)


def stamp_methods(component: type) -> None:
    """Let those methods of a class that hooks call stamp what they raise with their instance.

    A hook plugin may call a component itself, to ask a second time or for fewer responses, so a stamp
    around the engine's own calls would not be enough. Coroutines stay as they are.
    """
    for name in CALLED_BY_HOOKS:
        method = inspect.getattr_static(component, name, None)
        if not inspect.isfunction(method) or inspect.iscoroutinefunction(method):
            continue
        if not hasattr(method, _STAMPS):
            setattr(component, name, _stamping(name, method))


def _stamping(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def called(self: object, *given: Any, **named: Any) -> Any:
        with Stamped(self, name):
            return method(self, *given, **named)

    setattr(called, _STAMPS, True)
    return called

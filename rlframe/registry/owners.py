"""What people read of an exception that a component raised: whose it is, in which method, where.

What the engine calls through hooks is named by the relay. Constructors, checks, states and whatever
else it calls of a component are called within `component_errors`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from rlframe.api.component import Component
from rlframe.api.owners import stamp_of
from rlframe.errors import RlframeError, RunError, place_of
from rlframe.registry.discovery import KINDS
from rlframe.registry.offers import Offer


@contextmanager
def component_errors(
    who: str,
    component: object,
    method: str,
    *,
    raises: type[RlframeError] = RunError,
    hint: str = "",
) -> Iterator[None]:
    """Turn what a component raises into an error that names it; an error for people stays as it is.

    Args:
      who: the component, in words.
      component: it, or its class.
      method: of the component, which is called inside.
      raises: the class of the error.
      hint: what else to say.

    Raises:
      RlframeError: of that class, if something was raised.
    """
    try:
        yield
    except RlframeError:
        raise
    except (Exception, SystemExit) as error:
        raise raises(raised(error, who, component, method) + hint) from error


def raised(
    error: BaseException, who: str, component: object, method: str, *, place: str | None = None
) -> str:
    """Who raised what, in which method and in which line, as the beginning of a message.

    Args:
      error: the exception caught.
      who: whose mistake it is, in words.
      component: whose, or its class.
      method: of the component.
      place: FILE:LINE; looked for in the traceback if left out.
    """
    if isinstance(error, SystemExit):
        return exit_told(error, who, method)
    module = (component if isinstance(component, type) else type(component)).__module__
    found = place or place_of(error, module)
    return f"{who} raised {type(error).__name__} in `{method}`: {error} [{found}]"


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


def exit_told(error: SystemExit, who: str | None = None, method: str | None = None) -> str:
    """What is wrong with an exit in the middle of the work, and where it was asked for.

    Args:
      error: the exception caught.
      who: the component whose code was called; that of the stamp if left out.
      method: of the component.
    """
    who = who or owner_of(error) or "something"
    where = f" in `{method}`" if method else ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    code = "" if error.code is None else repr(error.code)
    return (
        f"{who} called sys.exit({code}){where} [{frame.filename}:{frame.lineno}]. That finishes "
        "nothing: return, or raise an exception that says what is wrong"
    )


def owner_of(error: BaseException) -> str | None:
    """The component whose code raised an exception, in words; None if nobody has said so."""
    found = stamp_of(error)
    return None if found is None else in_words(found.owner)


def offered(offer: Offer) -> str:
    """What people call a component that is not built, and where it came from."""
    return f"{KINDS[offer.kind][1]} {offer}"


def in_words(component: object) -> str:
    """What people call a component: its kind, its name and its class."""
    kind = component if isinstance(component, type) else type(component)
    noun = next((noun for base, noun in KINDS.values() if issubclass(kind, base)), "component")
    name = component.name if isinstance(component, Component) else ""
    return f"{noun}{f' {name!r}' if name else ''} (class {kind.__qualname__})"

"""What a check is: one promise of a contract, and how to tell that it was broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from rlframe.api.answers import ContractError, Hint
from rlframe.errors import place_of
from rlframe.testing.hints import hint_at
from rlframe.testing.subject import Subject


class Broken(AssertionError):  # noqa: N818  named after what happened
    """Raised by a check: what came instead of what was expected.

    Args:
      found: that.
      hint: the mistake, where it is plain to see; what the check says otherwise if left out.
    """

    def __init__(self, found: str, *, hint: Hint | None = None) -> None:
        super().__init__(found)
        self.hint = hint

    def with_cause(self, error: BaseException) -> Broken:
        """The same, to be raised elsewhere than where the cause was caught."""
        self.__cause__ = error
        return self


@contextmanager
def kept(of: str = "") -> Iterator[None]:
    """Break the promise of a check where a run would refuse an answer.

    Args:
      of: what the error's `row` counts, if anything.
    """
    try:
        yield
    except ContractError as error:
        where = f" ({of.removeprefix('a ')} {error.row})" if of else ""
        raise Broken(f"it {error}{where}", hint=error.hint) from error


class DoesNotApply(Exception):  # noqa: N818  nothing went wrong
    """Raised by a check: why it says nothing about this component."""


class CheckFailed(AssertionError):  # noqa: N818  named after what happened
    """A broken promise in words for people."""


@dataclass(frozen=True)
class Result:
    """What became of one check."""

    check: str
    outcome: Literal["ok", "failed", "skipped"]
    message: str
    """Of a failure: what was expected and found, a likely cause, what to do. Else a remark."""


@dataclass(frozen=True)
class Check:
    """One promise.

    Args:
      name: a Python identifier; the test of a suite is called `test_<name>`.
      expected: the promise, as what follows "expected".
      likely: the usual cause when it is broken.
      do: how to fix that.
      body: raises `Broken` with what came, or `DoesNotApply` with the reason; may return a remark.
    """

    name: str
    expected: str
    likely: str
    do: str
    body: Callable[[Subject[Any]], str | None]

    def verify(self, subject: Subject[Any]) -> str:
        """Look whether a component keeps the promise; returns a remark, usually "".

        Raises:
          CheckFailed: it does not, or it raised.
          DoesNotApply: the promise means nothing for this component.
        """
        __tracebackhide__ = True  # the message says it all: pytest need not show this function
        try:
            return self.body(subject) or ""
        except Broken as broken:
            hint = broken.hint or Hint(self.likely, self.do)
            raise CheckFailed(self._told(subject, str(broken), hint)) from None
        except DoesNotApply:
            raise
        except Exception as error:
            found = (
                f"{type(error).__name__}: {error} [{place_of(error, subject.component.__module__)}]"
            )
            raise CheckFailed(self._told(subject, found, hint_at(error, self.do))) from error

    def _told(self, subject: Subject[Any], found: str, hint: Hint) -> str:
        found = " ".join(found.split())  # libraries raise essays
        found = found if len(found) <= 400 else f"{found[:200]} ... {found[-200:]}"
        return (
            f"{subject.component.__name__} breaks {self.name!r}\n"
            f"  expected: {self.expected}\n"
            f"  found:    {found}\n"
            f"  likely:   {hint.likely}\n"
            f"  do:       {hint.do}"
        )


def check(
    *, expected: str, likely: str, do: str
) -> Callable[[Callable[[Subject[Any]], str | None]], Check]:
    """Make a check of a function; its name becomes the check's."""

    def made(body: Callable[[Subject[Any]], str | None]) -> Check:
        return Check(body.__name__, expected, likely, do, body)

    return made

"""What a check is: one promise of a contract, and how to tell that it was broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rlframe.errors import place_of
from rlframe.testing.subject import Subject


class Broken(AssertionError):  # noqa: N818  named after what happened
    """Raised by a check: what came instead of what was expected."""


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
      do: how to mend that.
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
            raise CheckFailed(self._told(subject, str(broken), self.likely, self.do)) from None
        except DoesNotApply:
            raise
        except Exception as error:
            found = (
                f"{type(error).__name__}: {error} [{place_of(error, subject.component.__module__)}]"
            )
            raise CheckFailed(self._told(subject, found, *_advice(error, self))) from error

    def _told(self, subject: Subject[Any], found: str, likely: str, do: str) -> str:
        found = " ".join(found.split())  # libraries raise essays
        found = found if len(found) <= 400 else f"{found[:200]} ... {found[-200:]}"
        return (
            f"{subject.component.__name__} breaks {self.name!r}\n"
            f"  expected: {self.expected}\n"
            f"  found:    {found}\n"
            f"  likely:   {likely}\n"
            f"  do:       {do}"
        )


def _advice(error: Exception, check: Check) -> tuple[str, str]:
    """(likely, do) for a component that raised."""
    if isinstance(error, KeyError):
        return (
            f"it reads a column {error} that the kit's data does not have",
            f"give the column values: `data = {{{error}: [...]}}` in the test class, or `example_data` "
            "on the component itself, which the command line sees too",
        )
    return "an input that the code did not reckon with", f"see the line above, then: {check.do}"


def check(
    *, expected: str, likely: str, do: str
) -> Callable[[Callable[[Subject[Any]], str | None]], Check]:
    """Make a check of a function; its name becomes the check's."""

    def made(body: Callable[[Subject[Any]], str | None]) -> Check:
        return Check(body.__name__, expected, likely, do, body)

    return made

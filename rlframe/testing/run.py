"""All checks of a component at once: for the command line, fixtures and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlframe.errors import did_you_mean, listed
from rlframe.testing.check import Check, CheckFailed, DoesNotApply, Result
from rlframe.testing.checks import checks_of
from rlframe.testing.subject import Subject


def check_component(
    subject: Subject[Any], *, skip: Mapping[str, str] | None = None
) -> list[Result]:
    """Run every check of the component's kind.

    Args:
      subject: the component with its config and data.
      skip: check -> why it is left out.

    Raises:
      ValueError: `skip` names no check, or gives no reason.
      RecipeError: the config is incomplete or wrong.
    """
    reasons, checks = skip or {}, checks_of(subject.component)
    refuse_bad_skips(reasons, checks)
    subject.validated()
    results: list[Result] = []
    for check in checks:
        built = not results or results[0].outcome != "failed"
        results.append(
            _result(check, subject, reasons)
            if built
            else Result(
                check.name, "skipped", f"nothing can be said while {checks[0].name!r} fails"
            )
        )
    return results


def _result(check: Check, subject: Subject[Any], reasons: Mapping[str, str]) -> Result:
    if check.name in reasons:
        return Result(check.name, "skipped", reasons[check.name])
    try:
        return Result(check.name, "ok", check.verify(subject))
    except DoesNotApply as reason:
        return Result(check.name, "skipped", str(reason))
    except CheckFailed as failure:
        return Result(check.name, "failed", str(failure))


def refuse_bad_skips(skip: Mapping[str, str], checks: Iterable[Check]) -> None:
    """Skipping a check needs its name and a written reason.

    Raises:
      ValueError: one of them is missing.
    """
    known = [check.name for check in checks]
    for name, reason in skip.items():
        if name not in known:
            raise ValueError(
                f"skip: there is no check {name!r}.{did_you_mean(name, known)} "
                f"There are {listed(known)}"
            )
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(
                f"skip: {name!r} needs a reason, in words: why does this component not have to keep it?"
            )

"""What a KL controller promises."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rlframe.api.answers import ContractError, Hint
from rlframe.api.component import KLController
from rlframe.api.contract import (
    HIGHEST,
    LOWEST,
    is_finite,
    out_of_bounds,
    refuse_bad_start,
    refuse_bad_state,
)
from rlframe.api.unchanged import Given
from rlframe.testing.check import Broken, DoesNotApply, check, kept
from rlframe.testing.checks.common import COMMON, state_can_be_kept
from rlframe.testing.subject import Subject
from rlframe.types import KLMeasurement, KLState

Controller = Subject[KLController[Any]]

RESPONSES = 512
TOKENS = 24
"""Responses of a rollout, and tokens of a response, in the measurements of these checks."""

FAR = 200
"""Rollouts: long enough for any controller to have moved, or to have come to rest."""


NEVER_MOVES = Hint(
    "`update` returns the state that it was given, or sets an attribute instead of making a new state",
    "return `KLState(coefficient=...)` or `replace(state, coefficient=...)`. A controller that is "
    "meant to stay where it is has no `target`",
)


def _measured(controller: KLController[Any], kl: float) -> KLMeasurement:
    per_response = kl * TOKENS if controller.unit == "nats_per_token" else kl
    return KLMeasurement(kl, per_response, per_response / TOKENS, RESPONSES)


def _target(subject: Controller) -> float | None:
    """Where the controller should rest: the suite's `target`, or the config's."""
    found = subject.target
    if found is None:
        found = getattr(subject.instance.config, "target", None)
    return found if isinstance(found, int | float) else None


def _typical(subject: Controller) -> float:
    """A KL that occurs: the target, or 6 nats per response."""
    usual = 6.0 / TOKENS if subject.instance.unit == "nats_per_token" else 6.0
    return _target(subject) or usual


def _states(subject: Controller, kls: Iterable[float]) -> Iterator[KLState]:
    """The state before the first rollout, and after each."""
    controller = subject.instance
    state = controller.initial()
    with kept():
        refuse_bad_start(controller.unit, state)
    yield state
    for kl in kls:
        state = _sound(controller.update(state, _measured(controller, kl)))
        yield state


def _coefficients(subject: Controller, kls: Iterable[float]) -> list[float]:
    return [state.coefficient for state in _states(subject, kls)]


def _sound(state: KLState) -> KLState:
    """A state that a run would take."""
    with kept():
        refuse_bad_state(state)
    return state


@check(
    expected="a unit, `nats_per_response` or `nats_per_token`, in which it wants the KL",
    likely="the unit was left as text of one's own, or is taken from a config that does not check it",
    do='set `unit = "nats_per_response"`, or a property that returns one of the two',
)
def unit_declared(subject: Controller) -> None:
    """A target of 6 is a leash in one unit and none at all in the other."""
    with kept():
        refuse_bad_start(subject.instance.unit, subject.instance.initial())


@check(
    expected="beta that rises or stays while KL is far above any target, and falls or stays at KL 0 "
    "and below",
    likely="the sign of the error is turned: target - KL where KL - target was meant; or it takes "
    "abs(KL)",
    do="raise the price when the policy is too far from the reference",
)
def direction(subject: Controller) -> None:
    """The wrong sign lets the policy go when it should be held."""
    high = _coefficients(subject, [50 * _typical(subject)] * FAR)
    low = _coefficients(subject, [0.0] * FAR)
    has_target = _target(subject) is not None
    if has_target and len({*high, *low}) == 1:
        raise Broken(f"beta stayed at {high[0]:.6g}, whatever KL was", hint=NEVER_MOVES)
    if high[-1] < high[0] or (has_target and high[-1] == high[0]):
        raise Broken(
            f"beta went from {high[0]:.6g} to {high[-1]:.6g} under a KL far above the target"
        )
    if low[-1] > low[0] or (has_target and 0 < low[0] == low[-1]):
        raise Broken(f"beta went from {low[0]:.6g} to {low[-1]:.6g} at KL 0")
    below = _coefficients(subject, [-10 * _typical(subject)] * FAR)  # estimates may be below 0
    if below[-1] > below[0]:
        raise Broken(f"beta went from {below[0]:.6g} to {below[-1]:.6g} under a KL far below 0")


@check(
    expected="beta that turns round: down at KL 0 after rollouts far above the target, up again after "
    "rollouts at KL 0",
    likely="beta became 0, and a product of it stays 0; or a sum of errors grew without a bound and "
    "takes as long to shrink",
    do="keep every factor above 0, and clamp what is summed up in the memory",
)
def comes_back(subject: Controller) -> None:
    """The beginning of a run must not decide its end."""
    if _target(subject) is None:
        raise DoesNotApply("no target is known, so nothing is far above it")
    high, nothing = [50 * _typical(subject)], [0.0]
    for first, then, rises in ((high, nothing, False), (nothing, high, True)):
        betas = _coefficients(subject, first * 20 + then * FAR)
        before, after = betas[20], betas[-1]
        if (after <= before) if rises else (after >= before > 0):
            kl = f"a KL of {then[0]:.6g}, 20 of {first[0]:.6g} before them"
            raise Broken(f"beta went from {before:.6g} to {after:.6g} in {FAR} rollouts with {kl}")


@check(
    expected="beta that comes to rest above 0 while KL stays exactly at the target",
    likely="the error is not 0 at the target, or an integral goes on growing",
    do="measure the error from the target. A controller that has no point of rest, such as one that "
    "switches between two factors, skips this with that reason",
)
def fixed_point(subject: Controller) -> None:
    """A controller that drifts at its target does not hold it."""
    target = _target(subject)
    if target is None:
        raise DoesNotApply(
            "no target is known: its config has no number called `target`, and the test class no "
            "`target = ...`"
        )
    last = _coefficients(subject, [target] * FAR)[-20:]
    if not all(map(math.isfinite, last)) or min(last) < 0:
        raise Broken(f"beta is {last[-1]:.6g} after {FAR} rollouts at the target")
    if max(last) - min(last) > 0.01 * max(last):
        raise Broken(
            f"beta still goes from {last[0]:.6g} to {last[-1]:.6g} after {FAR} rollouts at {target:g}"
        )


def refuse_out_of_bounds(coefficient: float) -> None:
    """Raise where a recipe that leaves the bounds as they are is refused."""
    if (beyond := out_of_bounds(coefficient, LOWEST, HIGHEST)) is not None:
        raise ContractError(beyond)


@check(
    expected="beta that is never negative, and that one rollout raises by a factor of 10 at most",
    likely="the error of a rollout is not clamped before it changes beta",
    do="clamp it, as Ziegler et al. do: e = clamp(KL / target - 1, -0.2, 0.2). A beta that is added to "
    "ends with max(beta, 0): the engine would cut it there, but the memory would not know",
)
def bound(subject: Controller) -> None:
    """One odd rollout must not decide a run; a negative price pays for leaving the reference."""
    usual, (first,) = _typical(subject), _coefficients(subject, [])
    with kept():
        refuse_out_of_bounds(first)
    said = subject.component.initial_coefficient(subject.instance.config)
    if said is not None and said != first:
        raise Broken(f"`initial_coefficient` says {said!r}, and `initial` begins with {first!r}")
    for kl in (0.0, -0.1 * usual, usual, 10 * usual, 1e6 * usual):
        before, after = _coefficients(subject, [kl])
        if after < 0:
            raise Broken(f"beta is {after:.6g} after a rollout with a KL of {kl:.6g}")
        # From 0 there is no factor; 0.1 is an ordinary coefficient.
        if after > 10 * max(before, 0.1):
            raise Broken(f"beta jumps from {before:.6g} to {after:.6g} at a KL of {kl:.6g}")


@check(
    expected="a finite state after a KL of 0, below 0 or huge, and after the rollouts that follow",
    likely="a logarithm of KL, a division by it, or a power that overflows",
    do="clamp the error before it is used or remembered; estimates of KL may be 0 and below",
)
def finite_under_any_kl(subject: Controller) -> None:
    """The engine keeps the old state where the new one is not finite, and beta is never adapted."""
    usual = _typical(subject)
    for kl in (0.0, -0.5 * usual, 1e-12, 1e6, 1e30):
        for state in _states(subject, [usual, kl, usual]):
            if not is_finite(state):
                raise Broken(f"{state} in a run with a KL of {kl:g}")


@check(
    expected="the same trajectory from a new instance at every step, its state taken through JSON",
    likely="something is remembered on `self`; a resumed run begins without it, and ranks differ",
    do="keep it in the state: `KLState(coefficient, memory={'integral': ...})`",
)
def state_round_trip(subject: Controller) -> None:
    """The state is all that a checkpoint keeps."""
    usual = _typical(subject)
    kls = [factor * usual for factor in (3.0, 0.2, 1.0, 5.0, 0.5, 2.0, 0.0, 1.5)]
    straight = list(_states(subject, kls))
    state = subject.build().initial()
    for number, kl in enumerate(kls):
        saved = json.loads(json.dumps(asdict(state), allow_nan=False))
        controller, before = subject.build(), KLState(**saved)
        given = Given(state=before)
        state = controller.update(before, _measured(controller, kl))
        with kept():
            given.refuse_change()
        if state != straight[number + 1]:
            raise Broken(
                f"after rollout {number} {state} from a new instance, and {straight[number + 1]} "
                "from one that saw all of them"
            )


CONTROLLER = (
    *COMMON,
    unit_declared,
    direction,
    comes_back,
    fixed_point,
    bound,
    finite_under_any_kl,
    state_round_trip,
    state_can_be_kept,
)

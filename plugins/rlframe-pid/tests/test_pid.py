from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rlframe_pid import PID

from rlframe.api import KLMeasurement, KLState
from rlframe.recipe import load_recipe

CONTEXT: Any = None  # nothing of it is used
ANY_KL = st.floats(allow_nan=True, allow_infinity=True)


def controller(**keys: Any) -> PID:
    return PID(PID.Config.model_validate({"target": 6.0, **keys}), CONTEXT)


def measured(kl: float) -> KLMeasurement:
    return KLMeasurement(kl=kl, nats_per_response=kl, nats_per_token=kl, responses=64)


def follow(pid: PID, kls: list[float], state: KLState | None = None) -> list[KLState]:
    states = [state or pid.initial()]
    for kl in kls:
        states.append(pid.update(states[-1], measured(kl)))
    return states


@given(
    kls=st.lists(st.floats(0.01, 1000), max_size=20),
    p=st.floats(0, 2),
    i=st.floats(0.01, 1),
    d=st.floats(0, 2),
)
def test_between_the_bounds_it_is_the_formula_of_the_books(
    kls: list[float], p: float, i: float, d: float
) -> None:
    pid = controller(proportional=p, integral=i, derivative=d, floor=1e-300, max_error=2)
    errors = [min(max(math.log(kl / 6), -2), 2) for kl in kls]
    for n, state in enumerate(follow(pid, kls)[1:]):
        slope = errors[n] - errors[n - 1] if n else 0.0
        wanted = math.log(0.05) + p * errors[n] + i * sum(errors[: n + 1]) + d * slope
        assert math.log(state.coefficient) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("start", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize("gains", [(0, 0.1, 0), (0.3, 0.1, 0), (0.5, 0.3, 0.2), (0, 0.3, 0)])
def test_a_policy_that_answers_slowly_settles_at_the_target(
    start: float, gains: tuple[float, float, float]
) -> None:
    # A price of β draws KL halfway to 0.6/β in each rollout: at the target, β is 0.1.
    p, i, d = gains
    pid = controller(initial=start, proportional=p, integral=i, derivative=d)
    state, kl = pid.initial(), 0.0
    for _ in range(200):
        kl += 0.5 * (0.6 / state.coefficient - kl)
        state = pid.update(state, measured(kl))
    assert kl == pytest.approx(6.0, rel=0.01)
    assert state.coefficient == pytest.approx(0.1, rel=0.01)


@given(kl=st.floats(6.001, 1e300), other=st.floats(1e-300, 5.999))
def test_kl_above_the_target_makes_it_dearer_and_below_cheaper(kl: float, other: float) -> None:
    assert follow(controller(), [kl])[-1].coefficient > 0.05
    assert follow(controller(), [other])[-1].coefficient < 0.05


@given(kls=st.lists(ANY_KL, max_size=30), p=st.floats(0, 1e6), target=st.floats(1e-9, 1e9))
def test_whatever_is_measured_beta_is_positive_finite_and_at_least_the_floor(
    kls: list[float], p: float, target: float
) -> None:
    for state in follow(controller(proportional=p, target=target), kls):
        assert 1e-6 <= state.coefficient < math.inf
        assert all(math.isfinite(value) for value in state.memory.values())


def test_nan_changes_nothing_and_zero_is_the_largest_error() -> None:
    pid = controller()
    state = follow(pid, [9.0])[-1]
    assert pid.update(state, measured(math.nan)) == state
    assert pid.update(state, measured(0.0)) == pid.update(state, measured(-3.0))
    assert pid.update(state, measured(math.inf)) == pid.update(state, measured(1e300))


def test_at_a_bound_nothing_winds_up() -> None:
    pid, bound = controller(proportional=0.0, derivative=0.0), 1.0
    state = pid.initial()
    for kl in [60.0] * 500:  # the engine clamps what the controller returns
        state = pid.update(state, measured(kl))
        state = replace(state, coefficient=min(state.coefficient, bound))
    assert state.coefficient == bound
    assert pid.update(state, measured(3.0)).coefficient < bound  # at once, not after 500 rollouts


@given(st.lists(st.floats(0.01, 1000), min_size=2, max_size=20), st.data())
def test_a_state_that_went_through_json_goes_on_as_if_nothing_had_been(
    kls: list[float], data: st.DataObject
) -> None:
    pid, cut = controller(derivative=0.5), data.draw(st.integers(0, len(kls)))
    through = KLState(**json.loads(json.dumps(asdict(follow(pid, kls[:cut])[-1]))))
    assert follow(pid, kls[cut:], through)[-1] == follow(pid, kls)[-1]


@pytest.mark.parametrize("unit", ["nats_per_response", "nats_per_token"])
def test_the_unit_is_that_of_the_target(unit: str) -> None:
    assert controller(unit=unit).unit == unit


@pytest.mark.parametrize("keys", [{"target": 0}, {"integral": 0}, {"unit": "bits"}, {"floor": 0}])
def test_what_could_not_steer_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        controller(**keys)


def test_the_recipe_names_this_controller() -> None:
    loaded = load_recipe(Path(__file__).parent.parent / "recipe.yaml")
    assert loaded.chosen["kl", "controller"].component is PID

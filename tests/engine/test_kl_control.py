from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rlframe.engine.kl_control import KLControl
from rlframe.errors import RunError
from rlframe.hooks import KLController, KLMeasurement, KLState, PluginConfig
from rlframe.hooks.component import Instance
from rlframe.hooks.relay import Relay


class Scripted(KLController[PluginConfig]):
    """Returns or raises what the test put in."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def initial(self) -> KLState:
        return KLState(1.0)

    def update(self, state: KLState, measured: KLMeasurement) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(state) if callable(self.answer) else self.answer


def control(answer: Any, **bounds: float) -> KLControl:
    instance = Instance("controller", "scripted (test 1)", Scripted(answer))
    return KLControl(instance, Relay(), **{"minimum": 0.1, "maximum": 10.0, **bounds})


MEASURED = KLMeasurement(kl=6.0, nats_per_response=6.0, nats_per_token=0.5, responses=64)


def test_beta_stays_within_its_bounds_over_many_updates() -> None:
    up = control(lambda s: replace(s, coefficient=s.coefficient * 3))
    state, seen = up.initial(), []
    for _ in range(5):
        state = up.update(state, MEASURED)
        seen.append(state.coefficient)
    assert seen == [3.0, 9.0, 10.0, 10.0, 10.0]
    assert (
        control(lambda s: replace(s, coefficient=-5.0)).update(state, MEASURED).coefficient == 0.1
    )


def test_the_initial_coefficient_is_bounded_too() -> None:
    assert control(None, maximum=0.5).initial() == KLState(0.5)


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_measurement_that_is_not_finite_changes_nothing(kl: float) -> None:
    controller = control(lambda s: KLState(7.0))
    assert controller.update(KLState(2.0), replace(MEASURED, kl=kl)) == KLState(2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_coefficient_that_is_not_finite_leaves_the_old_state(bad: float) -> None:
    controller = control(lambda s: KLState(bad, {"integral": bad}))
    assert controller.update(KLState(2.0, {"integral": 1.0}), MEASURED).memory == {"integral": 1.0}


def test_a_controller_that_raises_is_named() -> None:
    with pytest.raises(RunError, match=r"scripted \(test 1\).*ZeroDivisionError: oh"):
        control(ZeroDivisionError("oh")).update(KLState(1.0), MEASURED)


def test_a_controller_that_returns_a_number_is_named() -> None:
    with pytest.raises(RunError, match=r"scripted \(test 1\) returned 0.5 instead of a KLState"):
        control(0.5).update(KLState(1.0), MEASURED)

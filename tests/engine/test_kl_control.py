from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy
import pytest

from rlframe.api import (
    HookPlugin,
    KLController,
    KLMeasurement,
    KLState,
    PluginConfig,
    hookimpl,
)
from rlframe.api.component import Instance
from rlframe.engine.kl_control import MOST_KEPT, KLControl
from rlframe.errors import RecipeError, RunError
from rlframe.registry.relay import Relay


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
    down = control(lambda s: replace(s, coefficient=0.0))
    assert down.update(state, MEASURED).coefficient == 0.1


@pytest.mark.parametrize("bounds", [{"maximum": 0.5}, {"minimum": 2.0}], ids=str)
def test_a_controller_that_starts_outside_the_bounds_is_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=r"scripted \(test 1\) starts with a coefficient of 1"):
        control(None, **bounds).initial()
    assert control(None, minimum=1.0, maximum=1.0).initial() == KLState(1.0)


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_measurement_that_is_not_finite_changes_nothing(kl: float) -> None:
    controller = control(lambda s: KLState(7.0))
    assert controller.update(KLState(2.0), replace(MEASURED, kl=kl)) == KLState(2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_coefficient_that_is_not_finite_leaves_the_old_state(bad: float) -> None:
    controller = control(lambda s: KLState(bad, {"integral": bad}))
    assert controller.update(KLState(2.0, {"integral": 1.0}), MEASURED).memory == {"integral": 1.0}


def test_a_controller_that_raises_is_named() -> None:
    with pytest.raises(RunError, match=r"scripted \(test 1\).*ZeroDivisionError in `update`: oh"):
        control(ZeroDivisionError("oh")).update(KLState(1.0), MEASURED)


@pytest.mark.parametrize("answer", [0.5, None, KLState(-1.0), KLState(1.0, {"kl": [1.0]})], ids=str)
def test_a_controller_that_breaks_its_contract_is_named(answer: Any) -> None:
    with pytest.raises(RunError, match=r"scripted \(test 1\) returned .* \(`update`\)"):
        control(answer).update(KLState(1.0), MEASURED)


def test_a_wrapper_around_the_hook_is_named_beside_it() -> None:
    class Halving(HookPlugin[PluginConfig]):
        @hookimpl(wrapper=True)
        def rlframe_update_kl(self, controller: Any, state: Any, measured: Any) -> Any:
            return (yield).coefficient / 2

    context: Any = None
    instance = Instance("controller", "scripted (test 1)", Scripted(KLState(1.0)))
    relay = Relay([Instance("half", "halving (test 2)", Halving(PluginConfig(), context))])
    with pytest.raises(RunError, match=r"\(with the hook plugin 'half' around it\) returned 0.5"):
        KLControl(instance, relay, 0.0, 1.0).update(KLState(1.0), MEASURED)


def test_what_is_remembered_is_what_a_checkpoint_gives_back() -> None:
    new = control(KLState(numpy.float64(0.5), {"n": 3, "mean": numpy.float64(0.25)}))
    found = new.update(KLState(1.0), MEASURED)
    assert found == KLState(0.5, {"n": 3, "mean": 0.25})
    assert [type(v) for v in (found.coefficient, *found.memory.values())] == [float, int, float]


def test_a_state_that_is_not_finite_once_in_a_while_is_passed_over() -> None:
    bad, good = KLState(math.nan), KLState(3.0)
    answers = ([bad] * MOST_KEPT + [good]) * 3
    controller = control(lambda s: answers.pop())
    state = KLState(2.0)
    for _ in range(33):
        state = controller.update(state, MEASURED)
    assert state == good


def test_a_controller_whose_state_is_never_finite_ends_the_run_by_name() -> None:
    controller, state = control(lambda s: KLState(1.0, {"mean": math.inf})), KLState(2.0)
    for _ in range(MOST_KEPT):
        state = controller.update(state, MEASURED)
    assert state == KLState(2.0)
    with pytest.raises(RunError, match=r"scripted \(test 1\) .* for 11 rollouts in a row"):
        controller.update(state, MEASURED)


def test_ranks_that_come_to_different_states_are_told_apart() -> None:
    instance = Instance("controller", "scripted (test 1)", Scripted(KLState(2.0)))

    def other(mine: str) -> list[str]:
        return [mine, mine, mine.replace("2.0", "2.5"), mine.replace("2.0", "2.9")]

    with pytest.raises(RunError, match=r"differs between ranks.*\[2.5, \{\}\] on rank 2"):
        KLControl(instance, Relay(), 0.0, 9.0, other).update(KLState(1.0), MEASURED)
    assert KLControl(instance, Relay(), 0.0, 9.0, lambda mine: [mine] * 3).update(
        KLState(1.0), MEASURED
    ) == KLState(2.0)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (None, "None instead of a KLState"),
        (KLState(math.nan), "not finite"),
        (KLState(-1.0), "pay"),
    ],
    ids=str,
)
def test_a_controller_that_starts_with_anything_else_is_named(state: Any, why: str) -> None:
    controller = control(None)
    controller.controller.component.initial = lambda: state  # type: ignore[method-assign]
    with pytest.raises(RunError, match=rf"scripted \(test 1\).*{why}"):
        controller.initial()


def test_a_unit_that_nobody_measures_in_is_refused_before_the_first_rollout() -> None:
    controller = control(None)
    controller.controller.component.__class__ = type("Bits", (Scripted,), {"unit": "bits"})
    with pytest.raises(RunError, match="wants KL in 'bits'"):
        controller.initial()

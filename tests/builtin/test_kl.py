"""KL controllers: a golden sequence, the direction, the fixed point and the bounds of a step."""

import math

import pytest
from pydantic import ValidationError

from rlframe.api import KLMeasurement, KLState
from rlframe.builtin.kl import Adaptive, Fixed

KEYS = {"target": 6.0, "horizon": 100, "initial": 0.1}


def measured(kl, responses=64):
    return KLMeasurement(kl=kl, nats_per_response=kl, nats_per_token=kl / 10, responses=responses)


def betas(controller, kls, responses=64):
    """The coefficient before the first rollout and after each."""
    state = controller.initial()
    found = [state.coefficient]
    for kl in kls:
        state = controller.update(state, measured(kl, responses))
        found.append(state.coefficient)
    return found


def test_fixed_never_moves(build):
    kls = [0.0, 6.0, 1e9, -3.0, math.inf, math.nan]
    assert betas(build(Fixed, coefficient=0.2), kls) == [0.2] * 7


def test_the_recipe_knows_beta_before_anything_is_built():
    assert Fixed.initial_coefficient(Fixed.Config(coefficient=0.3)) == 0.3
    assert Adaptive.initial_coefficient(Adaptive.Config(target=6, initial=0.07)) == 0.07


def test_fixed_may_be_0(build):
    assert betas(build(Fixed, coefficient=0), [5.0]) == [0.0, 0.0]


def test_adaptive_by_hand(build):
    # target 6, horizon 100, n = 64: β' = β (1 + 0.64 e), e = KL/6 - 1 within ±0.2
    #   KL 12    e = 1     -> 0.2     0.1          · 1.128 = 0.1128
    #   KL 6.6   e = 0.1              0.1128       · 1.064 = 0.1200192
    #   KL 6     e = 0                                       0.1200192
    #   KL 5.7   e = -0.05            0.1200192    · 0.968 = 0.1161785856
    #   KL 0     e = -1    -> -0.2    0.1161785856 · 0.872 = 0.1013077266432
    found = betas(build(Adaptive, **KEYS), [12, 6.6, 6, 5.7, 0])
    golden = [0.1, 0.1128, 0.1200192, 0.1200192, 0.1161785856, 0.1013077266432]
    assert found == pytest.approx(golden, rel=1e-12)


@pytest.mark.parametrize("kl", [6.01, 7.0, 60.0, 1e300])
def test_adaptive_makes_kl_dearer_above_the_target(build, kl):
    before, after = betas(build(Adaptive, **KEYS), [kl])
    assert after > before


@pytest.mark.parametrize("kl", [5.99, 3.0, 0.0, -1.0])
def test_adaptive_makes_kl_cheaper_below_the_target(build, kl):
    before, after = betas(build(Adaptive, **KEYS), [kl])
    assert 0 < after < before


@pytest.mark.parametrize("responses", [1, 64, 10**6])
def test_adaptive_stays_at_the_target(build, responses):
    assert betas(build(Adaptive, **KEYS), [6.0] * 5, responses) == [0.1] * 6


@pytest.mark.parametrize(
    ("kl", "responses", "factor"),
    [
        (12, 400, 1.8),
        (12, 500, 2.0),  # 1 + 0.2 · 5
        (12, 1000, 2.0),  # the formula says 3
        (0, 200, 0.6),
        (0, 250, 0.5),  # 1 - 0.2 · 2.5
        (0, 500, 0.5),  # the formula says 0
        (0, 1000, 0.5),  # the formula says -1
    ],
)
def test_one_update_changes_beta_by_no_more_than_a_factor_of_2(build, kl, responses, factor):
    before, after = betas(build(Adaptive, **KEYS), [kl], responses)
    assert after / before == pytest.approx(factor, rel=1e-12)


def test_two_updates_of_half_the_responses_are_about_one_of_all(build):
    controller = build(Adaptive, target=6, horizon=10_000, initial=0.1)
    assert betas(controller, [7, 7], 32)[-1] == pytest.approx(
        betas(controller, [7], 64)[-1], rel=1e-5
    )


def test_adaptive_settles_where_kl_is_the_target(build):
    # A policy that answers a price of β with a KL of 0.6/β: at the target, β is 0.1.
    controller = build(Adaptive, target=6, horizon=1000, initial=0.02)
    state = controller.initial()
    for _ in range(200):
        state = controller.update(state, measured(0.6 / state.coefficient))
    assert state.coefficient == pytest.approx(0.1, rel=1e-3)


def test_adaptive_is_pure(build):
    controller, state = build(Adaptive, **KEYS), KLState(0.1, {"kept": 3.0})
    first = controller.update(state, measured(12))
    assert controller.update(state, measured(12)) == first
    assert state == KLState(0.1, {"kept": 3.0})
    assert first.memory == {"kept": 3.0}


@pytest.mark.parametrize("unit", ["nats_per_response", "nats_per_token"])
def test_adaptive_is_told_kl_in_the_unit_of_its_target(build, unit):
    assert build(Adaptive, **KEYS, unit=unit).unit == unit


def test_a_target_is_nats_per_response_unless_the_recipe_says_otherwise(build):
    assert build(Adaptive, target=6).unit == "nats_per_response"


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"target": 0},
        {"target": -6},
        {"target": 6, "horizon": 0},
        {"target": 6, "initial": 0},  # multiplied with anything it stays 0
        {"target": 6, "unit": "bits"},
    ],
)
def test_what_could_not_steer_is_refused(keys):
    with pytest.raises(ValidationError):
        Adaptive.Config.model_validate(keys)


def test_a_negative_price_is_refused():
    with pytest.raises(ValidationError):
        Fixed.Config(coefficient=-0.1)

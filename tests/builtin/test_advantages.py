"""The advantage estimators as components: their defaults, their options and numbers done by hand."""

import pytest
import torch
from pydantic import ValidationError

from rlframe.builtin.advantages import GAE, RLOO, GroupRelative, ReinforcePlusPlus
from rlframe.testing import credit_batch
from rlframe.types import StopReason

ONE_LONG = credit_batch(rewards=[[1.0, 0.0, 2.0], [3.0]], values=[[0.5, 1.0, 0.5], [1.0]])


def test_gae_by_hand(build):
    # γ = 0.9, λ = 0.8, γλ = 0.72
    #   δ_2 = 2 +   0     - 0.5 =  1.5      A_2 =  1.5
    #   δ_1 = 0 + 0.9·0.5 - 1   = -0.55     A_1 = -0.55 + 0.72 · 1.5  = 0.53
    #   δ_0 = 1 + 0.9·1   - 0.5 =  1.4      A_0 =  1.4  + 0.72 · 0.53 = 1.7816
    # and of the response of one token: 3 - 1 = 2
    credit = build(GAE, gamma=0.9, lam=0.8).estimate(ONE_LONG)
    assert credit.advantages[0].tolist() == pytest.approx([1.7816, 0.53, 1.5], rel=1e-12)
    assert credit.returns[0].tolist() == pytest.approx([2.2816, 1.53, 2.0], rel=1e-12)
    assert credit.advantages[1].tolist() == [2, 0, 0]
    assert credit.returns[1].tolist() == [3, 0, 0]


def test_by_default_gamma_is_1_and_lambda_0_95(build):
    # γ = 1, λ = 0.95
    #   δ_2 =  1.5       A_2 =  1.5
    #   δ_1 = -0.5       A_1 = -0.5 + 0.95 · 1.5   = 0.925
    #   δ_0 =  1.5       A_0 =  1.5 + 0.95 · 0.925 = 2.37875
    credit = build(GAE).estimate(ONE_LONG)
    assert credit.advantages[0].tolist() == pytest.approx([2.37875, 0.925, 1.5], rel=1e-12)


@pytest.mark.parametrize("component", [GAE, ReinforcePlusPlus])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_discounts_lie_between_0_and_1(component, value):
    for key in component.Config.model_fields.keys() & {"gamma", "lam"}:
        component.Config.model_validate({key: 0})
        component.Config.model_validate({key: 1})
        with pytest.raises(ValidationError):
            component.Config.model_validate({key: value})


def test_with_bootstrap_the_critics_estimate_continues_a_response_that_was_cut(build):
    estimator = build(GAE, gamma=0.5, lam=0.0, bootstrap=True)
    assert type(estimator).needs(estimator.config).last_values
    batch = credit_batch(
        rewards=[[0.0, 1.0], [0.0, 1.0]],
        values=[[2.0, 4.0], [2.0, 4.0]],
        stop_reasons=[StopReason.LENGTH, StopReason.EOS],
        last_values=torch.tensor([8.0, 0.0], dtype=torch.float64),
    )
    # One-step errors: 0 + 4 / 2 - 2, and 1 + 8 / 2 - 4 or 1 - 4
    assert estimator.estimate(batch).advantages.tolist() == [[0, 1], [0, -3]]
    assert not GAE.needs(GAE.Config()).last_values


GROUPS = credit_batch(
    rewards=[[0.0, 3.0], [1.0], [0.5, 0.5, 1.0], [4.0], [-2.0, 4.0]], group_ids=[7, 2, 7, 7, 2]
)
# Totals 3, 1, 2, 4, 2: group 7 has 3, 2 and 4, group 2 has 1 and 2.


def test_rloo_by_hand(build):
    # 3 - (2 + 4) / 2, 1 - 2, 2 - (3 + 4) / 2, 4 - (3 + 2) / 2, 2 - 1
    credit = build(RLOO).estimate(GROUPS)
    assert credit.returns is None
    assert credit.advantages.tolist() == [
        [0, 0, 0],
        [-1, 0, 0],
        [-1.5, -1.5, -1.5],
        [1.5, 0, 0],
        [1, 1, 0],
    ]


def test_relative_to_the_group_by_hand(build):
    # Means 3 and 1.5, sample deviations 1 and sqrt(1/2)
    plain = build(GroupRelative, divide_by_std=False).estimate(GROUPS).advantages
    assert plain[:, 0].tolist() == [0, -0.5, -1, 1, 0.5]
    scaled = build(GroupRelative).estimate(GROUPS).advantages
    half = 0.5**0.5
    assert scaled[:, 0].tolist() == pytest.approx([0, -half, -1, 1, half], rel=1e-12)
    assert scaled[2].tolist() == [-1, -1, -1]


def test_the_kl_penalty_is_part_of_what_a_group_compares(build):
    batch = credit_batch(rewards=[[-1.0, 3.0], [2.0]], group_ids=[1, 1])
    for component in (RLOO, GroupRelative):
        assert not build(component).estimate(batch).advantages.any()  # both are 2


def test_reinforce_plus_plus_by_hand(build):
    batch = credit_batch(rewards=[[1.0, 0.0, 4.0], [3.0]])
    found = build(ReinforcePlusPlus).estimate(batch).advantages
    assert found.tolist() == [[5, 4, 4], [3, 0, 0]]
    halved = build(ReinforcePlusPlus, gamma=0.5).estimate(batch).advantages
    assert halved.tolist() == [[2, 2, 4], [3, 0, 0]]


@pytest.mark.parametrize(
    ("component", "critic", "samples", "whiten"),
    [(GAE, True, 1, True), (RLOO, False, 2, False), (GroupRelative, False, 2, False),
     (ReinforcePlusPlus, False, 1, True)],
)  # fmt: skip
def test_what_each_needs(component, critic, samples, whiten):
    needs = component.needs(component.Config())
    assert (needs.critic, needs.samples_per_prompt, component.whiten) == (critic, samples, whiten)

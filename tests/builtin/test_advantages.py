"""The advantage estimator as a component: its defaults, its options and numbers done by hand."""

import pytest
import torch
from pydantic import ValidationError

from rlframe.builtin.advantages import GAE

REWARDS = torch.tensor([[1.0, 0.0, 2.0], [3.0, 9.0, 9.0]], dtype=torch.float64)
VALUES = torch.tensor([[0.5, 1.0, 0.5], [1.0, 9.0, 9.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_gae_by_hand(build):
    # γ = 0.9, λ = 0.8, γλ = 0.72
    #   δ_2 = 2 +   0     - 0.5 =  1.5      A_2 =  1.5
    #   δ_1 = 0 + 0.9·0.5 - 1   = -0.55     A_1 = -0.55 + 0.72 · 1.5  = 0.53
    #   δ_0 = 1 + 0.9·1   - 0.5 =  1.4      A_0 =  1.4  + 0.72 · 0.53 = 1.7816
    # and of the response of one token: 3 - 1 = 2
    advantages, returns = build(GAE, gamma=0.9, lam=0.8).estimate(REWARDS, VALUES, MASK)
    assert advantages[0].tolist() == pytest.approx([1.7816, 0.53, 1.5], rel=1e-12)
    assert returns[0].tolist() == pytest.approx([2.2816, 1.53, 2.0], rel=1e-12)
    assert advantages[1].tolist() == [2, 0, 0]
    assert returns[1].tolist() == [3, 0, 0]


def test_by_default_gamma_is_1_and_lambda_0_95(build):
    # γ = 1, λ = 0.95
    #   δ_2 =  1.5       A_2 =  1.5
    #   δ_1 = -0.5       A_1 = -0.5 + 0.95 · 1.5   = 0.925
    #   δ_0 =  1.5       A_0 =  1.5 + 0.95 · 0.925 = 2.37875
    advantages, _ = build(GAE).estimate(REWARDS, VALUES, MASK)
    assert advantages[0].tolist() == pytest.approx([2.37875, 0.925, 1.5], rel=1e-12)


@pytest.mark.parametrize("key", ["gamma", "lam"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_gamma_and_lambda_lie_between_0_and_1(key, value):
    GAE.Config.model_validate({key: 0})
    GAE.Config.model_validate({key: 1})
    with pytest.raises(ValidationError):
        GAE.Config.model_validate({key: value})

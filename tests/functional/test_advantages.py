"""Generalised advantage estimation, against arithmetic done by hand and its two limits."""

import pytest
import torch

from rlframe.functional.advantages import gae

LENGTHS = torch.tensor([5, 1, 3, 0, 4])
MASK = torch.arange(5) < LENGTHS[:, None]


def rollout():
    """Rewards and values [5, 5], zero in the padding."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    return draw.masked_fill(~MASK, 0)


def test_gae_by_hand():
    # γ = 0.9, λ = 0.8, γλ = 0.72
    #   δ_2 = 2 +   0     - 0.5 =  1.5      A_2 =  1.5
    #   δ_1 = 0 + 0.9·0.5 - 1   = -0.55     A_1 = -0.55 + 0.72 · 1.5  = 0.53
    #   δ_0 = 1 + 0.9·1   - 0.5 =  1.4      A_0 =  1.4  + 0.72 · 0.53 = 1.7816
    rewards = torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 1.0, 0.5]], dtype=torch.float64)
    real = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, real, gamma=0.9, lam=0.8)
    assert advantages.tolist() == [pytest.approx([1.7816, 0.53, 1.5], rel=1e-12)]
    assert returns.tolist() == [pytest.approx([2.2816, 1.53, 2.0], rel=1e-12)]


def test_gae_with_lam_1_and_gamma_1_is_the_monte_carlo_return_minus_the_value():
    rewards, values = rollout()
    advantages, returns = gae(rewards, values, MASK, gamma=1, lam=1)
    for t in range(5):
        to_go = rewards[:, t:].sum(1) * MASK[:, t]
        torch.testing.assert_close(returns[:, t], to_go)
        torch.testing.assert_close(advantages[:, t], to_go - values[:, t])


def test_gae_with_lam_1_discounts_the_return_by_gamma():
    rewards, values = rollout()
    _, returns = gae(rewards, values, MASK, gamma=0.5, lam=1)
    halves = torch.tensor([1, 1 / 2, 1 / 4, 1 / 8, 1 / 16], dtype=torch.float64)
    torch.testing.assert_close(returns[:, 0], rewards @ halves)


def test_gae_with_lam_0_is_the_td_error():
    rewards, values = rollout()
    advantages, _ = gae(rewards, values, MASK, gamma=0.9, lam=0)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            after = values[b, t + 1] if t + 1 < length else 0.0  # no bootstrap past the end
            error = rewards[b, t] + 0.9 * after - values[b, t]
            torch.testing.assert_close(advantages[b, t], error)


def test_a_perfect_critic_leaves_no_advantage():
    rewards, _ = rollout()
    _, returns = gae(rewards, torch.zeros_like(rewards), MASK, gamma=0.9, lam=1)
    advantages, targets = gae(rewards, returns, MASK, gamma=0.9, lam=0.8)
    torch.testing.assert_close(advantages, torch.zeros_like(advantages))
    torch.testing.assert_close(targets, returns)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 7.0])
def test_garbage_in_the_padding_changes_nothing(garbage):
    rewards, values = rollout()
    clean = gae(rewards, values, MASK, gamma=0.9, lam=0.8)
    dirty = gae(
        rewards.masked_fill(~MASK, garbage),
        values.masked_fill(~MASK, garbage),
        MASK,
        gamma=0.9,
        lam=0.8,
    )
    for expected, found in zip(clean, dirty, strict=True):
        assert torch.equal(found, expected)
        assert (found[~MASK] == 0).all()


def test_a_padded_row_gives_what_it_gives_alone():
    rewards, values = rollout()
    together = gae(rewards, values, MASK, gamma=0.9, lam=0.8)
    for b, length in enumerate(LENGTHS):
        row = slice(b, b + 1), slice(0, length)
        alone = gae(rewards[row], values[row], MASK[row], gamma=0.9, lam=0.8)
        for expected, found in zip(alone, together, strict=True):
            assert torch.equal(found[row], expected)


def test_returns_are_advantages_plus_values():
    rewards, values = rollout()
    advantages, returns = gae(rewards, values, MASK, gamma=0.9, lam=0.8)
    assert torch.equal(returns, advantages + values)


def test_gae_leaves_its_inputs_as_they_were():
    rewards, values = torch.ones(2, 5, 5)
    gae(rewards, values, MASK, gamma=0.9, lam=0.8)
    assert (rewards == 1).all()
    assert (values == 1).all()

"""Advantages of tokens, against arithmetic done by hand, a loop over tokens, and their limits."""

import pytest
import torch

from rlframe.functional.advantages import discounted_returns, gae, per_token

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


LAST = torch.tensor([0.5, -2.0, 0.0, torch.nan, 3.0], dtype=torch.float64)
"""The third response ended; the fourth has no token, and so no value after the last one."""


def token_by_token(rewards, values, mask, last, gamma, lam):
    """The definition A_t = Σ_k (γλ)^k δ_{t+k}, one response and one token at a time."""
    advantages = torch.zeros_like(values)
    for b, length in enumerate(mask.sum(1).tolist()):
        ahead = [*values[b, :length].tolist(), last[b].item()]
        deltas = [rewards[b, t].item() + gamma * ahead[t + 1] - ahead[t] for t in range(length)]
        for t in range(length):
            powers = [(gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])]
            advantages[b, t] = sum(powers)
    return advantages


def test_a_cut_response_is_bootstrapped_by_hand():
    # As in the first test, but for V_last = 10: δ_2 = 2 + 0.9 · 10 - 0.5 = 10.5
    #   A_2 = 10.5      A_1 = -0.55 + 0.72 · 10.5 = 7.01      A_0 = 1.4 + 0.72 · 7.01 = 6.4472
    rewards = torch.tensor([[1.0, 0.0, 2.0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 1.0, 0.5, 0.0]], dtype=torch.float64)
    real = torch.tensor([[True, True, True, False]])
    last = torch.tensor([10.0], dtype=torch.float64)
    advantages, returns = gae(rewards, values, real, gamma=0.9, lam=0.8, last_values=last)
    assert advantages.tolist() == [pytest.approx([6.4472, 7.01, 10.5, 0], rel=1e-12)]
    assert returns.tolist() == [pytest.approx([6.9472, 8.01, 11.0, 0], rel=1e-12)]


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0), (0.7, 0.0), (0.0, 0.5)])
def test_gae_is_the_discounted_sum_of_td_errors(gamma, lam):
    rewards, values = rollout()
    found, _ = gae(rewards, values, MASK, gamma=gamma, lam=lam, last_values=LAST)
    torch.testing.assert_close(found, token_by_token(rewards, values, MASK, LAST, gamma, lam))
    none, _ = gae(rewards, values, MASK, gamma=gamma, lam=lam)
    zero = torch.zeros_like(LAST)
    torch.testing.assert_close(none, token_by_token(rewards, values, MASK, zero, gamma, lam))


def test_responses_that_ended_have_no_value_after_the_last_token():
    rewards, values = rollout()
    expected = gae(rewards, values, MASK, gamma=0.9, lam=0.8)
    zero = torch.zeros(5, dtype=torch.float64)
    found = gae(rewards, values, MASK, gamma=0.9, lam=0.8, last_values=zero)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_the_value_after_the_last_token_is_a_reward_one_token_later():
    """With λ = 1, V_last reaches token t with γ to the number of tokens in between."""
    rewards, values = rollout()
    last = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    _, without = gae(rewards, values, MASK, gamma=0.5, lam=1)
    _, returns = gae(rewards, values, MASK, gamma=0.5, lam=1, last_values=last)
    for b, length in enumerate(LENGTHS.tolist()):
        for t in range(length):
            gained = (returns - without)[b, t].item()
            assert gained == pytest.approx(last[b].item() * 0.5 ** (length - t), rel=1e-12)


def test_discounted_returns_by_hand():
    # γ = 1/2:  G_2 = 4,  G_1 = 2 + 4/2 = 4,  G_0 = 1 + 4/2 = 3
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 7.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    found = discounted_returns(rewards, mask, gamma=0.5)
    assert found.tolist() == [[3, 4, 4, 0], [3, 0, 0, 0]]


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_discounted_returns_are_sums_of_what_follows(gamma):
    rewards, _ = rollout()
    found = discounted_returns(rewards, MASK, gamma=gamma)
    for b, length in enumerate(LENGTHS.tolist()):
        for t in range(5):
            later = [gamma ** (k - t) * rewards[b, k].item() for k in range(t, length)]
            assert found[b, t].item() == pytest.approx(sum(later), rel=1e-12)


def test_discounted_returns_are_gae_without_a_critic():
    rewards, _ = rollout()
    advantages, returns = gae(rewards, torch.zeros_like(rewards), MASK, gamma=0.9, lam=1)
    found = discounted_returns(rewards, MASK, gamma=0.9)
    torch.testing.assert_close(found, advantages)
    torch.testing.assert_close(found, returns)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 7.0])
def test_discounted_returns_read_no_padding(garbage):
    rewards, _ = rollout()
    clean = discounted_returns(rewards, MASK, gamma=0.9)
    dirty = rewards.masked_fill(~MASK, garbage)
    assert torch.equal(discounted_returns(dirty, MASK, gamma=0.9), clean)
    torch.testing.assert_close(dirty, rewards.masked_fill(~MASK, garbage), equal_nan=True)


def test_an_advantage_of_a_response_is_that_of_its_tokens():
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    found = per_token(torch.tensor([2.0, -1.0, torch.nan]), mask)
    assert found.tolist() == [[2, 2, 0], [-1, 0, 0], [0, 0, 0]]
    assert found.dtype == torch.float32
    assert per_token(torch.ones(3, dtype=torch.float64), mask).dtype == torch.float64

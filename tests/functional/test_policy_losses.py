"""Policy losses other than PPO's: REINFORCE, GSPO's sequence ratio and CISPO."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from rlframe.functional import losses
from rlframe.functional.advantages import per_token
from rlframe.functional.masked import masked_sum

LENGTHS = torch.tensor([4, 1, 0, 3])
MASK = torch.arange(5) < LENGTHS[:, None]
LOG2 = math.log(2)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(function, *inputs):
    """Gradient of the sum with respect to the first input."""
    leaf = inputs[0].detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(leaf, *inputs[1:]).sum(), leaf)
    return grad


# --- REINFORCE


def test_reinforce_table():
    logprobs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([3.0, -1.0, 0.0], dtype=torch.float64)
    loss = losses.reinforce_loss(logprobs, advantages)
    loss.sum().backward()
    assert loss.tolist() == [3, -2, 0]
    assert logprobs.grad.tolist() == [-3, 1, 0]


def test_the_expected_gradient_of_reinforce_is_that_of_the_expected_advantage():
    """Σ_a π(a) ∇ℓ(a) = -∇ Σ_a π(a) A(a), summed exactly over the actions."""
    logits, advantages = draw(4).requires_grad_(), draw(4, seed=1)
    probs = logits.softmax(0)
    wanted = torch.autograd.grad((probs * advantages).sum(), logits, retain_graph=True)[0]
    loss = losses.reinforce_loss(logits.log_softmax(0), advantages)
    found = torch.autograd.grad((probs.detach() * loss).sum(), logits)[0]
    torch.testing.assert_close(found, -wanted)


def test_reinforce_has_the_gradient_of_the_surrogate_in_the_first_step():
    logprobs, advantages = -draw(4, 5).exp(), draw(4, 5, seed=1)

    def surrogate(now):
        ratio = losses.policy_ratio(now, logprobs)
        return losses.clipped_policy_loss(ratio, advantages, clip=0.2)[0]

    found = slope(lambda now: losses.reinforce_loss(now, advantages), logprobs)
    torch.testing.assert_close(found, slope(surrogate, logprobs))


# --- GSPO


def test_sequence_ratio_table():
    # Log ratios (log 2, 0, log 4), of mean log 2; and (-log 9, 0) of mean -log 3
    new = torch.tensor([[LOG2, -1, 2 * LOG2], [-2 * math.log(3), 5, 9]], dtype=torch.float64)
    old = torch.tensor([[0.0, -1, 0], [0, 5, 4]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = losses.sequence_ratio(new, old, mask)
    assert found.tolist() == [pytest.approx([2, 2, 2]), pytest.approx([1 / 3, 1 / 3, 1])]
    # ∂s / ∂ log π = s / n, once for each of the n tokens that have the ratio
    grad = slope(losses.sequence_ratio, new, old, mask)
    assert grad.tolist() == [pytest.approx([2, 2, 2]), pytest.approx([1 / 3, 1 / 3, 0])]
    first = slope(lambda *inputs: losses.sequence_ratio(*inputs)[:, :1], new, old, mask)
    assert first.tolist() == [pytest.approx([2 / 3] * 3), pytest.approx([1 / 6, 1 / 6, 0])]


def test_sequence_ratio_is_the_geometric_mean_of_each_responses_token_ratios():
    new, old = draw(2, 4, 5)
    found = losses.sequence_ratio(new, old, MASK)
    for b, length in enumerate(LENGTHS.tolist()):
        ratios = losses.policy_ratio(new[b, :length], old[b, :length])
        for t in range(5):
            expected = math.prod(ratios.tolist()) ** (1 / length) if t < length else 1
            assert found[b, t].item() == pytest.approx(expected, rel=1e-12)
    assert (found[~MASK] == 1).all()


def test_the_sequence_ratio_of_one_token_is_its_ratio():
    new, old = 30 * draw(2, 100, 1)  # some beyond the clamp at 20
    one = torch.ones(100, 1, dtype=torch.bool)
    found, expected = losses.sequence_ratio(new, old, one), losses.policy_ratio(new, old)
    assert (expected == math.exp(20)).any()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        slope(losses.sequence_ratio, new, old, one), slope(losses.policy_ratio, new, old)
    )


def test_equal_policies_have_a_sequence_ratio_of_exactly_1():
    logprobs = -draw(4, 5).exp()
    assert (losses.sequence_ratio(logprobs, logprobs.clone(), MASK) == 1).all()


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf])
def test_sequence_ratio_reads_no_padding(garbage):
    new, old = draw(2, 4, 5)
    advantages = draw(4, 5, seed=1)

    def loss(now, then, weight):
        ratio = losses.sequence_ratio(now, then, MASK)
        return masked_sum(losses.clipped_policy_loss(ratio, weight, clip=0.2)[0], MASK)

    dirty = [x.masked_fill(~MASK, garbage) for x in (new, old, advantages)]
    assert torch.equal(
        losses.sequence_ratio(*dirty[:2], MASK), losses.sequence_ratio(new, old, MASK)
    )
    assert torch.equal(loss(*dirty), loss(new, old, advantages))
    found = slope(loss, *dirty)
    assert torch.equal(found, slope(loss, new, old, advantages))
    assert (found[~MASK] == 0).all()
    assert (found[MASK] != 0).any()


def test_sequence_ratio_has_the_gradient_of_its_values():
    new, old = draw(2, 4, 5)
    new.requires_grad_()
    assert gradcheck(lambda x: losses.sequence_ratio(x, old, MASK), new)


def test_a_row_has_the_sequence_ratio_that_it_has_alone():
    new, old = draw(2, 4, 5)
    together = losses.sequence_ratio(new, old, MASK)
    for b, length in enumerate(LENGTHS.tolist()):
        row = slice(b, b + 1), slice(0, length)
        torch.testing.assert_close(
            together[row], losses.sequence_ratio(new[row], old[row], MASK[row])
        )


def gspo_token(logprobs, old, mask):
    """Eq. 14 of the GSPO paper: the value of s, and the gradient of each token's own ratio."""
    ratio = losses.sequence_ratio(logprobs, old, mask).detach()
    return ratio * (logprobs - logprobs.detach()).exp()


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
def test_with_one_advantage_per_response_gspo_and_gspo_token_have_one_gradient(reduction):
    new, old = draw(2, 4, 5)
    weights, _ = losses.token_weights(MASK, reduction=reduction, max_new_tokens=5)

    def gradient(ratio_of, advantages):
        def loss(now):
            ratio = ratio_of(now, old, MASK)
            return weights * losses.clipped_policy_loss(ratio, advantages, clip=0.5)[0]

        return slope(loss, new)

    equal = per_token(draw(4, seed=1), MASK)
    found = gradient(losses.sequence_ratio, equal)
    torch.testing.assert_close(found, gradient(gspo_token, equal))
    assert (found != 0).any()
    unequal = draw(4, 5, seed=1)
    apart = gradient(losses.sequence_ratio, unequal) - gradient(gspo_token, unequal)
    assert apart.norm() > 0.1 * found.norm()


def test_gspo_gives_every_token_the_mean_advantage_of_its_response():
    new, old, advantages = draw(3, 4, 5)
    found = slope(lambda now: -losses.sequence_ratio(now, old, MASK) * advantages * MASK, new)
    ratio = losses.sequence_ratio(new, old, MASK)
    for b, length in enumerate(LENGTHS.tolist()):
        mean = advantages[b, :length].sum() / max(length, 1)
        torch.testing.assert_close(found[b, :length], -ratio[b, :length] * mean)


# --- CISPO


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope_", "clipped"),
    [
        # log π = -2, bounds 0.5 and 3; the loss is 2 w A and its slope -w A
        (1.0, 1.5, 3.0, -1.5, False),
        (0.25, 1.5, 1.5, -0.75, True),
        (0.5, 1.5, 1.5, -0.75, False),  # the edges belong to the inside
        (3.0, 1.5, 9.0, -4.5, False),
        (4.0, 1.5, 9.0, -4.5, True),  # bounded, not silenced
        (4.0, -1.5, -9.0, 4.5, True),
        (0.25, -1.5, -1.5, 0.75, True),
        (2.0, 0.0, 0.0, 0.0, False),
    ],
)
def test_cispo_table(ratio, advantage, loss, slope_, clipped):
    logprobs = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    ratio = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    found, active = losses.cispo_loss(
        logprobs, ratio, torch.tensor(advantage).double(), clip_low=0.5, clip_high=2.0
    )
    found.backward()
    assert found.item() == loss
    assert logprobs.grad.item() == slope_
    assert active.item() is clipped
    assert ratio.grad is None


def test_cispo_without_bounds_has_the_gradient_of_the_unclipped_surrogate():
    new, old, advantages = draw(3, 4, 5)

    def bounded(now, **bounds):
        ratio = losses.policy_ratio(now, old)
        return losses.cispo_loss(now, ratio, advantages, **bounds)[0]

    found = slope(lambda now: bounded(now, clip_low=1.0, clip_high=1e9), new)
    surrogate = slope(lambda now: -losses.policy_ratio(now, old) * advantages, new)
    torch.testing.assert_close(found, surrogate)
    tight = slope(lambda now: bounded(now, clip_low=0.1, clip_high=0.1), new)
    assert (tight - surrogate).norm() > 0.1


def test_cispo_without_a_step_is_reinforce():
    logprobs, advantages = -draw(4, 5).exp(), draw(4, 5, seed=1)
    ratio = losses.policy_ratio(logprobs, logprobs)
    found, clipped = losses.cispo_loss(logprobs, ratio, advantages, clip_low=0.2, clip_high=0.2)
    assert torch.equal(found, losses.reinforce_loss(logprobs, advantages))
    assert not clipped.any()

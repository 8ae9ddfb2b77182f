"""Losses with a clip around the old policy or value: tables of values, branches and gradients."""

import math

import pytest
import torch

from rlframe.functional import losses


def scalar(number, *, grad=False):
    return torch.tensor(number, dtype=torch.float64, requires_grad=grad)


def test_equal_logprobs_give_a_ratio_of_exactly_1():
    logprobs = -20 * torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert (losses.policy_ratio(logprobs, logprobs.clone()) == 1).all()


@pytest.mark.parametrize(
    ("log_ratio", "ratio", "slope"),
    [
        (math.log(2), 2, 2),  # d ρ / d log π = ρ
        (math.log(0.5), 0.5, 0.5),
        (19.0, math.exp(19), math.exp(19)),
        (21.0, math.exp(20), 0),
        (-21.0, math.exp(-20), 0),
        (1e4, math.exp(20), 0),
        (-1e4, math.exp(-20), 0),
    ],
)
def test_the_log_ratio_is_clamped_at_20(log_ratio, ratio, slope):
    logprobs = scalar(log_ratio - 3, grad=True)
    found = losses.policy_ratio(logprobs, scalar(-3.0))
    found.backward()
    assert found.item() == pytest.approx(ratio, rel=1e-9)
    assert logprobs.grad.item() == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 3.0, -3.0, False),
        (1.1, 1.0, -1.1, False),
        (0.9, -1.0, 0.9, False),
        # Further in the good direction than ε: no more reward for it, and no gradient.
        (2.0, 1.0, -1.2, True),
        (0.5, -1.0, 0.8, True),
        # Further in the bad direction: the full price, and the way back stays open.
        (2.0, -1.0, 2.0, False),
        (0.5, 1.0, -0.5, False),
        # The edges belong to the inside.
        (1.2, 1.0, -1.2, False),
        (1.2, -1.0, 1.2, False),
        (0.8, 1.0, -0.8, False),
        (0.8, -1.0, 0.8, False),
        (2.0, 0.0, 0.0, False),
    ],
)
def test_clipped_policy_loss_table(ratio, advantage, loss, clipped):
    ratio = scalar(ratio, grad=True)
    found, active = losses.clipped_policy_loss(ratio, scalar(advantage), clip=0.2)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-12)
    assert active.item() is clipped
    assert ratio.grad.item() == (0 if clipped else -advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        # 1 - 0.25 below, 1 + 0.5 above, c = 3
        (1.4, 2.0, -2.8, False),  # beyond 1 + 0.25
        (1.5, 2.0, -3.0, False),
        (1.6, 2.0, -3.0, True),
        (4.0, 2.0, -3.0, True),  # no matter that it is also beyond c
        (0.1, 2.0, -0.2, False),
        (0.8, -2.0, 1.6, False),
        (0.75, -2.0, 1.5, False),
        (0.6, -2.0, 1.5, True),  # within 1 - 0.5
        (1.6, -2.0, 3.2, False),
        (3.0, -2.0, 6.0, False),  # the edge belongs to the inside
        (3.5, -2.0, 6.0, True),
        (1e6, -2.0, 6.0, True),
        (4.0, 0.0, 0.0, False),
    ],
)
def test_asymmetric_and_dual_clip_table(ratio, advantage, loss, clipped):
    ratio = scalar(ratio, grad=True)
    found, active = losses.clipped_policy_loss(
        ratio, scalar(advantage), clip=0.25, clip_high=0.5, dual_clip=3.0
    )
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-12)
    assert active.item() is clipped
    assert ratio.grad.item() == (0 if clipped else -advantage)


def many(seed=0):
    """Ratios from e^-4 to e^4 and advantages, a tenth of which are 0."""
    generator = torch.Generator().manual_seed(seed)
    x, advantages, drop = torch.randn(3, 4000, generator=generator, dtype=torch.float64)
    return (1.5 * x).clamp(-4, 4).exp(), advantages.masked_fill(drop > 1.28, 0)


def naive(ratio, advantage, low, high, dual):
    """Loss and slope of one token, case by case."""
    if advantage > 0:
        return (-high * advantage, 0) if ratio > high else (-ratio * advantage, -advantage)
    if ratio < low:
        return -low * advantage, 0
    return (-dual * advantage, 0) if ratio > dual else (-ratio * advantage, -advantage)


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({"clip": 0.2}, (0.8, 1.2, math.inf)),
        ({"clip": 0.2, "clip_high": None, "dual_clip": None}, (0.8, 1.2, math.inf)),
        ({"clip": 0.2, "clip_high": 0.28}, (0.8, 1.28, math.inf)),
        ({"clip": 0.2, "clip_high": 0.1}, (0.8, 1.1, math.inf)),
        ({"clip": 0.2, "dual_clip": 3.0}, (0.8, 1.2, 3.0)),
        ({"clip": 0.3, "clip_high": 0.5, "dual_clip": 1.25}, (0.7, 1.5, 1.25)),
    ],
)
def test_every_token_is_bounded_case_by_case_and_clipped_where_its_gradient_is_0(options, bounds):
    ratio, advantages = many()
    ratio.requires_grad_()
    loss, clipped = losses.clipped_policy_loss(ratio, advantages, **options)
    loss.sum().backward()
    rows = zip(ratio.tolist(), advantages.tolist(), strict=True)
    expected, slope = torch.tensor(
        [naive(*row, *bounds) if row[1] else (0, 0) for row in rows], dtype=torch.float64
    ).T
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(ratio.grad, slope)
    assert torch.equal(clipped, (ratio.grad == 0) & (advantages != 0))
    assert 100 < clipped.sum() < 3900


def test_without_bounds_the_surrogate_is_minus_ratio_times_advantage():
    ratio, advantages = many()
    found, clipped = losses.clipped_policy_loss(ratio, advantages, clip=1e9, dual_clip=1e9)
    assert torch.equal(found, -ratio * advantages)
    assert not clipped.any()


def test_a_dual_clip_never_makes_a_loss_larger_and_leaves_good_tokens_alone():
    ratio, advantages = many()
    single, _ = losses.clipped_policy_loss(ratio, advantages, clip=0.2)
    both, clipped = losses.clipped_policy_loss(ratio, advantages, clip=0.2, dual_clip=2.0)
    assert (both <= single).all()
    assert (both <= 2 * advantages.abs()).all()
    assert ((both < single) == (clipped & (advantages < 0) & (ratio > 1))).all()
    assert (both < single).any()
    assert torch.equal(both[advantages >= 0], single[advantages >= 0])


def test_a_ratio_at_the_dual_bound_has_its_whole_gradient():
    ratio = scalar(2.0, grad=True)
    loss, _ = losses.clipped_policy_loss(ratio, scalar(-3.0), clip=0.2, dual_clip=2.0)
    loss.backward()
    assert (loss.item(), ratio.grad.item()) == (6, 3)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped"),
    [
        (0.25, 0.0, 1.0, 0.28125, False),  # within ε = 0.5 of the old one: 0.75² / 2
        (0.5, 0.0, 1.0, 0.125, False),  # the edge belongs to the inside
        (1.0, 0.0, 1.0, 0.125, True),  # right, but too fast: 0.5² / 2
        (-1.0, 0.0, -1.0, 0.125, True),
        (3.0, 2.0, 3.0, 0.125, True),  # the bound is around the old value
        (1.0, 0.0, -1.0, 2.0, False),  # too fast and wrong: 2² / 2
        (2.0, 0.0, 1.0, 0.5, False),  # overshot by 1, the bound only missed by 0.5
        (-2.0, 0.0, 1.0, 4.5, False),
    ],
)
def test_clipped_value_loss_table(value, old, target, loss, clipped):
    value = scalar(value, grad=True)
    found, active = losses.clipped_value_loss(value, scalar(old), scalar(target), clip=0.5)
    found.backward()
    assert found.item() == loss
    assert active.item() is clipped
    assert value.grad.item() == (0 if clipped else value.item() - target)


def test_an_error_as_large_as_the_clipped_one_does_not_count_as_clipped():
    # V = 1.5 misses 1 by as much as V^c = 0.5 does.
    found, active = losses.clipped_value_loss(scalar(1.5), scalar(0.0), scalar(1.0), clip=0.5)
    assert (found.item(), active.item()) == (0.125, False)


def test_a_value_within_the_clip_range_is_never_counted_as_clipped():
    values, returns, step = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(0))
    old = values + 0.19 * step.tanh()
    loss, clipped = losses.clipped_value_loss(values, old, returns, clip=0.2)
    assert not clipped.any()
    assert torch.equal(loss, 0.5 * (values - returns) ** 2)


def test_clipping_never_makes_a_loss_smaller():
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 1000, generator=generator, dtype=torch.float64)
    policy, _ = losses.clipped_policy_loss(a.exp(), b, clip=0.2)
    assert (policy >= -a.exp() * b).all()
    value, _ = losses.clipped_value_loss(a, b, c, clip=0.2)
    assert (value >= 0.5 * (a - c) ** 2).all()


@pytest.mark.parametrize(
    ("value", "target", "loss"), [(3.0, 1.0, 2.0), (-1.0, 2.0, 4.5), (2.0, 2.0, 0.0)]
)
def test_plain_value_loss_table(value, target, loss):
    value = scalar(value, grad=True)
    found = losses.plain_value_loss(value, scalar(target))
    found.backward()
    assert found.item() == loss
    assert value.grad.item() == value.item() - target


def test_a_value_clip_that_never_binds_is_the_plain_loss():
    values, old, returns = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    clipped, active = losses.clipped_value_loss(values, old, returns, clip=1e9)
    assert torch.equal(clipped, losses.plain_value_loss(values, returns))
    assert not active.any()


def test_the_losses_are_not_reduced():
    x = torch.ones(2, 3)
    assert losses.plain_value_loss(x, x).shape == losses.reinforce_loss(x, x).shape == (2, 3)
    for loss, clipped in (
        losses.clipped_policy_loss(x, x, clip=0.2),
        losses.clipped_policy_loss(x, x, clip=0.2, clip_high=0.3, dual_clip=3.0),
        losses.cispo_loss(x, x, x, clip_low=1.0, clip_high=2.0),
        losses.clipped_value_loss(x, x, x, clip=0.2),
    ):
        assert (loss.shape, clipped.shape, clipped.dtype) == ((2, 3), (2, 3), torch.bool)

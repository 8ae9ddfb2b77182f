"""Reward transforms: what becomes of a response's total, wherever its rewards lie."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlframe.batches import ScoreMoments
from rlframe.functional.advantages import group_relative
from rlframe.functional.running import statistics
from rlframe.functional.transforms import clip, group_standardize, scale, standardize

TOTALS = torch.tensor([-7.0, -2.0, 0.0, 1.5, 2.0, 9.0], dtype=torch.float64)
OVER = ScoreMoments(number=4, mean=3.0, squared_deviations=16.0)  # std 2
LENGTHS = torch.tensor([3, 1, 2, 4, 4, 2])


def token_rewards():
    """Rewards [6, 4] that add up to `TOTALS`, 0 in the padding."""
    mask = torch.arange(4) < LENGTHS[:, None]
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(6, 4, generator=generator, dtype=torch.float64).masked_fill(~mask, 0)
    rewards[:, 0] += TOTALS - rewards.sum(-1)
    return rewards


def applied(rewards, factor, shift):
    """Rewards after a transform: the module's definition."""
    after = rewards * factor[:, None]
    after[range(len(after)), LENGTHS - 1] += shift
    return after


@pytest.mark.parametrize(
    ("transform", "factors", "shifts"),
    [
        (lambda x: clip(x, limit=2.0), [1] * 6, [5, 0, 0, 0, 0, -7]),
        (lambda x: standardize(x, OVER), [0.5] * 6, [-1.5] * 6),
        (lambda x: scale(x, OVER), [0.5] * 6, [0] * 6),
        # Groups (-7, -2, 0), of mean -3 and variance (16 + 1 + 9) / 2, and (1.5, 2, 9 invalid)
        (
            lambda x: group_standardize(
                x, torch.tensor([5, 5, 5, 2, 2, 2]), torch.tensor([True] * 5 + [False])
            ),
            [13**-0.5] * 3 + [8**0.5] * 2 + [1],
            [3 * 13**-0.5] * 3 + [-1.75 * 8**0.5] * 2 + [0],
        ),
    ],
    ids=["clip", "standardize", "scale", "group_standardize"],
)
def test_a_table_by_hand(transform, factors, shifts):
    factor, shift = transform(TOTALS)
    assert factor.tolist() == pytest.approx(factors, rel=1e-12)
    assert shift.tolist() == pytest.approx(shifts, rel=1e-12)
    after = applied(token_rewards(), factor, shift).sum(-1)
    expected = [f * x + s for f, x, s in zip(factors, TOTALS.tolist(), shifts, strict=True)]
    assert after.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert factor.dtype == shift.dtype == torch.float64
    assert transform(TOTALS.float())[1].dtype == torch.float64


@pytest.mark.parametrize("limit", [0.5, 2.0, 7.0, 100.0])
def test_clipped_totals_are_within_the_limit_and_the_others_unchanged(limit):
    factor, shift = clip(TOTALS, limit=limit)
    after = applied(token_rewards(), factor, shift)
    expected = [min(max(total, -limit), limit) for total in TOTALS.tolist()]
    torch.testing.assert_close(after.sum(-1), torch.tensor(expected, dtype=torch.float64))
    inside = TOTALS.abs() <= limit
    assert torch.equal(after[inside], token_rewards()[inside])
    last = torch.nn.functional.one_hot(LENGTHS - 1, 4).bool()
    assert torch.equal(after[~last], token_rewards()[~last])


def test_a_clip_without_a_limit_is_none():
    factor, shift = clip(TOTALS, limit=math.inf)
    assert (factor == 1).all()
    assert (shift == 0).all()


def test_the_clip_of_a_large_total_loses_nothing_in_float64():
    factor, shift = clip(torch.tensor([1e9, -3e9]), limit=0.1)  # exact in float32 as well
    totals = torch.tensor([1e9, -3e9], dtype=torch.float64)
    assert (totals * factor + shift).tolist() == pytest.approx([0.1, -0.1], rel=1e-6)


def test_totals_standardized_by_their_own_statistics_have_mean_0_and_variance_1():
    over = statistics(TOTALS, lambda x: x)
    factor, shift = standardize(TOTALS, over)
    after = TOTALS * factor + shift
    assert after.sum().item() == pytest.approx(0, abs=1e-12)
    assert (after**2).sum().item() == pytest.approx(6)
    factor, shift = scale(TOTALS, over)
    assert torch.equal((TOTALS * factor + shift).sign(), TOTALS.sign())


@pytest.mark.parametrize(
    "over", [ScoreMoments(), ScoreMoments(1, 5.0, 0.0), ScoreMoments(3, 5.0, 0.0)]
)
def test_scores_of_no_known_scale_are_not_scaled(over):
    for transform, mean in ((standardize, over.mean), (scale, 0.0)):
        factor, shift = transform(TOTALS, over)
        assert (factor == 1).all()
        assert (shift == -mean).all()


GROUP_IDS = torch.tensor([9, -4, 9, 9, -4, 9, 30])
VALID = torch.tensor([True, True, True, False, True, True, True])
MIXED = torch.tensor([1.0, 4.0, 2.0, 100.0, 8.0, 6.0, 5.0], dtype=torch.float64)


def test_group_standardized_totals_are_group_relative_advantages():
    factor, shift = group_standardize(MIXED, GROUP_IDS, VALID)
    after = MIXED * factor + shift
    expected = group_relative(MIXED, GROUP_IDS, VALID, divide_by_std=True)
    torch.testing.assert_close(after[VALID], expected[VALID])
    assert after[-1] == 0  # alone in its group
    assert (factor[3], shift[3]) == (1, 0)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_group_standardize_reads_neither_other_groups_nor_invalid_responses(garbage):
    clean = group_standardize(MIXED, GROUP_IDS, VALID)
    invalid = group_standardize(MIXED.masked_fill(~VALID, garbage), GROUP_IDS, VALID)
    other = GROUP_IDS == -4
    leaked = group_standardize(MIXED.masked_fill(other, garbage), GROUP_IDS, VALID)
    for expected, found, elsewhere in zip(clean, invalid, leaked, strict=True):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(elsewhere[~other], expected[~other])


def test_group_standardize_does_not_depend_on_the_order_of_the_rows():
    order = torch.tensor([6, 2, 0, 4, 5, 1, 3])
    clean = group_standardize(MIXED, GROUP_IDS, VALID)
    found = group_standardize(MIXED[order], GROUP_IDS[order], VALID[order])
    for expected, permuted in zip(clean, found, strict=True):
        torch.testing.assert_close(permuted, expected[order])


@given(st.floats(-1e9, 1e9), st.integers(1, 9))
def test_equal_totals_of_a_group_become_exactly_0(number, count):
    totals = torch.full((count,), number, dtype=torch.float64)
    factor, shift = group_standardize(
        totals, torch.zeros(count).long(), torch.ones(count, dtype=torch.bool)
    )
    assert (factor == 1).all()
    assert (totals * factor + shift == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_totals_that_differ_by_their_rounding_are_not_blown_up(dtype):
    start = torch.tensor(0.3, dtype=dtype)
    totals = torch.stack([start, torch.nextafter(start, start + 1)])
    factor, _ = group_standardize(totals, torch.zeros(2).long(), torch.ones(2) > 0)
    assert (factor == 1).all()


def test_a_group_without_a_valid_response_is_left_unchanged():
    totals = torch.tensor([torch.nan, 3.0], dtype=torch.float64)
    factor, shift = group_standardize(totals, torch.zeros(2).long(), torch.zeros(2) > 0)
    assert factor.tolist() == [1, 1]
    assert shift.tolist() == [0, 0]


def test_a_rank_without_responses_gets_no_numbers():
    empty = torch.zeros(0, dtype=torch.float64)
    for found in (
        clip(empty, limit=1.0),
        standardize(empty, OVER),
        scale(empty, OVER),
        group_standardize(empty, empty.long(), empty > 0),
    ):
        assert [x.shape for x in found] == [(0,), (0,)]

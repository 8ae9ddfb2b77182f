"""Advantages of responses to the same prompt: tables, a loop over responses, and what must not leak."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlframe.functional.advantages import group_relative, leave_one_out, per_token


def centered(scores, group_ids, valid):
    return group_relative(scores, group_ids, valid, divide_by_std=False)


def standardized(scores, group_ids, valid):
    return group_relative(scores, group_ids, valid, divide_by_std=True)


ESTIMATORS = [leave_one_out, centered, standardized]


def scores_of(*numbers, dtype=torch.float64):
    return torch.tensor(numbers, dtype=dtype)


def one_group(*numbers, dtype=torch.float64):
    """Scores, group ids and validity of a group of valid responses."""
    count = len(numbers)
    return (
        scores_of(*numbers, dtype=dtype),
        torch.full((count,), 7),
        torch.ones(count, dtype=torch.bool),
    )


def batch(seed=0, rows=40):
    """Groups of different sizes, far-apart ids, mixed up, a third of the responses invalid."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, generator=generator, dtype=torch.float64)
    ids = torch.tensor([-5, 3, 4, 10**12, 2**62])
    group_ids = ids[torch.randint(5, (rows,), generator=generator)]
    return scores, group_ids, torch.rand(rows, generator=generator) > 1 / 3


def response_by_response(estimator, scores, group_ids, valid):
    """The definitions, written down for one response at a time in Python's numbers."""
    rows = list(zip(scores.tolist(), group_ids.tolist(), valid.tolist(), strict=True))
    found = []
    for i, (score, group, ok) in enumerate(rows):
        others = [s for j, (s, g, v) in enumerate(rows) if v and g == group and j != i]
        if not ok or not others:
            found.append(0.0)
            continue
        mean = math.fsum([score, *others]) / (len(others) + 1)
        if estimator is leave_one_out:
            found.append(score - math.fsum(others) / len(others))
        elif estimator is centered:
            found.append(score - mean)
        else:
            squares = [(s - mean) ** 2 for s in [score, *others]]
            found.append((score - mean) / math.sqrt(math.fsum(squares) / len(others)))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Group 7 has 1, 2 and 6, group -1 has 4 and 8; the 100 is invalid, and 5 is alone.
        # Others' means: (2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2; 8 and 4
        (leave_one_out, [1 - 4, 4 - 8, 2 - 3.5, 0, 8 - 4, 6 - 1.5, 0]),
        # Means 3 and 6
        (centered, [-2, -2, -1, 0, 2, 3, 0]),
        # Variances (4 + 1 + 9) / 2 = 7 and (4 + 4) / 1 = 8
        (
            standardized,
            [-2 / 7**0.5, -(0.5**0.5), -1 / 7**0.5, 0, 0.5**0.5, 3 / 7**0.5, 0],
        ),
    ],
)
def test_a_table_by_hand(estimator, expected):
    scores = scores_of(1, 4, 2, 100, 8, 6, 5)
    group_ids = torch.tensor([7, -1, 7, 7, -1, 7, 0])
    valid = torch.tensor([True, True, True, False, True, True, True])
    assert estimator(scores, group_ids, valid).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_response_gets_what_a_loop_over_responses_gives_it(estimator, seed):
    found = estimator(*batch(seed))
    expected = response_by_response(estimator, *batch(seed))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert (found[~batch(seed)[2]] == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_order_of_the_rows_does_not_matter(estimator):
    scores, group_ids, valid = batch()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    found = estimator(scores[order], group_ids[order], valid[order])
    expected = estimator(scores, group_ids, valid)[order]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf, 1e300, -1e300])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_leaks_between_groups(estimator, garbage):
    scores, group_ids, valid = batch()
    other = group_ids == 4
    assert 0 < other.sum() < 40
    found = estimator(scores.masked_fill(other, garbage), group_ids, valid)
    torch.testing.assert_close(found[~other], estimator(scores, group_ids, valid)[~other])
    alone = estimator(scores[other], group_ids[other], valid[other])
    torch.testing.assert_close(estimator(scores, group_ids, valid)[other], alone)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf, 1e300, -1e300])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_invalid_response_is_never_read(estimator, garbage):
    scores, group_ids, valid = batch()
    found = estimator(scores.masked_fill(~valid, garbage), group_ids, valid)
    expected = torch.zeros(40, dtype=torch.float64)
    expected[valid] = estimator(scores[valid], group_ids[valid], valid[valid])
    torch.testing.assert_close(found, expected)
    assert (found[~valid] == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_valid_advantages_of_a_group_sum_to_zero(estimator):
    scores, group_ids, valid = batch()
    found = estimator(scores, group_ids, valid)
    for group in group_ids.unique():
        assert found[group_ids == group].sum().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_number_added_to_all_scores_of_a_group_changes_nothing(estimator):
    scores, group_ids, valid = batch()
    shifted = scores + (group_ids % 1000).double()
    assert (shifted != scores).any()
    found = estimator(shifted, group_ids, valid)
    torch.testing.assert_close(found, estimator(scores, group_ids, valid), rtol=1e-9, atol=1e-11)


def test_only_the_standard_deviation_takes_the_unit_away():
    scores, group_ids, valid = batch()
    for estimator, factor in ((leave_one_out, 3), (centered, 3), (standardized, 1)):
        found = estimator(3 * scores, group_ids, valid)
        torch.testing.assert_close(found, factor * estimator(scores, group_ids, valid))


def test_standardized_scores_have_a_sample_variance_of_1():
    scores, group_ids, valid = batch()
    found = standardized(scores, group_ids, valid)
    for group in group_ids.unique():
        members = found[(group_ids == group) & valid]
        assert len(members) > 1
        assert members.var(correction=1).item() == pytest.approx(1, rel=1e-12)


def test_a_group_mean_pulls_every_advantage_towards_0_by_the_share_of_one_response():
    scores, group_ids, valid = one_group(1, 5, 2, 8)
    found = centered(scores, group_ids, valid)
    torch.testing.assert_close(found, 3 / 4 * leave_one_out(scores, group_ids, valid))


@pytest.mark.parametrize("number", [0.1, -0.3, 0.0, 1e9, 1e9 + 1 / 3, -1e-9, 12345.678, 1e-300])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_scores_have_no_advantage_at_all(estimator, number, count, dtype):
    found = estimator(*one_group(*[number] * count, dtype=dtype))
    assert found.tolist() == [0] * count
    scores, group_ids, valid = one_group(torch.nan, *[number] * count, dtype=dtype)
    valid[0] = False
    assert estimator(scores, group_ids, valid).tolist() == [0] * (count + 1)


@pytest.mark.parametrize("magnitude", [1.0, -1.0, 1e9, 1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_that_differ_by_their_rounding_are_equal(magnitude, dtype):
    start = torch.tensor(0.3, dtype=dtype) * magnitude
    after = torch.nextafter(start, torch.tensor(torch.inf, dtype=dtype))
    scores = torch.stack([start, after, after])
    assert scores.unique().numel() == 2
    _, group_ids, valid = one_group(0, 0, 0)
    assert standardized(scores, group_ids, valid).tolist() == [0, 0, 0]


@pytest.mark.parametrize("magnitude", [1.0, 1e9, 1e-9])
def test_scores_that_differ_by_more_than_their_rounding_do_not_count_as_equal(magnitude):
    found = standardized(*one_group(magnitude, magnitude * (1 + 1e-13)))
    assert found.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-2)


def test_rounding_is_a_standard_deviation_of_eight_units_of_it():
    unit = torch.finfo(torch.float64).eps
    within, beyond = one_group(1, 1 + 11 * unit), one_group(1, 1 + 12 * unit)
    assert standardized(*within).tolist() == [0, 0]  # 11 / sqrt(2) < 8
    found = standardized(*beyond)
    torch.testing.assert_close(found, scores_of(-(0.5**0.5), 0.5**0.5))
    edge = one_group(1 - 16 * unit, 1 - 8 * unit, 1)  # of standard deviation 8, to the last bit
    assert standardized(*edge).tolist() == [0, 0, 0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_large_mean_hides_no_deviation(estimator):
    """Σs² - (Σs)²/n of numbers around 1e9 would have lost a variance of 1."""
    small, group_ids, valid = one_group(-1.5, -0.5, 0.5, 1.5)
    found = estimator(small + 1e9, group_ids, valid)
    torch.testing.assert_close(found, estimator(small, group_ids, valid), rtol=1e-12, atol=0)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=8))
def test_standardized_scores_are_bounded_by_the_size_of_the_group(numbers):
    found = standardized(*one_group(*numbers)).abs().max().item()
    assert found <= (len(numbers) - 1) / math.sqrt(len(numbers)) + 1e-9


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_dtype_of_the_scores_is_kept(estimator):
    for dtype in (torch.float32, torch.float64):
        assert estimator(*one_group(1, 2, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_rank_without_responses_has_no_advantages(estimator):
    empty = torch.zeros(0, dtype=torch.float64)
    assert estimator(empty, torch.zeros(0, dtype=torch.int64), empty > 0).shape == (0,)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_group_without_a_valid_response_has_no_advantages(estimator):
    scores, group_ids, _ = one_group(1, torch.nan)
    assert estimator(scores, group_ids, torch.zeros(2, dtype=torch.bool)).tolist() == [0, 0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_inputs_are_left_unchanged(estimator):
    given_, before = batch(), batch()
    estimator(*given_)
    assert all(torch.equal(x, y) for x, y in zip(given_, before, strict=True))


def expected_gradient(estimator, scores, logits):
    """E[Σ_i A_i ∇ log π(a_i)] / 2 of two samples from π = softmax(logits), summed over all pairs."""
    total = torch.zeros_like(logits)
    with torch.no_grad():
        probs = logits.softmax(0)
    for first in range(len(logits)):
        for second in range(len(logits)):
            drawn = torch.tensor([first, second])
            advantages = estimator(scores[drawn], torch.zeros(2).long(), drawn >= 0)
            tokens = per_token(advantages, torch.ones(2, 1, dtype=torch.bool))[:, 0]
            copy = logits.detach().clone().requires_grad_()
            (tokens * copy.log_softmax(0)[drawn]).sum().backward()
            total += probs[first] * probs[second] * copy.grad
    return total / 2


def test_leave_one_out_is_unbiased_and_the_others_are_shorter_or_bent():
    """Against ∇ E[score], summed exactly over all pairs of three actions."""
    scores = scores_of(0.0, 1.0, 3.0)
    logits = torch.tensor([0.3, 0.1, -0.5], dtype=torch.float64, requires_grad=True)
    (logits.softmax(0) * scores).sum().backward()
    wanted = logits.grad
    torch.testing.assert_close(expected_gradient(leave_one_out, scores, logits), wanted)
    torch.testing.assert_close(expected_gradient(centered, scores, logits), wanted / 2)
    bent = expected_gradient(standardized, scores, logits)
    cosine = torch.nn.functional.cosine_similarity(bent, wanted, dim=0)
    assert cosine < 0.99

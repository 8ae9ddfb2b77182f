"""What a token weighs in a loss: the three reductions, and the correction for another sampler."""

import math

import pytest
import torch

from rlframe.functional import losses
from rlframe.functional.masked import masked_sum

LENGTHS = torch.tensor([4, 1, 0, 3])
MASK = torch.arange(5) < LENGTHS[:, None]
REDUCTIONS = ["token", "sequence", "constant"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights_of(mask, reduction, max_new_tokens=5):
    return losses.token_weights(mask, reduction=reduction, max_new_tokens=max_new_tokens)


# --- token_weights


@pytest.mark.parametrize(
    ("reduction", "rows", "count"),
    [
        ("token", [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], 5),
        ("sequence", [[1 / 4, 1 / 4, 1 / 4, 1 / 4], [1, 0, 0, 0], [0, 0, 0, 0]], 2),
        ("constant", [[1 / 8, 1 / 8, 1 / 8, 1 / 8], [1 / 8, 0, 0, 0], [0, 0, 0, 0]], 2),
    ],
)
def test_token_weights_by_hand(reduction, rows, count):
    mask = torch.arange(4) < torch.tensor([4, 1, 0])[:, None]
    weights, found = weights_of(mask, reduction, max_new_tokens=8)
    assert weights.tolist() == rows
    assert (found.shape, found.item()) == ((), count)


def response_by_response(loss, reduction, max_new_tokens):
    """The mean loss of a step, from the losses of each response's tokens."""
    rows = [loss[b, :length].tolist() for b, length in enumerate(LENGTHS.tolist()) if length]
    if reduction == "token":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if reduction == "sequence":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    return sum(sum(row) / max_new_tokens for row in rows) / len(rows)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_mean_of_a_step_is_that_of_a_loop_over_responses(reduction):
    loss = draw(4, 5)
    weights, count = weights_of(MASK, reduction, max_new_tokens=9)
    found = masked_sum(weights * loss, MASK) / count
    assert found.item() == pytest.approx(response_by_response(loss, reduction, 9), rel=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_micro_batches_of_a_step_add_up_however_they_are_split(reduction):
    loss = draw(4, 5)
    weights, count = weights_of(MASK, reduction)
    parts = [(slice(0, 1), 4), (slice(1, 3), 2), (slice(3, 4), 5)]  # some with less padding
    found = [weights_of(MASK[rows, :width], reduction) for rows, width in parts]
    sums = [
        (w * loss[rows, :width]).sum() for (w, _), (rows, width) in zip(found, parts, strict=True)
    ]
    assert sum(number for _, number in found) == count
    torch.testing.assert_close(sum(sums), (weights * loss).sum())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_without_a_token_weigh_and_count_nothing(reduction):
    padded = torch.cat([MASK, torch.zeros(3, 5, dtype=torch.bool)])
    weights, count = weights_of(padded, reduction)
    assert count == weights_of(MASK, reduction)[1]
    assert weights.isfinite().all()
    assert (weights[~padded] == 0).all()
    assert (weights[padded] > 0).all()
    empty, none = weights_of(torch.zeros(2, 3, dtype=torch.bool), reduction)
    assert (empty == 0).all()
    assert none == 0


@pytest.mark.parametrize("reduction", ["sequence", "constant"])
def test_weights_sum_to_what_a_response_counts(reduction):
    weights, count = weights_of(MASK, reduction, max_new_tokens=4)
    expected = (LENGTHS > 0).double() if reduction == "sequence" else LENGTHS / 4
    torch.testing.assert_close(weights.sum(-1), expected.double())
    assert count == 3


def test_weights_are_exact_for_any_dtype_of_the_loss():
    assert weights_of(MASK, "sequence")[0].dtype == torch.float64
    third = weights_of(MASK, "sequence")[0][3, 0]
    assert third.item() == 1 / 3


def test_another_reduction_is_refused():
    with pytest.raises(
        ValueError, match="reduction is 'mean', and not token, sequence or constant"
    ):
        weights_of(MASK, "mean")


# --- importance_weights


@pytest.mark.parametrize(
    ("weight", "truncated", "masked"),
    [
        (1.0, 1.0, 1.0),
        (2.0, 2.0, 2.0),
        (4.0, 4.0, 4.0),  # the edges belong to the inside
        (0.25, 0.25, 0.25),
        (4.5, 4.0, 0.0),
        (1e6, 4.0, 0.0),
        (0.2, 0.2, 0.0),
        (1e-6, 1e-6, 0.0),
    ],
)
def test_importance_weights_by_hand(weight, truncated, masked):
    sampler = torch.zeros(1, 1, dtype=torch.float64)
    old, real = torch.full_like(sampler, math.log(weight)), torch.tensor([[True]])
    for kind, expected in (("truncate", truncated), ("mask", masked)):
        found = losses.importance_weights(sampler, old, real, kind=kind, limit=4.0)
        assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_the_weight_is_the_trainers_probability_over_the_samplers(kind):
    sampler, old = draw(2, 4, 5)
    found = losses.importance_weights(sampler, old, MASK, kind=kind, limit=2.0)
    for b, t in MASK.nonzero().tolist():
        weight = math.exp(old[b, t].item()) / math.exp(sampler[b, t].item())
        inside = 0.5 <= weight <= 2 or (kind == "truncate" and weight < 2)
        expected = weight if inside else (2 if kind == "truncate" else 0)
        assert found[b, t].item() == pytest.approx(expected, rel=1e-12)
    assert (found[~MASK] == 0).all()
    assert (found[MASK] == (2 if kind == "truncate" else 0)).any()


@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_a_sampler_with_the_trainers_probabilities_needs_no_correction(kind):
    logprobs = -draw(4, 5).exp()
    found = losses.importance_weights(logprobs, logprobs.clone(), MASK, kind=kind, limit=1.0)
    assert torch.equal(found, MASK.double())


@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_without_a_limit_the_weight_turns_one_expectation_into_another(kind):
    """Σ_a π_sampler(a) w(a) f(a) = Σ_a π_old(a) f(a); truncation lowers Σ_a π_sampler(a) w(a)."""
    sampler, old, f = draw(3, 1, 6).unbind()
    sampler, old, real = sampler.log_softmax(-1), old.log_softmax(-1), torch.ones(1, 6) > 0
    free = losses.importance_weights(sampler, old, real, kind=kind, limit=1e6)
    torch.testing.assert_close((sampler.exp() * free * f).sum(), (old.exp() * f).sum())
    bounded = losses.importance_weights(sampler, old, real, kind=kind, limit=1.2)
    assert (sampler.exp() * bounded).sum() < 0.99


@pytest.mark.parametrize("kind", ["truncate", "mask"])
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf])
def test_importance_weights_read_no_padding_and_have_no_gradient(kind, garbage):
    clean = draw(2, 4, 5)
    sampler, old = (x.masked_fill(~MASK, garbage).requires_grad_() for x in clean)
    found = losses.importance_weights(sampler, old, MASK, kind=kind, limit=2.0)
    assert torch.equal(found, losses.importance_weights(*clean, MASK, kind=kind, limit=2.0))
    assert not found.requires_grad


@pytest.mark.parametrize(("kind", "expected"), [("truncate", [3, 0]), ("mask", [0, 0])])
def test_a_token_that_one_side_deems_impossible_has_a_finite_weight(kind, expected):
    sampler, old = torch.tensor([[-2000.0, -1.0]]), torch.tensor([[-1.0, -2000.0]])
    real = torch.ones(1, 2, dtype=torch.bool)
    found = losses.importance_weights(sampler, old, real, kind=kind, limit=3.0)
    assert found.tolist() == [expected]


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'clip', and not truncate or mask"):
        losses.importance_weights(draw(4, 5), draw(4, 5), MASK, kind="clip", limit=2.0)

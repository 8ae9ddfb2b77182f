"""Filters and inverse-CDF sampling: hand tables, and the definition of a quantile."""

import math

import pytest
import torch

from rlframe.functional import sampling

ALMOST_1 = 1 - 2**-53  # the largest float64 below 1
SIZES = [1, 255, 256, 257, 50257]  # around the block of 256, and GPT-2's


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def tokens(row, uniforms):
    """What one row of logits gives for each uniform."""
    return sampling.inverse_cdf(row.expand(len(uniforms), -1), uniforms)


def keep(logits, top_k=None, top_p=None, min_p=None):
    return sampling.keep(logits, top_k=top_k, top_p=top_p, min_p=min_p)


def random_logits(*shape):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# --- inverse_cdf


def test_inverse_cdf_by_hand():
    # The steps are at 0.2 and 0.5; a token owns its lower end.
    uniforms = numbers(0, 0.1999, 0.2 + 1e-9, 0.4999, 0.5 + 1e-9, 0.9999, ALMOST_1)
    assert tokens(numbers(0.2, 0.3, 0.5).log(), uniforms).tolist() == [0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_token_owns_its_lower_end(dtype):
    # Equal logits make exact steps, on both sides of a block's border.
    starts = torch.arange(512, dtype=torch.float64) / 512
    row = torch.full((512,), 1.5, dtype=dtype)
    found = tokens(row, starts)
    assert found.dtype == torch.int64
    assert torch.equal(found, torch.arange(512))
    just_before = tokens(row, starts[1:] * ALMOST_1)
    assert torch.equal(just_before, torch.arange(511))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 1e-7), (torch.float32, 1e-7), (torch.float64, 1e-12)]
)
def test_rounding_moves_no_step_by_more_than_the_tolerance(size, dtype, tolerance):
    row = random_logits(size).to(dtype)
    upper = row.double().softmax(0).cumsum(0)
    lower = torch.cat([numbers(0), upper[:-1]])
    wide = (upper - lower > 2 * tolerance).nonzero().squeeze(1)
    some = wide[torch.linspace(0, len(wide) - 1, 40).long()]
    assert torch.equal(tokens(row, lower[some] + tolerance), some)
    assert torch.equal(tokens(row, upper[some] - tolerance), some)


@pytest.mark.parametrize("size", SIZES)
def test_the_first_and_the_last_token_can_be_drawn(size):
    found = tokens(torch.zeros(size), numbers(0, ALMOST_1))
    assert found.tolist() == [0, size - 1]


@pytest.mark.parametrize("possible", [[0], [255], [256], [599], [3, 7], [0, 599], [255, 256]])
def test_an_impossible_token_is_never_drawn(possible):
    # Leading, trailing and interior runs of -inf, whole blocks of them included.
    row = torch.full((600,), -torch.inf)
    row[possible] = random_logits(len(possible))
    uniforms = torch.cat([torch.linspace(0, 0.999, 50, dtype=torch.float64), numbers(ALMOST_1)])
    found = tokens(row, uniforms)
    assert (found[0], found[-1]) == (possible[0], possible[-1])
    assert set(found.tolist()) == set(possible)


@pytest.mark.parametrize("seed", range(5))
def test_a_uniform_just_below_1_never_points_past_the_last_possible_token(seed):
    # Weights of very different sizes, whose two sums round differently.
    generator = torch.Generator().manual_seed(seed)
    logits = 20 * torch.randn(64, 700, generator=generator)
    logits[:, 650:] = -torch.inf
    found = sampling.inverse_cdf(logits, torch.full((64,), ALMOST_1, dtype=torch.float64))
    assert logits.gather(-1, found[:, None]).isfinite().all()


def test_a_grid_of_uniforms_reproduces_the_distribution():
    # An interval of length p holds p·n grid points, give or take one.
    n, row = 20_000, random_logits(300)
    found = tokens(row, torch.arange(n, dtype=torch.float64) / n)
    frequency = found.bincount(minlength=300) / n
    assert (frequency - row.double().softmax(0)).abs().max() < 1 / n + 1e-6


def test_every_token_of_an_unlikely_tail_keeps_its_place():
    # One token of weight 1 and 599 of weight w = e^-17 = 4e-8, less than float32 can add to 1.
    row = torch.full((600,), -17.0)
    row[0] = 0
    w, rank = math.exp(-17), torch.arange(1, 600)
    middles = (1 + (rank.double() - 0.5) * w) / (1 + 599 * w)
    assert torch.equal(tokens(row, middles), rank)


def test_a_constant_added_to_the_logits_changes_nothing():
    uniforms = torch.arange(100, dtype=torch.float64) / 100
    row = random_logits(300).round()  # sums with 1000 are exact
    for shift in (1000, -1000):
        assert torch.equal(tokens(row + shift, uniforms), tokens(row, uniforms))


def test_a_row_does_not_depend_on_the_others():
    logits = random_logits(6, 700)
    logits[1] += 1e4
    logits[2, :600] = -torch.inf
    uniforms = torch.arange(6, dtype=torch.float64) / 6
    kept = keep(logits, 50, 0.9, 0.01)
    together = sampling.inverse_cdf(kept, uniforms)
    for b in range(6):
        row = slice(b, b + 1)
        alone = keep(logits[row], 50, 0.9, 0.01)
        assert torch.equal(kept[row], alone)
        assert torch.equal(together[row], sampling.inverse_cdf(alone, uniforms[row]))


def test_no_rows_give_no_tokens():
    assert sampling.inverse_cdf(torch.zeros(0, 5), numbers()).shape == (0,)


# --- keep

# A is the likeliest. Sorting them is not its own inverse, so undoing it wrongly is seen.
C, A, D, B = 0.15, 0.5, 0.09, 0.26
PROBS = numbers(C, A, D, B)


def left(**filters):
    """The probabilities of the tokens that are left, whose logits must be the old ones."""
    found = keep(PROBS.log()[None], **filters)[0]
    assert torch.equal(found[found.isfinite()], PROBS.log()[found.isfinite()])
    return set(PROBS[found.isfinite()].tolist())


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(None, {A, B, C, D}), (1, {A}), (2, {A, B}), (3, {A, B, C}), (4, {A, B, C, D})],
)
def test_top_k_keeps_the_k_likeliest(top_k, expected):
    assert left(top_k=top_k) == expected


def test_a_top_k_beyond_the_vocabulary_keeps_everything():
    assert left(top_k=100) == {A, B, C, D}


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (None, {A, B, C, D}),
        (1e-9, {A}),
        (0.49, {A}),
        (0.51, {A, B}),  # A alone falls short
        (0.75, {A, B}),
        (0.77, {A, B, C}),
        (0.92, {A, B, C, D}),
        (1.0, {A, B, C, D}),
    ],
)
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p, expected):
    assert left(top_p=top_p) == expected


@pytest.mark.parametrize(("top_p", "count"), [(0.25, 1), (0.5, 2), (0.75, 3)])
def test_a_mass_of_exactly_p_suffices(top_p, count):
    # Four equal tokens have exactly 1/4 each.
    found = keep(torch.zeros(1, 4), top_p=top_p)
    assert found.isfinite().sum() == count


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [
        (None, {A, B, C, D}),
        (0.0, {A, B, C, D}),
        (0.17, {A, B, C, D}),  # 0.17 · A = 0.085
        (0.19, {A, B, C}),  # 0.095
        (0.5, {A, B}),  # 0.25
        (0.53, {A}),  # 0.265
        (1.0, {A}),
    ],
)
def test_min_p_keeps_those_at_least_so_likely_as_the_likeliest(min_p, expected):
    assert left(min_p=min_p) == expected


def test_min_p_of_1_keeps_all_of_the_likeliest():
    found = keep(torch.tensor([[2.0, 1.0, 2.0]]), min_p=1.0)
    assert found.tolist() == [[2, -torch.inf, 2]]


def test_top_p_measures_what_top_k_left():
    # Of A and B, A has 0.5 / 0.76 = 0.66 >= 0.6. Top-p first would have kept both.
    assert left(top_k=2, top_p=0.6) == {A}


def test_min_p_comes_after_top_p():
    # Top-p keeps A and B, min-p as well (0.2). Min-p first would leave A with 0.66 >= 0.6, alone.
    assert left(top_p=0.6, min_p=0.4) == {A, B}


def test_the_filters_intersect():
    assert left(top_k=3, top_p=0.99, min_p=0.5) == {A, B}


@pytest.mark.parametrize(
    "row",
    [[0.0], [0.0, 0.0, 0.0], [-torch.inf, 3.0, -torch.inf], [5e3, -5e3, 0.0], [-9e3, -8e3, -8e3]],
)
def test_at_least_one_token_is_left(row):
    logits = torch.tensor([row])
    for filters in ((1, 1e-9, 1.0), (1, None, None), (None, 1e-9, None), (None, None, 1.0)):
        found = keep(logits, *filters)
        assert found.isfinite().any()
        assert found.max() == logits.max()


def test_a_token_that_was_impossible_stays_impossible():
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]])
    for filters in ((3, None, None), (None, 0.999, None), (None, None, 1e-9)):
        found = keep(logits, *filters)
        assert torch.equal(found, logits)


@pytest.mark.parametrize("filters", [(2, None, None), (None, 0.5, None), (None, None, 0.5)])
def test_keep_leaves_its_input_as_it_was(filters):
    logits = PROBS.log()[None]
    assert not torch.equal(keep(logits, *filters), logits)
    assert torch.equal(logits, PROBS.log()[None])


def test_top_p_keeps_the_same_tokens_for_bfloat16_logits_as_for_the_same_numbers_in_float32():
    logits = random_logits(1, 5000).bfloat16()
    found, expected = keep(logits, top_p=0.99), keep(logits.float(), top_p=0.99)
    assert torch.equal(found.isfinite(), expected.isfinite())


def test_what_was_drawn_has_the_probability_of_its_frequency():
    """With tokens taken away, what is left is renormalised: q = π / Z."""
    row = numbers(2.0, 1.0, 0.0, -1.0)
    probs = row.softmax(-1)
    kept = keep(row[None], top_k=2)
    found = sampling.log_probability(kept.expand(2, -1), torch.tensor([0, 1]))
    mass = probs[:2].sum()
    torch.testing.assert_close(found, (probs[:2] / mass).log())
    # KL(q || π) is -log Z, whatever is drawn.
    torch.testing.assert_close(found - probs[:2].log(), -mass.log().expand(2))
    draws = tokens(kept[0], torch.arange(1000, dtype=torch.float64) / 1000)
    assert (draws == 0).double().mean().item() == pytest.approx(found[0].exp().item(), abs=2e-3)


def test_without_filters_it_is_the_policys_own():
    logits = random_logits(3, 300)
    chosen = torch.tensor([0, 100, 299])
    expected = logits.log_softmax(-1)[torch.arange(3), chosen]
    torch.testing.assert_close(sampling.log_probability(keep(logits), chosen), expected)
    half = sampling.log_probability(logits.bfloat16(), chosen)
    assert half.dtype == torch.float32

"""Masked reducers: the padding is never read, and statistics add up over ranks."""

import pytest
import torch

from rlframe.functional import masked

# The real tokens are 1, 2, 3, 4; the last row is empty.
X = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]]).bool()

REDUCERS = {
    "masked_sum": masked.masked_sum,
    "row_sums": masked.row_sums,
    "masked_mean": masked.masked_mean,
    "masked_var": masked.masked_var,
    "moments": masked.moments,
    "whiten, centred": lambda x, mask: masked.whiten(x, mask, center=True),
    "whiten, mean kept": lambda x, mask: masked.whiten(x, mask, center=False),
}


def all_real(x):
    return torch.ones_like(x, dtype=torch.bool)


def added(*parts):
    """What an all-reduce makes of the ranks' moments."""
    return masked.Moments(*(sum(numbers) for numbers in zip(*parts, strict=True)))


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf, 7.0])
@pytest.mark.parametrize("name", REDUCERS)
def test_garbage_in_the_padding_changes_nothing(name, garbage):
    dirty = X.masked_fill(~MASK, garbage)
    torch.testing.assert_close(REDUCERS[name](dirty, MASK), REDUCERS[name](X, MASK), rtol=0, atol=0)


@pytest.mark.parametrize("name", REDUCERS)
def test_a_nan_on_a_real_token_is_not_hidden(name):
    broken = X.clone()
    broken[0, 0] = torch.nan
    result = REDUCERS[name](broken, MASK)
    assert any(n.isnan().any() for n in (result if isinstance(result, tuple) else [result]))


@pytest.mark.parametrize(
    ("reduce", "slope"),
    [(masked.masked_sum, 1), (masked.row_sums, 1), (masked.masked_mean, 1 / 4)],
)
def test_garbage_in_the_padding_receives_a_gradient_of_zero(reduce, slope):
    dirty = X.masked_fill(~MASK, torch.nan).requires_grad_()
    reduce(dirty, MASK).sum().backward()
    assert torch.equal(dirty.grad, slope * MASK.double())


@pytest.mark.parametrize("name", REDUCERS)
def test_an_empty_mask_gives_zeros(name):
    nothing = torch.zeros_like(MASK)
    result = REDUCERS[name](torch.full_like(X, torch.nan), nothing)
    for number in result if isinstance(result, tuple) else [result]:
        assert torch.equal(number, torch.zeros_like(number))


def test_an_empty_set_has_mean_and_variance_zero():
    empty = masked.moments(X, torch.zeros_like(MASK))
    assert (empty.mean.item(), empty.var.item()) == (0, 0)


def test_sums_and_mean_by_hand():
    assert masked.masked_sum(X, MASK) == 10
    assert masked.row_sums(X, MASK).tolist() == [7, 3, 0]
    assert masked.masked_mean(X, MASK) == 2.5


def test_the_variance_is_that_of_the_population():
    # (1.5² + 0.5² + 0.5² + 1.5²) / 4 = 1.25, and not / 3 = 1.67
    assert masked.masked_var(X, MASK) == 1.25
    assert masked.moments(X, MASK).var == 1.25


def test_moments_by_hand():
    found = masked.moments(X.float(), MASK)
    assert [n.item() for n in found] == [4, 10, 1 + 4 + 9 + 16]
    assert found.mean == 2.5
    assert {n.dtype for n in found} == {torch.float64}


def test_moments_are_accurate_when_the_mean_is_large():
    # In float32 the squares near 1e12 lose everything below 65 536.
    x = 1e6 + torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert masked.moments(x, all_real(x)).var.item() == pytest.approx(1.25, rel=1e-3)
    assert masked.masked_var(x, all_real(x)).item() == pytest.approx(1.25, rel=1e-3)


def test_the_variance_of_a_constant_is_never_negative():
    # Rounding alone would leave about -1e-18 for some of these.
    for n in range(1, 50):
        x = torch.full((n,), 0.1, dtype=torch.float64)
        assert masked.moments(x, all_real(x)).var >= 0


# (x - 2.5) / sqrt(1.25), and the same plus 2.5.
ONE_AND_A_HALF, HALF = 1.5 / 1.25**0.5, 0.5 / 1.25**0.5  # 1.3416, 0.4472


@pytest.mark.parametrize(("center", "mean"), [(True, 0.0), (False, 2.5)])
def test_whiten_by_hand(center, mean):
    expected = torch.tensor(
        [
            [mean - ONE_AND_A_HALF, mean - HALF, mean + ONE_AND_A_HALF],
            [mean + HALF, 0, 0],
            [0, 0, 0],
        ],
        dtype=torch.float64,
    )
    found = masked.whiten(X, MASK, center=center, eps=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("center", [True, False])
def test_whiten_removes_or_keeps_the_mean_and_leaves_unit_variance(center):
    x = 3 + 5 * torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7], [1], [4], [0], [2], [6]])
    found = masked.whiten(x, mask, center=center)
    mean = 0 if center else masked.masked_mean(x, mask).item()
    assert found.dtype == x.dtype
    assert masked.masked_mean(found, mask).item() == pytest.approx(mean, abs=1e-5)
    assert masked.masked_var(found, mask).item() == pytest.approx(1, abs=1e-5)
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize(("center", "value"), [(True, 0.0), (False, 0.1)])
def test_a_constant_whitens_to_zero_or_to_itself(center, value):
    x = torch.full((1, 7), 0.1)
    found = masked.whiten(x, all_real(x), center=center)
    torch.testing.assert_close(found, torch.full((1, 7), value), rtol=0, atol=1e-7)


def test_epsilon_is_added_to_the_variance():
    # ±1 has variance 1: ±1 / sqrt(1 + 3) = ±1/2
    x = torch.tensor([[-1.0, 1.0]])
    assert masked.whiten(x, all_real(x), center=True, eps=3).tolist() == [[-0.5, 0.5]]


@pytest.mark.parametrize("center", [True, False])
def test_two_ranks_whiten_as_one_would(center):
    one, other = slice(0, 1), slice(1, 3)  # three real tokens here, one there
    whole = masked.whiten(X, MASK, center=center)
    over = added(*(masked.moments(X[part], MASK[part]) for part in (one, other)))
    for part in (one, other):
        found = masked.whiten(X[part], MASK[part], center=center, over=over)
        torch.testing.assert_close(found, whole[part], rtol=1e-12, atol=1e-12)


RETURNS = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("values", "explained"),
    [
        (RETURNS, 1),  # nothing is left to explain
        (RETURNS + 5, 1),  # a constant error has no variance
        (torch.full_like(RETURNS, 2.5), 0),  # the critic knows the mean alone
        (0.5 * RETURNS, 0.75),  # residual G/2 has a quarter of the variance
        (-RETURNS, -3),  # residual 2G has four times the variance
    ],
)
def test_explained_variance_table(values, explained):
    real = all_real(RETURNS)
    target, residual = masked.moments(RETURNS, real), masked.moments(RETURNS - values, real)
    assert masked.explained_variance(target, residual).item() == pytest.approx(explained)


def test_explained_variance_is_additive_over_ranks():
    # Ranks with returns 1, 2 and 3, 4: averaging two local numbers would give something else.
    values = torch.tensor([1.0, 1.0, 4.0, 4.0], dtype=torch.float64)
    parts = [slice(0, 2), slice(2, 4)]

    def over(x):
        return added(*(masked.moments(x[p], all_real(x[p])) for p in parts))

    # residual 0, 1, -1, 0: variance 1/2; 1 - 0.5 / 1.25 = 0.6
    assert masked.explained_variance(over(RETURNS), over(RETURNS - values)).item() == 0.6


@pytest.mark.parametrize(
    "constant",
    [
        2.0,
        pytest.param(
            0.7,
        ),
    ],
)
def test_explained_variance_of_constant_returns_is_nan(constant):
    target = torch.full((3,), constant, dtype=torch.float64)
    residual = target - RETURNS[:3]
    real = all_real(target)
    found = masked.explained_variance(masked.moments(target, real), masked.moments(residual, real))
    assert found.isnan()


def test_explained_variance_of_no_returns_is_nan():
    empty = masked.moments(X, torch.zeros_like(MASK))
    assert masked.explained_variance(empty, empty).isnan()

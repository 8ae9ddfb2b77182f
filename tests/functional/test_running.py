from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlframe.batches import ScoreMoments
from rlframe.functional.running import statistics

SCORES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8)


def of(*numbers: float) -> ScoreMoments:
    return statistics(torch.tensor(numbers, dtype=torch.float64), lambda x: x)


def test_a_hand_worked_table() -> None:
    first, second = of(2.0, 4.0), of(9.0)
    assert first == (2, 3.0, 2.0)
    assert first.std == 1.0
    assert second == (1, 9.0, 0.0)
    assert first.joined(second) == (3, 5.0, 26.0)  # 9 + 1 + 16
    assert first.joined(second).std == pytest.approx(math.sqrt(26 / 3))


@given(st.lists(SCORES, min_size=1, max_size=6))
def test_batches_come_to_what_all_numbers_come_to(batches: list[list[float]]) -> None:
    found = ScoreMoments()
    for batch in batches:
        found = found.joined(of(*batch))
    every = torch.tensor([x for batch in batches for x in batch], dtype=torch.float64)
    assert found.number == len(every)
    assert found.mean == pytest.approx(float(every.mean()), abs=1e-9)
    deviations = float(((every - every.mean()) ** 2).sum())
    assert found.squared_deviations == pytest.approx(deviations, rel=1e-9, abs=1e-9)


@given(SCORES, SCORES)
def test_ranks_come_to_what_one_process_comes_to(mine: list[float], theirs: list[float]) -> None:
    whole = of(*mine, *theirs)
    shares = [torch.tensor(share, dtype=torch.float64) for share in (mine, theirs)]
    mean = sum(float(share.sum()) for share in shares) / (len(mine) + len(theirs))
    other = [torch.stack([torch.tensor(float(len(theirs))).double(), shares[1].sum()])]
    other.append(((shares[1] - mean) ** 2).sum())
    found = statistics(shares[0], lambda x: x + other.pop(0))
    assert found.number == whole.number
    assert found.mean == pytest.approx(whole.mean, abs=1e-9)
    assert found.squared_deviations == pytest.approx(whole.squared_deviations, rel=1e-9, abs=1e-9)


def test_nothing_joined_to_something_is_that() -> None:
    assert (
        ScoreMoments().joined(of(1.0, 2.0)) == of(1.0, 2.0).joined(ScoreMoments()) == of(1.0, 2.0)
    )
    assert ScoreMoments().joined(ScoreMoments()) == (0, 0.0, 0.0)


def test_a_large_mean_hides_no_deviation() -> None:
    """Σx² - (Σx)²/n would say 0, or worse, of numbers around 1e9 that differ by 1."""
    found = ScoreMoments()
    for _ in range(50):
        found = found.joined(of(1e9, 1e9 + 1))
    assert found.std == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("numbers", [(), (5.0,), (0.0, 0.0), (0.1, 0.1, 0.1), (-1e6, -1e6)])
def test_numbers_of_no_known_scale_are_divided_by_one(numbers: tuple[float, ...]) -> None:
    found = ScoreMoments()
    for number in numbers:
        found = found.joined(of(number))
    assert found.std == 1.0
    together = of(*numbers * 3) if numbers else ScoreMoments()
    assert together.std == 1.0

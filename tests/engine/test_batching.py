from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlframe.engine.batching import Schedule, microbatches, spread


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_every_row_is_in_one_pass_and_no_pass_is_over_budget(
    lengths: list[int], budget: int
) -> None:
    passes = microbatches(lengths, list(range(len(lengths))), budget=budget)
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    for rows in passes:
        padded = len(rows) * max(lengths[row] for row in rows)
        assert padded <= budget or len(rows) == 1


def test_similar_lengths_share_a_pass() -> None:
    assert microbatches([9, 2, 8, 1], [0, 1, 2, 3], budget=18) == [[0, 2], [1, 3]]


def test_a_pass_ends_early_where_that_saves_more_padding_than_a_pass_costs() -> None:
    # Up to 160 tokens fit, and a pass costs 10. Together: 6 x 20 + 10. Apart: 2 x 20 + 4 x 10 + 20.
    assert microbatches([20, 20, 10, 10, 10, 10], list(range(6)), budget=160) == [
        [0, 1],
        [2, 3, 4, 5],
    ]
    # 2 x 20 + 1 x 15 + 20 is more than 3 x 20 + 10.
    assert microbatches([20, 20, 15], [0, 1, 2], budget=160) == [[0, 1, 2]]


def test_passes_pad_half_as_much_as_passes_that_are_filled_up() -> None:
    """What the docstring says, of 64 responses that end with probability 0.05 a token, up to 64."""
    rng, budget = random.Random(0), 1024

    def filled(lengths: list[int]) -> list[list[int]]:
        passes: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
            if passes and (len(passes[-1]) + 1) * lengths[passes[-1][0]] <= budget:
                passes[-1].append(row)
            else:
                passes.append([row])
        return passes

    real = full = cut = 0
    for _ in range(100):
        drawn = [32 + min(64, math.ceil(math.log(rng.random(), 0.95))) for _ in range(64)]
        real += sum(drawn)
        full += sum(len(rows) * drawn[rows[0]] for rows in filled(drawn))
        found = microbatches(drawn, list(range(64)), budget=budget)
        cut += sum(len(rows) * drawn[rows[0]] for rows in found)
    assert full / real - 1 == pytest.approx(0.14, abs=0.01)
    assert cut / real - 1 == pytest.approx(0.07, abs=0.01)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 120))
def test_no_division_of_the_sorted_rows_costs_less(lengths: list[int], budget: int) -> None:
    def cost(passes: list[list[int]]) -> float:
        return sum(len(rows) * max(lengths[r] for r in rows) + budget / 16 for rows in passes)

    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    divisions = (
        [rows[a:b] for a, b in pairwise([0, *cuts, len(rows)])]
        for count in range(len(rows))
        for cuts in combinations(range(1, len(rows)), count)
    )
    allowed = [
        passes
        for passes in divisions
        if all(len(p) == 1 or len(p) * lengths[p[0]] <= budget for p in passes)
    ]
    found = microbatches(lengths, list(range(len(lengths))), budget=budget)
    assert cost(found) == pytest.approx(min(map(cost, allowed)))


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 12))
def test_spreading_keeps_every_row_and_gives_as_many_passes_as_asked(
    sizes: list[int], more: int
) -> None:
    rows = iter(range(100))
    passes = [[next(rows) for _ in range(size)] for size in sizes]
    spread_out = spread(passes, len(passes) + more)
    assert len(spread_out) == len(passes) + more
    assert sorted(r for p in spread_out for r in p) == sorted(r for p in passes for r in p)
    assert all(spread_out) or max(map(len, spread_out), default=0) <= 1 or not all(passes)


def test_the_pass_with_most_rows_is_halved_until_there_are_enough() -> None:
    assert spread([[0, 1, 2, 3, 4], [5, 6]], 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert spread([[0, 1, 2, 3, 4], [5, 6]], 5) == [[0], [1], [2], [3, 4], [5, 6]]
    assert spread([[7]], 3) == [[7], [], []]


def schedule(
    samples: Sequence[int], *, total: int, minibatches: int, seed: int, **kw: Any
) -> Schedule:
    settings: dict[str, Any] = {"budget": 1, "most": lambda counts: counts, **kw}
    lengths = [1] * len(samples)
    return Schedule(
        samples, lengths, total=total, minibatches=minibatches, key=(1, seed), **settings
    )


def test_each_epoch_is_a_new_partition_of_all_responses() -> None:
    made = schedule(range(10), total=10, minibatches=3, seed=0)
    epochs = [made.steps(epoch) for epoch in range(3)]
    for steps in epochs:
        assert [len(passes) for passes in steps] == [4, 3, 3]
        assert sorted(row for step in steps for rows in step for row in rows) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]
    again = schedule(range(10), total=10, minibatches=3, seed=0)
    assert epochs == [again.steps(e) for e in range(3)]


def test_two_ranks_together_make_the_steps_of_one() -> None:
    whole = schedule(range(8), total=8, minibatches=2, seed=5).steps(0)
    shares = [list(range(rank, 8, 2)) for rank in (0, 1)]
    halves = [schedule(share, total=8, minibatches=2, seed=5).steps(0) for share in shares]
    for step in range(2):
        joined = [
            shares[rank][row] for rank in (0, 1) for rows in halves[rank][step] for row in rows
        ]
        assert sorted(joined) == sorted(row for rows in whole[step] for row in rows)


def test_ranks_make_as_many_passes_as_the_one_that_needs_most() -> None:
    made = schedule(range(4), total=4, minibatches=2, seed=0, budget=9, most=lambda counts: [3, 1])
    steps = made.steps(0)
    assert [len(passes) for passes in steps] == [3, 1]
    assert sorted(map(len, steps[0])) == [0, 1, 1]  # two rows make no three passes


def test_passes_are_never_taken_away() -> None:
    """A rank with more of them than all others keeps them; it never waits for a smaller number."""
    assert spread([[0], [1]], 1) == [[0], [1]]


def test_a_schedule_takes_its_numbers_by_name() -> None:
    """Four integers in a row would be taken for each other."""
    with pytest.raises(TypeError, match="positional"):
        Schedule([0], [5], 1, 1, 9, (0, 0), lambda x: x)  # type: ignore[misc]

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlframe.engine.batching import Schedule, microbatches


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


def test_each_epoch_is_a_new_partition_of_all_responses() -> None:
    schedule = Schedule(range(10), total=10, minibatches=3, key=(1, 0))
    epochs = [schedule.steps(epoch) for epoch in range(3)]
    for steps in epochs:
        assert [len(rows) for rows in steps] == [4, 3, 3]
        assert sorted(row for rows in steps for row in rows) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs == [
        Schedule(range(10), total=10, minibatches=3, key=(1, 0)).steps(e) for e in range(3)
    ]


def test_two_ranks_together_make_the_steps_of_one() -> None:
    whole = Schedule(range(8), total=8, minibatches=2, key=(1, 5)).steps(0)
    shares = [list(range(rank, 8, 2)) for rank in (0, 1)]
    halves = [Schedule(share, total=8, minibatches=2, key=(1, 5)).steps(0) for share in shares]
    for step in range(2):
        joined = [shares[rank][row] for rank in (0, 1) for row in halves[rank][step]]
        assert sorted(joined) == sorted(whole[step])

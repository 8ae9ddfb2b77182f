"""What rewards log: columns and single numbers, over responses and ranks, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch

from rlframe.api import ContractError
from rlframe.engine.reward_log import TAKEN, RewardFigures
from rlframe.errors import RunError
from tests.engine.test_scoring import processes, rollout, scorer


def figures(*logged: tuple[str, Any]) -> RewardFigures:
    found = RewardFigures(3)
    for name, values in logged:
        found(name, values)
    return found


def test_a_column_counts_its_numbers_and_keeps_its_texts_by_response() -> None:
    found = figures(("a", [1, None, 2.5]), ("said", ["yes", None, "no"]))
    assert found.sums() == {"a": (3.5, 2)}
    assert [found.row(k) for k in range(3)] == [
        {"a": 1, "said": "yes"},
        {},
        {"a": 2.5, "said": "no"},
    ]


def test_numbers_of_libraries_are_numbers() -> None:
    found = figures(("a", numpy.float32([1, 2, 3])), ("b", torch.tensor([1.0, 0.0, 1.0])), ("c", 2))
    assert found.sums() == {"a": (6, 3), "b": (2, 3), "c": (2, 1)}


def test_parts_of_a_column_come_together_and_single_numbers_are_averaged() -> None:
    found = figures(("a", [1, None, None]), ("a", [None, 5, None]), ("n", 1.0), ("n", 4.0))
    assert found.sums() == {"a": (6, 2), "n": (5, 2)}


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("a b", 1.0, "cannot be the name of a metric"),
        (3, 1.0, "cannot be the name of a metric"),
        *((name, 1.0, "cannot be the name") for name in TAKEN),
        ("a", "text", "must be one number, or a list"),
        ("a", [1.0, 2.0], "logged 2 entries of a for 3 responses"),
        ("a", [1.0, math.nan, 2.0], "logged nan as an entry of a"),
        ("a", math.inf, "logged inf as an entry of a"),
        ("a", [1.0, [2.0], 3.0], r"logged \[2.0\] as an entry"),
        ("a", (x for x in (1, 2, 3)), "must be one number, or a list"),
    ],
)
def test_what_cannot_be_logged_is_refused(name: Any, values: Any, why: str) -> None:
    with pytest.raises(ContractError, match=why):
        figures((name, values))


def test_a_reward_that_logs_wrongly_is_named() -> None:
    def answer(batch: Any) -> list[float]:
        batch.log("raw", 1.0)
        return [0.0] * len(batch)

    with pytest.raises(RunError, match=r"reward 'r0' .*cannot be the name of a metric"):
        scorer((answer, 1.0)).score(rollout())


def test_a_rank_that_logs_nothing_has_the_names_of_the_others() -> None:
    def gather(names: list[str]) -> list[list[str]]:
        return [names, [*names, "r0/late"]]

    def answer(batch: Any) -> list[float]:
        batch.log("early", [1.0, 2.0, None])
        return [0.0] * len(batch)

    found = scorer((answer, 1.0), runtime=processes(gather=gather)).score(rollout())
    assert found.logged == {"r0/early": (3.0, 2.0), "r0/late": (0.0, 0.0)}


def test_held_out_entries_stay_with_their_responses_and_are_no_collective() -> None:
    def answer(batch: Any) -> list[float]:
        batch.log("length", batch.response_lengths)
        batch.log("end", [reason.value for reason in batch.stop_reasons])
        return [0.0] * len(batch)

    def gather(_: Any) -> Any:
        raise AssertionError

    found = scorer((answer, 1.0), runtime=processes(gather=gather)).heldout(rollout())
    assert found.entries[1] == {"r0/length": 1.0, "r0/end": "length"}


def test_a_part_of_the_batch_logs_for_its_own_responses_and_other_responses_do_not() -> None:
    def answer(batch: Any) -> list[float]:
        batch.rows([2, 0]).log("a", [5.0, 1.0])
        same = batch.response_texts, batch.response_ids, batch.stop_reasons
        batch.with_responses(*same).log("b", 1.0)
        return [0.0] * len(batch)

    assert scorer((answer, 1.0)).heldout(rollout()).entries == [{"r0/a": 1}, {}, {"r0/a": 5}]

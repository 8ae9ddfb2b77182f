"""What a reward may return: each container and each entry is taken or refused for what it is."""

from __future__ import annotations

import collections
import inspect
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch

from rlframe.api import ContractError, token_scores
from rlframe.api.answers import gate_factors, raw_scores

LENGTHS = (2, 1, 3)
NUMBERS = [1.0, -2.5, 3.0]


class Row(collections.namedtuple("Row", "first second third")):
    """A tuple with names is a tuple."""


@pytest.mark.parametrize(
    "answer",
    [
        NUMBERS,
        tuple(NUMBERS),
        Row(*NUMBERS),
        numpy.array(NUMBERS),
        numpy.array(NUMBERS, dtype=numpy.float16),
        numpy.array(NUMBERS, dtype=object),
        torch.tensor(NUMBERS),
        torch.tensor(NUMBERS, dtype=torch.bfloat16),
        [numpy.float32(1), numpy.float64(-2.5), numpy.int64(3)],
        [torch.tensor(1.0), torch.tensor(-2.5, dtype=torch.float64), torch.tensor(3)],
        [numpy.array(1), Fraction(-5, 2), 3],
        [True, -2.5, 3],
    ],
    ids=lambda answer: f"{type(answer).__name__} of {type(answer[0]).__name__}",
)
def test_numbers_in_order_are_taken(answer: Any) -> None:
    assert token_scores(answer, LENGTHS) == [[1.0], [-2.5], [3.0]]


def test_booleans_count_as_1_and_0() -> None:
    for answer in ([True, False, True], numpy.array([True, False, True]), torch.ones(3) > 0):
        assert token_scores(answer, LENGTHS)[0] == [1.0]
    assert token_scores([True, False, True], LENGTHS)[1] == [0.0]


def test_a_row_has_a_number_for_each_token() -> None:
    rows = [[1.0, 2.0], (3.0,), torch.tensor([4.0, 5.0, 6.0])]
    expected = [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]]
    assert token_scores(rows, LENGTHS) == expected
    assert token_scores([numpy.array(row) for row in expected], LENGTHS) == expected
    assert token_scores([0.5, (3,), [4, 5, 6]], LENGTHS) == [[0.5], [3.0], [4.0, 5.0, 6.0]]


async def _later() -> list[float]:
    return NUMBERS


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "Is a `return` missing?"),
        (0.5, "a float is not a list"),
        ("abc", "Text is not a list"),
        (b"abc", "Text is not a list"),
        (dict.fromkeys("abc", 1.0), "A mapping does not say which"),
        (collections.OrderedDict.fromkeys("abc", 1.0), "A mapping"),
        ({0: 1.0, 1: 2.0, 2: 3.0}.values(), "a dict_values is not a list"),
        ({1.0, 2.0, 3.0}, "A set has no order"),
        (frozenset(NUMBERS), "A set has no order"),
        ((x for x in NUMBERS), "An iterator can be read once"),
        (map(float, NUMBERS), "An iterator can be read once"),
        (torch.tensor(1.0), "It is a single value"),
        (numpy.float64(1.0), "It is a single value"),
        (torch.zeros(3, 1), "It has 2 dimensions"),
        (torch.zeros(3, 3), "It has 2 dimensions"),
        (numpy.zeros((3, 1)), "It has 2 dimensions"),
        (torch.zeros(3, requires_grad=True), "It has a gradient"),
        (torch.zeros(3, device="meta"), "for 3 responses"),
        (torch.zeros(3).to_sparse(), "for 3 responses"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_what_is_no_list_is_refused_with_the_reason(answer: Any, why: str) -> None:
    with pytest.raises(ContractError) as caught:
        token_scores(answer, LENGTHS)
    assert str(caught.value).startswith("returned ")
    assert why in str(caught.value)


def test_a_coroutine_is_refused_and_closed() -> None:
    coroutine = _later()
    with pytest.raises(ContractError, match="must not be `async`"):
        token_scores(coroutine, LENGTHS)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (math.nan, "NaN"),
        (-math.inf, "infinity"),
        (1e39, "infinite in float32"),
        (10**400, "infinite in float32"),
        (torch.tensor(math.nan), "NaN"),
        (numpy.float32("inf"), "infinity"),
        ("0.5", "a str is not a number"),
        (1j, "a complex is not a number"),
        (torch.tensor(1j), "a complex is not a number"),
        (Decimal("0.5"), "a Decimal is not a number"),
        ({"score": 1.0}, "a dict is not a number"),
        ({1.0}, "a set is not a number"),
        (torch.tensor(1.0, requires_grad=True), "it has a gradient"),
        (torch.tensor(1.0, device="meta"), "a Tensor is not a number"),
        ([], "its 0 numbers are not one for each token"),
        ([1.0], "its 1 numbers are not one for each token"),
        ([1.0, math.nan, 2.0], "NaN"),
        ([1.0, None, 2.0], "a NoneType is not a number"),
        ([[1.0], [2.0], [3.0]], "a list is not a number"),
        (torch.zeros(3, 1), "a Tensor is not a number"),
        (numpy.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 1, 0]), "a NoneType is not a number"),
        (numpy.array(["a", "b", "c"]), "a str is not a number"),
    ],
    ids=lambda case: str(case)[:30],
)
def test_an_entry_that_is_no_finite_number_is_refused_with_its_row(bad: Any, why: str) -> None:
    with pytest.raises(ContractError) as caught:
        token_scores([1.0, 2.0, bad], LENGTHS)
    assert caught.value.row == 2
    assert "for a response of 3 tokens" in str(caught.value)
    assert why in str(caught.value)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_number_of_entries_is_refused(count: int) -> None:
    with pytest.raises(ContractError, match=f"returned {count} values for 3 responses"):
        token_scores([0.0] * count, LENGTHS)


def test_no_responses_have_no_scores() -> None:
    assert token_scores([], []) == []
    assert token_scores(torch.zeros(0), []) == []


def test_none_stays_none_and_is_no_number() -> None:
    assert token_scores([None, 2, [1, 2, 3]], LENGTHS) == [None, [2.0], [1.0, 2.0, 3.0]]


def test_numbers_need_not_be_finite_for_who_passes_them_on() -> None:
    found = raw_scores([None, 10**400, math.nan], LENGTHS)
    assert found[:2] == [None, [math.inf]]
    assert math.isnan(found[2][0])  # type: ignore[index]


def test_a_gate_says_something_of_every_response() -> None:
    with pytest.raises(ContractError, match="returned None for a response from `gate`"):
        gate_factors([1.0, None, 0.5], 3)


def test_a_huge_answer_is_not_printed_whole() -> None:
    with pytest.raises(ContractError) as caught:
        token_scores(dict.fromkeys(range(10000), 1.0), LENGTHS)
    assert len(str(caught.value)) < 600

"""What a data generator may return: lists of mappings from text, and nothing else."""

import re
from types import MappingProxyType

import numpy
import pytest
from datasets import Dataset

from rlframe.api import ContractError
from rlframe.api.rows import generated_rows, refuse_odd_values

ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": "4"}]


@pytest.mark.parametrize(
    "answer",
    [
        ROWS,
        tuple(ROWS),
        [MappingProxyType(row) for row in ROWS],
        numpy.array(ROWS, dtype=object),
        Dataset.from_list(ROWS),
        [],
    ],
    ids=["list", "tuple", "read-only", "array", "datasets", "empty"],
)
def test_whatever_has_a_length_and_places_is_a_list_of_rows(answer):
    assert [dict(row) for row in generated_rows(answer, "rows")] == (ROWS if len(answer) else [])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "returned None from `rows`; .* Is a `return` missing?"),
        (iter(ROWS), "An iterator can be read only once: make it a list"),
        ((row for row in ROWS), "An iterator can be read only once"),
        ({"prompt": ["1+1="]}, "A mapping of columns must be turned into rows"),
        ("1+1=", "Text is no list of rows"),
        ({"1+1=", "2+2="}, "It has no length or no order"),
        (7, "It has no length or no order"),
        (
            [("1+1=", "2")],
            re.escape("returned ('1+1=', '2') as row 1 of `rows`; a row is a mapping"),
        ),
        ([ROWS[0], "2+2="], "returned '2\\+2=' as row 2 of `rows`"),
        ([{0: "1+1="}], "returned row 1 of `rows` with a column 0; the name of a column is text"),
    ],
)
def test_anything_else_is_refused_with_what_it_is(answer, message):
    with pytest.raises(ContractError, match=message):
        generated_rows(answer, "rows")


def test_the_message_names_the_method_and_the_error_the_row():
    with pytest.raises(ContractError, match="as row 2 of `heldout_rows`") as caught:
        generated_rows([*ROWS[:1], 3], "heldout_rows")
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1, 2), r"(1, 2) comes back from JSON as [1, 2]"),
        ({"a": [{"b": (1,)}]}, r"(1,) at ['a'][0]['b'] comes back from JSON as [1]"),
        ({"a": 1, 2: "b"}, "the key 2 comes back from JSON as text"),
        ({"a": {True: 1}}, "the key True at ['a'] comes back from JSON as text"),
    ],
    ids=["tuple", "deep", "key", "deep key"],
)
def test_what_a_row_cannot_keep_is_named_by_its_place(value, message):
    with pytest.raises(ContractError, match=re.escape(message) + "$"):
        refuse_odd_values({"rows": [{"prompt": "1+1=", "meta": value}]})
    with pytest.raises(ContractError, match="comes back from JSON"):
        refuse_odd_values({"rows": [{"prompt": "1+1=", "meta": (value,)}]})


@pytest.mark.parametrize("value", [None, True, 1, 0.1, -0.0, "é\n", [], {"a": [1.5, {"b": None}]}])
def test_plain_data_passes(value):
    refuse_odd_values({"rows": [{"prompt": "1+1=", "meta": value}]})
    with pytest.raises(ContractError, match="comes back from JSON"):
        refuse_odd_values({"rows": [{"prompt": "1+1=", "meta": (value,)}]})

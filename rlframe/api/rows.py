"""What data generators return: a run and the conformance kit refuse the same."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlframe.api.answers import ContractError, awaited, shown
from rlframe.api.component import DataGenerator
from rlframe.types import Row

ROWS = ("rows", "heldout_rows")
"""The class methods of a data generator that return rows."""


def rows_of(generator: type[DataGenerator[Any]], ask: Callable[[str], Any]) -> dict[str, list[Row]]:
    """What both methods of a generator return.

    Args:
      generator: its class.
      ask: calls the method of that name.

    Raises:
      ContractError: one is no class method, or did not return rows, or `rows` returned none.
    """
    for method in ROWS:
        if inspect.isfunction(inspect.getattr_static(generator, method)):
            raise ContractError(
                f"has `{method}` as a method of instances, and a generator has none: decorate it with "
                "`@classmethod`"
            )
    made = {method: generated_rows(ask(method), method) for method in ROWS}
    if not made["rows"]:
        raise ContractError("returned no row from `rows`: the data set would be empty")
    return made


def refuse_other_columns(made: Mapping[str, Sequence[Row]]) -> None:
    """Raise unless every row of a method has the columns of its first row.

    Raises:
      ContractError: one has others.
    """
    for method, rows in made.items():
        for number, row in enumerate(rows):
            if row.keys() != rows[0].keys():
                raise ContractError(
                    f"returned row {number + 1} of `{method}` with the columns {_columns(row)}, and "
                    f"the first row with {_columns(rows[0])}",
                    row=number,
                )


def refuse_other_heldout(made: Mapping[str, Sequence[Row]]) -> None:
    """Raise if the first held-out row has other columns than the first row.

    Raises:
      ContractError: it has.
    """
    rows, heldout = (made[method] for method in ROWS)
    if heldout and heldout[0].keys() != rows[0].keys():
        raise ContractError(
            f"returned held-out rows with the columns {_columns(heldout[0])}, and rows with "
            f"{_columns(rows[0])}"
        )


def refuse_odd_values(made: Mapping[str, Sequence[Row]]) -> None:
    """Raise unless every value is plain data, which comes back from JSON unchanged.

    Raises:
      ContractError: one does not.
    """
    for method, rows in made.items():
        for number, row in enumerate(rows):
            for column, value in row.items():
                if reason := _not_plain(value):
                    raise ContractError(
                        f"returned {shown(value)} in column {column!r} of row {number + 1} of "
                        f"`{method}`: {reason}",
                        row=number,
                    )


def _columns(row: Row) -> str:
    return ", ".join(map(repr, sorted(row))) or "none"


def _not_plain(value: Any) -> str:
    """Why JSON does not keep a value; nothing if it does."""
    if type(value) in _PLAIN:
        return ""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        return str(error)
    return _first_change(value, json.loads(text), "")


def _first_change(value: Any, back: Any, at: str) -> str:
    """Where a value differs from what JSON made of it; nothing if it does not."""
    if value == back:
        return ""
    if isinstance(value, Mapping) and isinstance(back, Mapping):
        for key in value:
            if key not in back:
                return f"the key {key!r}{_place(at)} comes back from JSON as text"
            if found := _first_change(value[key], back[key], f"{at}[{key!r}]"):
                return found
    if isinstance(value, list) and isinstance(back, list):
        for index, (one, other) in enumerate(zip(value, back, strict=True)):
            if found := _first_change(one, other, f"{at}[{index}]"):
                return found
    return f"{shown(value)}{_place(at)} comes back from JSON as {shown(back)}"


def _place(at: str) -> str:
    return f" at {at}" if at else ""


_PLAIN = {type(None), bool, int}
"""Of these every value is kept."""


def generated_rows(answer: Any, method: str) -> list[Row]:
    """A data generator's answer as a list of rows.

    Args:
      answer: a list, a tuple, or anything else with a length and places, such as a data set of the
        library `datasets`. An entry is a mapping from names of columns to values.
      method: what returned it, `rows` or `heldout_rows`, for the message.

    Raises:
      ContractError: it is anything else.
    """
    if reason := _no_list(awaited(answer)):
        raise ContractError(
            f"returned {shown(answer)} from `{method}`; it must return a list of rows, each a "
            f"mapping from columns to values. {reason}"
        )
    rows = list(answer)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ContractError(
                f"returned {shown(row)} as row {number + 1} of `{method}`; a row is a mapping from "
                'columns to values, such as {"prompt": "1+1=", "answer": "2"}',
                row=number,
            )
        odd = [name for name in row if not isinstance(name, str)]
        if odd:
            raise ContractError(
                f"returned row {number + 1} of `{method}` with a column {odd[0]!r}; the name of a "
                "column is text",
                row=number,
            )
    return rows


def _no_list(answer: Any) -> str:
    """Why something is no list of rows; nothing if it may be one."""
    if answer is None:
        return "Is a `return` missing?"
    if isinstance(answer, Iterator):
        return "An iterator can be read only once: make it a list"
    if isinstance(answer, Mapping):
        return "A mapping of columns must be turned into rows first"
    if isinstance(answer, str | bytes):
        return "Text is no list of rows"
    if not (hasattr(answer, "__len__") and hasattr(answer, "__getitem__")):
        return "It has no length or no order"
    return ""

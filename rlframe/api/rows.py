"""What data generators return: a run and the conformance kit refuse the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlframe.api.answers import ContractError, shown
from rlframe.types import Row


def generated_rows(answer: Any, method: str) -> list[Row]:
    """A data generator's answer as a list of rows.

    Args:
      answer: a list, a tuple, or anything else with a length and places, such as a data set of the
        library `datasets`. An entry is a mapping from names of columns to values.
      method: what returned it, `rows` or `heldout_rows`, for the message.

    Raises:
      ContractError: it is anything else.
    """
    if reason := _no_list(answer):
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

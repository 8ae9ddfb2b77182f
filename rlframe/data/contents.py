"""What the rows of a data set are good for, as far as it shows without a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlframe.data.conversations import shown
from rlframe.errors import RecipeError, listed
from rlframe.types import Row


def text_of(row: Row, key: str) -> str:
    """The text in a column.

    Raises:
      RecipeError: there is none, or something else.
    """
    value: Any = row.get(key)
    if isinstance(value, str):
        return value
    if value is None:
        raise RecipeError(
            f"no text in column {key!r} of this row (it has {listed(row)}). "
            "Name the columns in `data.NAME.columns`"
        )
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        raise RecipeError(
            f"column {key!r} holds a list of messages, not a text. For a conversation write "
            f"`columns: {{messages: {key}}}` under `data.NAME`"
        )
    raise RecipeError(
        f"column {key!r} holds a {type(value).__name__}, not a text: {shown(value)}. "
        "Name the columns in `data.NAME.columns`"
    )


def check_example(row: Row) -> None:
    """Refuse what is neither a conversation, nor a prompt with its response, nor a text.

    Raises:
      RecipeError: names the column.
    """
    if not _answers(row):
        text_of(row, "text")


def check_demonstration(row: Row) -> None:
    """Refuse an example without a prompt.

    Raises:
      RecipeError: it is a text alone, or not even that.
    """
    if not _answers(row):
        raise RecipeError(
            f"no prompt with a response, and no messages (it has {listed(row)}). Name the columns in "
            "`data.NAME.columns`"
        )


def check_pair(row: Row) -> None:
    """Refuse what has no two answers to compare, each a text or messages.

    Raises:
      RecipeError: names the column.
    """
    for key in ("chosen", "rejected"):
        if not _is_conversation(row.get(key)):
            _check_answer(row, key)
    if row.get("prompt") is not None and not row.get("messages"):
        text_of(row, "prompt")


def check_prompt(row: Row, *, first_words: bool) -> None:
    """Refuse what holds no question.

    Args:
      row: of the prompts' data set.
      first_words: whether the question is the beginning of a text.

    Raises:
      RecipeError: names the column.
    """
    if first_words or not row.get("messages"):
        text_of(row, "text" if first_words else "prompt")


def refuse_unanswered(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a conversation that does not end with the assistant.

    Raises:
      RecipeError: that is so.
    """
    if messages[-1].get("role") != "assistant":
        raise RecipeError(
            "the last message is not the assistant's, so that there is nothing to learn at the "
            "end: leave that message out, or the row"
        )


def _answers(row: Row) -> bool:
    """Whether a row holds an answer to something, which then has to be whole."""
    response, messages = row.get("response"), row.get("messages")
    if messages:
        if response is None and isinstance(messages, list) and isinstance(messages[-1], Mapping):
            refuse_unanswered(messages)
        return True
    if row.get("prompt") is None or response is None:
        return False
    text_of(row, "prompt")
    if not _is_conversation(response):
        _check_answer(row, "response")
    return True


def _check_answer(row: Row, key: str) -> None:
    if not isinstance(row.get(key), bool | int | float):  # which are read as text
        text_of(row, key)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and bool(value))

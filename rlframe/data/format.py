"""Whether prompts in columns of their own are turns of a chat, or text that is continued."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from rlframe.data.conversations import transcript, turns, without_answer
from rlframe.errors import RecipeError
from rlframe.types import Row

Format = Literal["auto", "chat", "plain"]

_DIALOGUE = re.compile(r"\n\n(Human|Assistant):")


def is_chat(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, wanted: Format
) -> tuple[bool, str | None]:
    """Decide for a whole data set: one format for all of its rows.

    Args:
      rows: of both parts of the split.
      tokenizer: the policy's.
      wanted: as the recipe has it. `auto` renders prompts with the tokenizer's chat template, unless
        most of them are written as a dialogue already: with special tokens, or Human and Assistant.

    Returns:
      (whether to render, what people should know of a choice that they did not make).

    Raises:
      RecipeError: what the recipe wants does not apply.
    """
    prompts = sum(map(_prompted, rows))
    template = bool(tokenizer.chat_template)
    if wanted != "auto" and not prompts:
        raise RecipeError(
            f"format: {wanted} is about rows with a text in their prompt column, and there are none"
        )
    if wanted == "chat" and not template:
        raise RecipeError("format: chat needs a chat template, and the policy's tokenizer has none")
    if not template or wanted != "auto":
        return wanted == "chat", None
    if not prompts:
        texts = any(isinstance(row.get(key), str) for row in rows[:1] for key in ("text", "chosen"))
        note = "its texts are read as they are, without the tokenizer's chat template"
        return False, note if texts and not rows[0].get("messages") else None
    written = sum(map(_Written(tokenizer), (row["prompt"] for row in rows if _prompted(row))))
    if 2 * written > prompts:
        return False, (
            f"prompts are read as they are, without the tokenizer's chat template, since {written} of "
            f"{prompts} are written as a dialogue already; `format: chat` renders them"
        )
    return True, (
        "prompts are rendered with the tokenizer's chat template, as what the user says; "
        "`format: plain` leaves them as they are"
    )


def row_format(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, wanted: Format
) -> tuple[Callable[[Row], Row] | None, str | None]:
    """(what each row becomes before it is encoded, what people should know of that).

    Args:
      rows: of both parts of the split.
      tokenizer: of the model that reads them.
      wanted: as the recipe has it.

    Raises:
      RecipeError: what the recipe wants does not apply.
    """
    chat, note = is_chat(rows, tokenizer, wanted=wanted)
    if chat:
        return as_chat, note
    if not tokenizer.chat_template and any(map(_compares_conversations, rows)):
        return as_transcripts, (
            "the tokenizer has no chat template, so that conversations are compared as plain text, "
            "'Human: ...' and 'Assistant: ...'"
        )
    return None, note


def as_transcripts(row: Row) -> Row:
    """A pair of conversations as two texts; any other row as it is."""
    if not _compares_conversations(row):
        return row
    before = without_answer(row.get("messages") or ())
    if not before and isinstance(row.get("prompt"), str):
        before = [{"role": "user", "content": row["prompt"]}]
    texts = {}
    for role in ("chosen", "rejected"):
        said = turns(row[role], role)
        whole = said[0].get("role") != "assistant"
        texts[role] = transcript(said if whole else [*before, *said])
    return {**row, **texts, "prompt": None, "messages": None}


def _compares_conversations(row: Row) -> bool:
    return all(isinstance(row.get(role), list | dict) for role in ("chosen", "rejected"))


def as_chat(row: Row) -> Row:
    """A row with its prompt as the message of a user; the response becomes the answer to it."""
    if not _prompted(row):
        return row
    return {**row, "messages": [{"role": "user", "content": row["prompt"]}]}


def _prompted(row: Row) -> bool:
    return isinstance(row.get("prompt"), str) and not row.get("messages")


class _Written:
    """Whether a prompt is written as a dialogue."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._special = [str(token) for token in tokenizer.all_special_tokens]
        added = tokenizer.added_tokens_decoder.values()
        self._special += [token.content for token in added if token.special]

    def __call__(self, prompt: str) -> bool:
        return bool(_DIALOGUE.search(prompt)) or any(token in prompt for token in self._special)

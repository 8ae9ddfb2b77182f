"""Whether prompts in columns of their own are turns of a chat, or text that is continued."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

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
    prompts = [row["prompt"] for row in rows if _prompted(row)]
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
        told = "its texts are read as they are, without the tokenizer's chat template"
        return False, told if texts and not rows[0].get("messages") else None
    written = sum(map(_Written(tokenizer), prompts))
    if 2 * written > len(prompts):
        return False, (
            f"prompts are read as they are, without the tokenizer's chat template, since {written} of "
            f"{len(prompts)} are written as a dialogue already; `format: chat` renders them"
        )
    return True, (
        "prompts are rendered with the tokenizer's chat template, as what the user says; "
        "`format: plain` leaves them as they are"
    )


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

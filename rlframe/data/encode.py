"""Rows as tokens: text, prompt and response, or chat messages through the tokenizer's template.

Prompt and response are tokenised apart, since in PPO the response is sampled token by token and no
merge can cross the border. A response follows its prompt's text directly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlframe.errors import RecipeError, listed
from rlframe.types import Prompt, Row, TokenExample


@dataclass(frozen=True)
class RowEncoder:
    """Turns rows into tokens with one tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    def example(self, row: Row) -> TokenExample:
        """A whole example, EOS at its end; a prompt, where there is one, counts as context.

        Raises:
          RecipeError: the row has none of messages, prompt with response, text.
        """
        prompt, response = self._parts(row)
        return self._joined(prompt, response)

    def pair(self, row: Row) -> tuple[TokenExample, TokenExample]:
        """(chosen, rejected) of a preference row, each with the prompt in front if there is one.

        Raises:
          RecipeError: chosen or rejected is missing or empty.
        """
        for key in ("chosen", "rejected"):
            if not isinstance(row.get(key), str) or not row[key]:
                raise RecipeError(f"{key!r} is not a text in this row: {_shown(row)}")
        asked = row.get("prompt") is not None or row.get("messages")
        prompt = self.prompt(row) if asked else None
        return self._joined(prompt, row["chosen"]), self._joined(prompt, row["rejected"])

    def prompt(self, row: Row, *, first_words: int | None = None) -> Prompt:
        """What the policy is asked.

        Args:
          row: with `messages`, `prompt`, or `text` if `first_words` is given.
          first_words: so many words of the text are the prompt.

        Raises:
          RecipeError: the row has no prompt, or an empty one and the tokenizer has no BOS.
        """
        if first_words is not None:
            text = self._field(row, "text")
            words = re.match(r"\s*\S+" + r"\s+\S+" * (first_words - 1), text)
            return self._prompt(words.group() if words else text, row)
        if row.get("messages"):
            return self._chat(row["messages"], row)
        return self._prompt(self._field(row, "prompt"), row)

    def _parts(self, row: Row) -> tuple[Prompt | None, str]:
        messages = row.get("messages")
        if messages:
            prompt = self._chat(messages, row)
            if messages[-1]["role"] != "assistant":
                raise RecipeError(f"the last message is not the assistant's: {_shown(row)}")
            return prompt, messages[-1]["content"]
        if row.get("prompt") is not None and row.get("response") is not None:
            return self.prompt(row), self._field(row, "response")
        return None, self._field(row, "text")

    def _joined(self, prompt: Prompt | None, response: str) -> TokenExample:
        tokenizer = self.tokenizer
        eos = tokenizer.eos_token_id
        if prompt is None:
            return TokenExample((*self._encode(response), eos), 0)
        ids = tokenizer.encode(response, add_special_tokens=False)
        return TokenExample((*prompt.ids, *ids, eos), len(prompt.ids))

    def _chat(self, messages: Sequence[Mapping[str, str]], row: Row) -> Prompt:
        """The chat up to the assistant's turn, through the tokenizer's own template."""
        if not (isinstance(messages, list | tuple) and all(map(_is_message, messages))):
            raise RecipeError(
                "messages must be a list of objects with the texts `role` and `content`; here: "
                f"{_shown(row)}"
            )
        if self.tokenizer.chat_template is None:
            raise RecipeError(
                "the data has chat messages but the tokenizer has no chat template; give the data as "
                "prompt and response, or use a tokenizer with a template"
            )
        answered = messages[-1]["role"] == "assistant"
        asked = [dict(message) for message in (messages[:-1] if answered else messages)]
        text = self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer.encode(text, add_special_tokens=False)  # the template wrote its own
        return Prompt(str(text), tuple(ids), row, tuple(asked))

    def _prompt(self, text: str, row: Row) -> Prompt:
        ids = self._encode(text)
        if not ids:
            raise RecipeError(f"an empty prompt, and the tokenizer has no BOS token: {_shown(row)}")
        return Prompt(text, ids, row)

    def _encode(self, text: str) -> tuple[int, ...]:
        """A text as the tokenizer begins it. Some end it as well: that is the policy's business."""
        ids = tuple(self.tokenizer.encode(text))
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def _field(self, row: Row, key: str) -> str:
        value: Any = row.get(key)
        if not isinstance(value, str):
            raise RecipeError(
                f"no text in column {key!r} of this row (it has {listed(row)}): {_shown(row)}. "
                "Name the columns in `data.NAME.columns`"
            )
        return value


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _shown(row: Row) -> str:
    text = str(dict(row))
    return text if len(text) <= 160 else text[:157] + "..."

"""Prompts: what is written around a row's columns, and how a prompt is made short enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any, Literal

from rlframe.data.conversations import Message, described
from rlframe.errors import RecipeError, did_you_mean, listed
from rlframe.types import Prompt, Row

Truncation = Literal["error", "drop", "left", "right"]


def template_columns(template: str) -> tuple[str, ...]:
    """The columns that a template names, in order.

    Raises:
      ValueError: its braces are not closed, or hold more than the name of a column.
    """
    names = []
    for _, name, form, conversion in _pieces(template):
        if name is not None:
            if not name or form or conversion:
                raise ValueError(
                    f"between braces stands the name of a column, not {name + (form or '')!r}; a brace "
                    "that is text is written twice, {{ or }}"
                )
            names.append(name)
    return tuple(names)


def _pieces(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; a brace that is text is written twice, {{{{ or }}}}") from error


def filled(template: str, row: Row) -> str:
    """The template with the row's columns in it. Braces in the data are text.

    Raises:
      RecipeError: a column is missing, or holds neither text nor a number.
    """
    parts = []
    for literal, name, _, _ in _pieces(template):
        parts.append(literal)
        if name is not None:
            value = row.get(name)
            if name not in row:
                raise RecipeError(
                    f"template: there is no column {name!r}.{did_you_mean(name, row)} "
                    f"The row has {listed(row)}"
                )
            if not isinstance(value, str | int | float):
                raise RecipeError(f"template: column {name!r} holds {described(value)}")
            parts.append(str(value))
    return "".join(parts)


def longest_prompt(context: int, *, response: int, wanted: int | None, model: str) -> int:
    """Most tokens of a prompt beside a response of full length.

    Args:
      context: tokens that the model reads, prompt and response together.
      response: longest, in tokens.
      wanted: `prompts.max_tokens` of the recipe.
      model: as a message calls it.

    Raises:
      RecipeError: nothing is left for a prompt, or less than is wanted; begins with the recipe's path.
    """
    if context <= response:
        raise RecipeError(
            f"rollout.max_new_tokens: responses of {response} tokens leave no room for a prompt: "
            f"{model} reads {context} tokens, prompt and response together"
        )
    if wanted is not None and wanted + response > context:
        raise RecipeError(
            f"prompts.max_tokens: prompts of {wanted} and responses of {response} tokens "
            f"(rollout.max_new_tokens) are more than the {context} that {model} reads"
        )
    return wanted or context - response


@dataclass(frozen=True)
class PromptFormat:
    """What the recipe writes around a row before it is asked."""

    template: str | None
    system: str | None
    chat: bool
    """Whether the tokenizer has a template that writes messages."""

    def row(self, row: Row) -> Row:
        """The row with the prompt that is asked.

        Raises:
          RecipeError: the template names a column that is missing, or the row has no text to ask.
        """
        found: dict[str, Any] = dict(row)
        if self.template is not None:
            found |= {"prompt": filled(self.template, row), "messages": None}
        if self.system is None:
            return found
        if not self.chat:
            raise RecipeError("system: the tokenizer has no chat template, so nothing can hold it")
        messages = list(found.get("messages") or ())
        if not messages and not isinstance(found.get("prompt"), str):
            raise RecipeError(f"column 'prompt' holds {described(found.get('prompt'))}")
        messages = messages or [{"role": "user", "content": found["prompt"]}]
        if messages[0].get("role") != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return {**found, "messages": messages}


@dataclass(frozen=True)
class Shortening:
    """Makes a prompt as short as it must be.

    Of a chat the oldest messages go first, the system's stays, and then the last message is shortened:
    what the template writes is never cut. A text keeps what stands at the other side.

    Args:
      encode: a row as a prompt.
      tokenizer: of the policy.
      limit: tokens.
      side: which end of a text is cut off.
      column: holds the text of a prompt that is no chat.
    """

    encode: Callable[[Row], Prompt]
    tokenizer: Any
    limit: int
    side: Literal["left", "right"]
    column: str = "prompt"

    def prompt(self, row: Row) -> Prompt:
        """The row as a prompt of at most `limit` tokens; its columns stay as the data has them.

        Raises:
          RecipeError: not even an empty text fits.
        """
        found = self.encode(row)
        if len(found.ids) <= self.limit:
            return found
        return replace(self._shortened(row, found), columns=found.columns)

    def _shortened(self, row: Row, found: Prompt) -> Prompt:
        if found.messages is None:
            return self._shortest(
                {**row, "messages": None}, found.text, lambda text: {self.column: text}
            )
        messages = list(found.messages)
        front = [m for m in messages[:1] if m["role"] == "system"]
        turns = messages[len(front) :]
        while len(turns) > 1 and len(found.ids) > self.limit:
            turns = turns[1:]
            while len(turns) > 1 and turns[0]["role"] != "user":
                turns = turns[1:]
            found = self.encode({**row, "messages": [*front, *turns]})
        if len(found.ids) <= self.limit:
            return found
        last = turns[-1]

        def with_content(text: str) -> Mapping[str, Any]:
            shortened: Message = {**last, "content": text}
            return {"messages": [*front, *turns[:-1], shortened]}

        return self._shortest(row, str(last["content"]), with_content)

    def _shortest(self, row: Row, text: str, written: Callable[[str], Mapping[str, Any]]) -> Prompt:
        """The prompt with as much of the text as fits."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        found = self.encode({**row, **written(text)})
        while len(found.ids) > self.limit and ids:
            excess = min(len(found.ids) - self.limit, len(ids))
            ids = ids[excess:] if self.side == "left" else ids[: len(ids) - excess]
            # A cut inside of a character leaves a half that cannot be decoded.
            text = self.tokenizer.decode(ids, skip_special_tokens=False).strip("\ufffd")
            found = self.encode({**row, **written(text)})
        if len(found.ids) > self.limit or not text.strip():
            raise RecipeError(
                f"a prompt may have {self.limit} tokens, and what is written around its text has "
                f"{len(self.encode({**row, **written('x')}).ids) - 1} alone"
            )
        return found

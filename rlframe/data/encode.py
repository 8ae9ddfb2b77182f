"""Rows as tokens: text, prompt and response, or chat messages through the tokenizer's template.

A response follows its prompt's text directly, and no token crosses the border between them, since in
PPO the response is sampled after the prompt's tokens. Both are tokenised together where this gives the
prompt's tokens first; where a merge would cross the border, each is tokenised by itself.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from rlframe.data.chat import ChatFormat, Conversation, chat_format, messages_of
from rlframe.data.contents import refuse_unanswered, text_of
from rlframe.data.conversations import shown
from rlframe.errors import RecipeError, RlframeError
from rlframe.types import Prompt, Row, TokenExample

_PROBE = "a"
# A dialogue in plain text, as Anthropic's preference data have it (https://arxiv.org/abs/2204.05862).
_TRANSCRIPT = re.compile(r"(.*\n\nHuman:.*\n\nAssistant:)(.*)", re.DOTALL)


@dataclass(frozen=True)
class RowEncoder:
    """Turns rows into tokens with one tokenizer.

    A text, or a prompt, begins with the tokens that the tokenizer puts in front of every text, usually
    BOS, unless it begins with them itself. Whatever is learned from ends with the tokenizer's EOS or
    with the token that the template writes after an answer, once.
    """

    tokenizer: PreTrainedTokenizerBase
    learn: Literal["all", "last"] = "all"
    """Which answers of a conversation examples are learned from."""
    remarks: Counter[str] = field(default_factory=Counter, compare=False)
    """How many of the rows so far had what people should know of; see `remarks_on`."""
    _kept: dict[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    _of_row: set[str] = field(default_factory=set, compare=False, repr=False)

    def example(self, row: Row) -> TokenExample:
        """A whole example with its end; prompts count as context, every answer is learned from.

        Raises:
          RecipeError: the row has none of messages, prompt with response, text.
        """
        with self._about(row):
            messages = self._messages(row)
            if messages is not None:
                return self._conversation(messages, row, every=self.learn == "all")
            if row.get("prompt") is not None and row.get("response") is not None:
                return self._answered(self._asked(row), self._answer(row, "response"))
            return self._text(text_of(row, "text"))

    def pair(self, row: Row) -> tuple[TokenExample, TokenExample]:
        """(chosen, rejected) of a preference row, each after the prompt if there is one.

        Both may be texts, messages that answer the prompt, or whole conversations.

        Raises:
          RecipeError: chosen or rejected is missing.
        """
        with self._about(row):
            return self._side(row, "chosen"), self._side(row, "rejected")

    def prompt(self, row: Row, *, first_words: int | None = None) -> Prompt:
        """What the policy is asked. An answer at the end of messages is left out.

        Args:
          row: with `messages`, `prompt`, or `text` if `first_words` is given.
          first_words: so many words of the text are the prompt.

        Raises:
          RecipeError: the row has no prompt, or an empty one and the tokenizer has no BOS.
        """
        with self._about(row):
            if first_words is not None:
                text = text_of(row, "text")
                words = re.match(r"\s*\S+" + r"\s+\S+" * (first_words - 1), text)
                return self._prompt(words.group() if words else text, row)
            return self._asked(row)

    # Conversations

    @cached_property
    def _template(self) -> ChatFormat | None:
        return chat_format(self.tokenizer)

    @property
    def _chat(self) -> ChatFormat:
        if self._template is None:
            raise RecipeError(
                "the data has chat messages but the tokenizer has no chat template; give the data as "
                "prompt and response, or use a tokenizer with a template"
            )
        return self._template

    def _messages(self, row: Row) -> list[dict[str, Any]] | None:
        """The row's messages, a response at their end where it has one; None if it has no messages."""
        if not row.get("messages"):
            return None
        messages = messages_of(row["messages"], column="messages")
        if messages[-1]["role"] != "assistant" and row.get("response") is not None:
            messages += self._said(row, "response")
        return messages

    def _said(self, row: Row, key: str) -> list[dict[str, Any]]:
        """A column with an answer, as messages."""
        value = row.get(key)
        if isinstance(value, Mapping):
            value = [value]
        if isinstance(value, list | tuple) and value:
            return messages_of(value, column=key)
        return [{"role": "assistant", "content": self._answer(row, key)}]

    def _conversation(
        self, messages: list[dict[str, Any]], row: Row, *, every: bool
    ) -> TokenExample:
        """An answered conversation; `every` answer is learned from, or the last one."""
        refuse_unanswered(messages)
        messages = [self._unended(message) for message in messages]
        found = self._chat.conversation(messages, tools=_tools(row))
        prompt, ids = self._prompt_tokens(found.prompt), self._plain(found.text)
        if ids[: len(prompt)] != prompt:
            ids = (*prompt, *self._plain(found.text[len(found.prompt) :]))
        if not found.ended:
            ids = (*ids, self.tokenizer.eos_token_id)
        self._remark("no end", if_=not found.ended)
        self._remark("not as prompted", if_=not found.as_prompted)
        self._remark_unwritten(messages, found.text)
        spans = self._spans(found) if every else []
        return (
            TokenExample(ids, spans[0][0], (*spans, (len(prompt), len(ids))))
            if spans
            else TokenExample(ids, len(prompt))
        )

    def _spans(self, found: Conversation) -> list[tuple[int, int]]:
        """The earlier answers as ranges of the prompt's tokens."""
        self._remark("rewritten", if_=len(found.earlier) + 1 < found.answers)
        placed = self.tokenizer.is_fast  # others do not say where tokens stand
        self._remark("no offsets", if_=bool(found.earlier) and not placed)
        if not found.earlier or not placed:
            return []
        offsets = self.tokenizer(
            found.prompt, add_special_tokens=False, return_offsets_mapping=True
        )["offset_mapping"]
        spans = []
        for start, end in found.earlier:
            # Where an end is a special token, that token may swallow the whitespace behind it.
            inside = [
                number
                for number, (first, last) in enumerate(offsets)
                if start <= first < end and (found.ended or last <= end)
            ]
            if inside:
                spans.append((inside[0], inside[-1] + 1))
        return spans

    def _unended(self, message: dict[str, Any]) -> dict[str, Any]:
        """An answer without the end that the template will write: some data sets have it already."""
        content = message["content"].rstrip()
        for end in self._ends:
            if message["role"] == "assistant" and content.endswith(end):
                return {**message, "content": content[: -len(end)]}
        return message

    # Prompts and answers

    def _asked(self, row: Row) -> Prompt:
        if not row.get("messages"):
            return self._prompt(text_of(row, "prompt"), row)
        messages = _unanswered(messages_of(row["messages"], column="messages"))
        messages = [self._unended(message) for message in messages]
        text = self._chat.asked(messages, tools=_tools(row))
        self._remark_unwritten(messages, text)
        return Prompt(text, self._plain(text), row, tuple(messages))

    def _side(self, row: Row, key: str) -> TokenExample:
        """One answer of a pair, all before its last turn as context."""
        said = self._said(row, key)
        if row.get("messages") or said[0]["role"] != "assistant" or len(said) > 1:
            whole = said[0]["role"] != "assistant"
            asked = (
                [] if whole else _unanswered(messages_of(row.get("messages"), column="messages"))
            )
            return self._conversation([*asked, *said], row, every=False)
        text = said[0]["content"]
        if row.get("prompt") is not None:
            return self._answered(self._prompt(text_of(row, "prompt"), row), text)
        dialogue = _TRANSCRIPT.fullmatch(text)
        if dialogue is not None:
            return self._answered(self._prompt(dialogue[1], row), dialogue[2])
        return self._text(text)

    def _answered(self, prompt: Prompt, response: str) -> TokenExample:
        response, end = self._closed(response)
        whole = self._begun(prompt.text + response)
        if whole[: len(prompt.ids)] != prompt.ids:
            whole = (*prompt.ids, *self._plain(response))
        return TokenExample((*whole, *end), len(prompt.ids))

    def _text(self, text: str) -> TokenExample:
        text, end = self._closed(text)
        return TokenExample((*self._begun(text), *end), 0)

    def _prompt(self, text: str, row: Row) -> Prompt:
        ids = self._begun(text)
        if not ids:
            raise RecipeError("an empty prompt, and the tokenizer has no BOS token")
        return Prompt(text, ids, row)

    # Texts

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _prompt_tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of a prompt, kept until another one comes: both sides of a pair have the same."""
        if text not in self._kept:
            self._kept.clear()
            self._kept[text] = self._plain(text)
        return self._kept[text]

    def _begun(self, text: str) -> tuple[int, ...]:
        """A text with what the tokenizer puts in front of every text, once.

        Some tokenizers put EOS behind every text as well: where a text ends is the policy's business.
        """
        ids = self._plain(text)
        return ids if ids[: len(self._front)] == self._front else (*self._front, *ids)

    @cached_property
    def _front(self) -> tuple[int, ...]:
        bare, framed = self._plain(_PROBE), tuple(self.tokenizer.encode(_PROBE))
        places = range(len(framed) - len(bare) + 1)
        place = next((n for n in places if framed[n : n + len(bare)] == bare), 0)
        return framed[:place]

    def _closed(self, text: str) -> tuple[str, tuple[int, ...]]:
        """A text, and the EOS to put behind it unless it has an end of its own."""
        bare = text.rstrip()
        return (bare, ()) if bare.endswith(self._ends) else (text, (self.tokenizer.eos_token_id,))

    @cached_property
    def _ends(self) -> tuple[str, ...]:
        chat = self._template
        ends = [self.tokenizer.eos_token, None if chat is None else chat.end]
        return tuple(str(end) for end in ends if end)

    # Columns

    def _answer(self, row: Row, key: str) -> str:
        """An answer, which a file may hold as a number or a truth value."""
        value = row.get(key)
        if isinstance(value, bool | int | float):
            self._remark("not text", if_=True)
            return str(value)
        return text_of(row, key)

    # Errors and remarks

    @contextmanager
    def _about(self, row: Row) -> Iterator[None]:
        """Show the row in an error about it, and count it once for each remark on it."""
        self._of_row.clear()
        try:
            yield
        except RlframeError as error:
            raise type(error)(f"{error}. The row: {shown(row)}") from error
        except (TypeError, ValueError) as error:  # as for a lone surrogate, which is no text
            raise RecipeError(
                f"a row cannot be tokenised: {error}. The row: {shown(row)}"
            ) from error
        self.remarks.update({"rows", *self._of_row})

    def _remark(self, what: str, *, if_: bool) -> None:
        if if_:
            self._of_row.add(what)

    def _remark_unwritten(self, messages: list[dict[str, Any]], text: str) -> None:
        for role in self._chat.unwritten(messages, text):
            self._of_row.add(f"unwritten {role}")


def remarks_on(remarks: Mapping[str, int]) -> Iterator[str]:
    """What people should know of the rows that an encoder has read, a sentence each.

    Args:
      remarks: of the encoder.
    """
    sentences = {
        "rewritten": "the chat template rewrites earlier answers once others follow; those are not "
        "learned from, the last one is",
        "no offsets": "only the last answer is learned from, since the tokenizer does not say where "
        "its tokens stand in a text",
        "no end": "the chat template writes no special token after an answer, which therefore ends "
        "with the tokenizer's EOS",
        "not as prompted": "the chat template begins an answer otherwise than it prompts for one",
        "not text": "an answer is a number or a truth value, and is read as text",
    }
    for key, count in sorted((key, count) for key, count in remarks.items() if key != "rows"):
        role = key.removeprefix("unwritten ")
        left_out = f"the chat template leaves out messages of the role {role!r}"
        yield f"in {count} of {remarks['rows']} rows {sentences.get(key, left_out)}"


def _unanswered(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def _tools(row: Row) -> list[Any] | None:
    """Descriptions of tools, which some templates write: a list, or JSON."""
    tools = row.get("tools")
    if isinstance(tools, str) and tools:
        tools = json.loads(tools)
    return list(tools) if isinstance(tools, list | tuple) and tools else None

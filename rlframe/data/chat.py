"""Conversations through the chat template of a tokenizer: what is asked, the answers, and their ends.

Everything here is found by rendering, with and without an answer, and never by names of tokens: what a
template writes after an answer is the end of that answer, whatever the tokenizer calls its EOS.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlframe.data.conversations import shown
from rlframe.errors import RecipeError

Message = Mapping[str, Any]

_PROBE = "q7f3k9x2"  # an answer that no template contains and that no filter of a template changes
_FRAMES: tuple[list[Message], ...] = (
    [{"role": "user", "content": "a"}],
    [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}],
)
"""Conversations to look at a template with: some insist on a system message."""


@dataclass(frozen=True)
class Conversation:
    """An answered conversation as the template writes it, through the end of its last answer."""

    text: str
    prompt: str
    """The beginning of `text` that the last answer follows."""
    earlier: tuple[tuple[int, int], ...]
    """Where earlier answers stand in `prompt`, ends included: half-open ranges of characters. Only
    those that the template writes as it wrote them when they were the last."""
    answers: int
    """Answers of the assistant to something, in the conversation."""
    ended: bool
    """Whether `text` ends with a special token; if not, the tokenizer's EOS is the end."""
    as_prompted: bool
    """Whether the template begins the answer with all that it prompts for an answer with."""


class ChatFormat:
    """What a tokenizer's chat template does.

    Args:
      tokenizer: with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def end(self) -> str | None:
        """The token that the template writes after an answer; None if it writes none."""
        return self._first_special(self._after_answer)[1]

    def asked(self, messages: Sequence[Message], *, tools: Any = None) -> str:
        """A conversation up to where an answer begins.

        Raises:
          RecipeError: the template refuses it.
        """
        return self._rendered(messages, tools=tools, prompt=True) + self._ignored_header

    def conversation(self, messages: Sequence[Message], *, tools: Any = None) -> Conversation:
        """A conversation whose last message is an answer.

        Raises:
          RecipeError: the template refuses it, or the answer is all there is.
        """
        if len(messages) < 2:
            raise RecipeError("a conversation in which nothing stands before the answer")
        answers = [
            index
            for index, message in enumerate(messages)
            if index and message["role"] == "assistant"
        ]
        *before, (text, start, as_prompted, ended) = [
            self._answer(messages[: index + 1], tools) for index in answers
        ]
        # A template that rewrites an answer once others follow does not write what was sampled.
        kept = [(s, len(t)) for t, s, _, _ in before if text[:start].startswith(t)]
        return Conversation(text, text[:start], tuple(kept), len(answers), ended, as_prompted)

    def unwritten(self, messages: Sequence[Message], text: str) -> Iterator[str]:
        """The role of each message, answers apart, that the template leaves out of `text`."""
        for message in messages:
            content = message["content"].strip()
            written = (
                content in text or json.dumps(content)[1:-1] in text
            )  # as results of tools are
            if message["role"] != "assistant" and not written:
                yield message["role"]

    def _answer(self, messages: Sequence[Message], tools: Any) -> tuple[str, int, bool, bool]:
        """Text through the end of the last answer, where that answer starts, and whether the start is
        what the template prompts with and the end a special token.
        """
        done = self._rendered(messages, tools=tools)
        asked = self.asked(messages[:-1], tools=tools)
        after = self._after_answer
        if not done.endswith(after):
            after = self._after(messages, tools)
        content = len(done) - len(after)
        through, end = self._first_special(after)
        start = min(_alike(done, asked), content)
        return done[: content + through], start, start == len(asked), end is not None

    def _after(self, messages: Sequence[Message], tools: Any = None) -> str:
        """What the template writes after the last answer of this conversation."""
        probe = {"role": "assistant", "content": _PROBE}
        written = self._rendered([*messages[:-1], probe], tools=tools)
        return written.rpartition(_PROBE)[2] if _PROBE in written else ""

    @cached_property
    def _frame(self) -> list[Message] | None:
        """A question that the template accepts with an answer behind it; None if it accepts neither."""
        answer = {"role": "assistant", "content": _PROBE}
        return next((frame for frame in _FRAMES if self._accepts([*frame, answer])), None)

    @cached_property
    def _after_answer(self) -> str:
        """What the template writes after the answer of a plain conversation."""
        answer = {"role": "assistant", "content": ""}
        return "" if self._frame is None else self._after([*self._frame, answer])

    @cached_property
    def _ignored_header(self) -> str:
        """What stands before an answer in a template that does not know `add_generation_prompt`.

        Without it the policy would have to write "assistant:" itself. Spaces at its end belong to the
        answer, as tokenizers have it.
        """
        if self._frame is None:
            return ""
        asked = self._rendered(self._frame)
        answered = self._rendered([*self._frame, {"role": "assistant", "content": _PROBE}])
        header = answered.removeprefix(asked).partition(_PROBE)[0]
        ignored = asked == self._rendered(self._frame, prompt=True) and answered.startswith(asked)
        return header.rstrip(" ") if ignored and header.strip() else ""

    def _first_special(self, text: str) -> tuple[int, str | None]:
        """(characters of `text` through its first special token, that token), or (0, None)."""
        for tokens in self._special_tokens:
            found = [(text.index(token), -len(token), token) for token in tokens if token in text]
            if found:
                place, _, token = min(found)
                return place + len(token), token
        return 0, None

    @cached_property
    def _special_tokens(self) -> tuple[set[str], set[str]]:
        """Special tokens, and added tokens that the tokenizer does not call special.

        Fine-tuned models often add <|im_end|> as an ordinary one. Runs of spaces may be added tokens.
        """
        added = self._tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in self._tokenizer.all_special_tokens}
        special |= {token.content for token in added if token.special}
        return special, {token.content for token in added if token.content.strip()} - special

    def _rendered(
        self, messages: Sequence[Message], *, tools: Any = None, prompt: bool = False
    ) -> str:
        try:
            written = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception as error:  # a template is somebody's program: it may raise anything
            raise RecipeError(
                "the tokenizer's chat template refuses a conversation of "
                f"{', '.join(message['role'] for message in messages) or 'no messages'}: {error}."
                f"{self._advice(messages)}"
            ) from error
        return str(written)

    def _accepts(self, messages: Sequence[Message]) -> bool:
        try:
            self._rendered(messages)
        except RecipeError:
            return False
        return True

    def _advice(self, messages: Sequence[Message]) -> str:
        """What may help: found by rendering the conversation in another way."""
        roles = [message["role"] for message in messages]
        rest = [message for message in messages if message["role"] != "system"]
        if len(rest) < len(messages) and self._accepts(rest):
            return (
                " It accepts the rest without the system message: put that text into the first user "
                "message, or leave it out"
            )
        if any(one == other for one, other in pairwise(roles)):
            return " Two messages of one role follow each other: join them into one"
        return " Change the messages, or the `chat_template` of the tokenizer"


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    both = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(both) if a != b), shortest)


def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat | None:
    """The chat format of a tokenizer, or None if it has no template."""
    return ChatFormat(tokenizer) if tokenizer.chat_template else None


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text or an answer: the tokenizer's EOS, and what its template writes."""
    chat = chat_format(tokenizer)
    ends = [tokenizer.eos_token, *([chat.end] if chat is not None and chat.end else [])]
    return list(dict.fromkeys(int(tokenizer.convert_tokens_to_ids(end)) for end in ends))  # type: ignore[arg-type]


def messages_of(value: Any, *, column: str) -> list[dict[str, Any]]:
    """Messages as templates expect them: each a role and a text, whatever else stands beside these.

    A content that is a list of text parts becomes one text, as most templates would write the list
    itself. Only a message with tool calls may have no content.

    Raises:
      RecipeError: they are anything else.
    """
    if not (isinstance(value, list | tuple) and all(map(_is_message, value))):
        raise RecipeError(
            f"{column} must be a list of objects with the texts `role` and `content`, not "
            f"{shown(value)}"
        )
    return [_plain_message(message, column) for message in value]


def _is_message(message: Any) -> bool:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    return isinstance(content, str | list) or (content is None and bool(message.get("tool_calls")))


def _plain_message(message: Message, column: str) -> dict[str, Any]:
    content = message.get("content") or ""
    parts = [content] if isinstance(content, str) else content
    texts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        kinds = [part.get("type") if isinstance(part, Mapping) else part for part in parts]
        raise RecipeError(
            f"a message in {column} has parts that are not text ({', '.join(map(str, kinds))}), and "
            "rlframe trains on text alone"
        )
    # Parquet gives every message every key: templates ask whether a key is there, not for its value.
    others = {key: value for key, value in message.items() if value is not None}
    return {**others, "content": "".join(texts)}

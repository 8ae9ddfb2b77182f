"""What a reward model reads: prompt and response, as the model was trained to read them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlframe.api import Prompt
from rlframe.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["ids", "chat", "text", "pair", "response"]

DESCRIPTIONS: dict[Form, str] = {
    "ids": "the tokens that the policy sampled",
    "chat": "prompt and response in its own chat template",
    "text": "prompt and response as one text, in its own tokens",
    "pair": "prompt and response as two segments, in its own tokens",
    "response": "the response alone, in its own tokens",
}


_PROBE = "q7f3k9x2"  # an answer that no template contains, and that no filter of one changes


class TruncationWarning(RuntimeWarning):
    """A reward model reads less than what it was given."""


@dataclass(frozen=True)
class Reader:
    """What a reward model can be given: all that its input depends on."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    embedding: int
    """Ids that it can read."""
    limit: int | None
    """Most tokens that it reads; None for no limit."""
    ids: bool
    """Whether it may read what was sampled: it is causal, or scores each token."""
    per_token: bool
    ends_with_turn: bool
    """See `ENDS_WITH_TURN`."""


@dataclass(frozen=True)
class ModelInput:
    """Writes a prompt and its response as one model's input.

    Args:
      form: "ids" joins the sampled tokens; "chat" renders the turns with the model's own template;
        "text" is one text, "pair" two segments, "response" the response alone.
      tokenizer: of the model.
      append_eos: whether "text" and "response" end with the model's EOS token.
      ends_with_turn: whether "chat" ends where the answer does, see `ENDS_WITH_TURN`.
      max_tokens: longer inputs lose their beginning, but neither a BOS nor another special token that
        stands there; None for no limit.
      asked: whether the recipe asked for this limit; if not, a warning says when it was reached.
    """

    form: Form
    tokenizer: PreTrainedTokenizerBase
    append_eos: bool
    ends_with_turn: bool
    max_tokens: int | None
    asked: bool

    def encode(
        self, prompt: Prompt, response: str, response_ids: Sequence[int]
    ) -> dict[str, list[int]]:
        """The model's input without padding: `input_ids`, and `token_type_ids` if it has segments.

        Raises:
          RecipeError: the model's template refuses the conversation.
        """
        match self.form:
            case "ids":
                return {"input_ids": [*prompt.ids, *response_ids]}
            case "chat":
                return {"input_ids": self._cut(self._chat(prompt, response))}
            case "pair":
                return self._tokenised(asked_text(prompt), response)
            case "response":
                return self._tokenised(response)
            case "text":
                return self._tokenised(_one_text(prompt, response))

    def _chat(self, prompt: Prompt, response: str) -> list[int]:
        text = self._rendered(prompt, response)
        if not self.ends_with_turn:
            return self.tokenizer.encode(text, add_special_tokens=False)
        behind = self._rendered(prompt, _PROBE).rpartition(_PROBE)[2]
        text = text.removesuffix(behind)
        if through := self._end_of_turn(behind):
            return self.tokenizer.encode(text + behind[:through], add_special_tokens=False)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, int(self.tokenizer.eos_token_id)]

    def _rendered(self, prompt: Prompt, response: str) -> str:
        turns = prompt.messages or ({"role": "user", "content": prompt.text},)
        conversation = [*map(dict, turns), {"role": "assistant", "content": response}]
        try:
            return str(self.tokenizer.apply_chat_template(conversation, tokenize=False))
        except Exception as error:  # a template raises whatever its author liked
            raise RecipeError(
                f"the chat template of the reward model refuses this conversation: {error}. It has "
                f"the roles {[turn['role'] for turn in conversation]}"
            ) from error

    def _end_of_turn(self, behind: str) -> int:
        """Characters through the first special token of what follows an answer; 0 without one."""
        added = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in self.tokenizer.all_special_tokens}
        special |= {token.content for token in added if token.special}
        found = [(behind.index(token), -len(token)) for token in special if token in behind]
        place, length = min(found, default=(0, 0))  # of several that begin there, the longest
        return place - length

    def _tokenised(self, *texts: str) -> dict[str, list[int]]:
        tokenize, end = self.tokenizer, int(self.append_eos)
        found = tokenize(*texts, return_attention_mask=False, verbose=False)
        if self.max_tokens is not None and len(found["input_ids"]) + end > self.max_tokens:
            self._warn(len(found["input_ids"]) + end)
            most = self.max_tokens - end
            found = tokenize(*texts, truncation=True, max_length=most, return_attention_mask=False)
        fields = {name: list(ids) for name, ids in found.items()}
        if self.form == "pair":
            return fields
        ids = fields["input_ids"]
        while len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            for field in fields.values():  # the text brought a BOS of its own
                del field[0]
        if self.append_eos and ids[-1:] != [self.tokenizer.eos_token_id]:
            ids.append(int(self.tokenizer.eos_token_id))
            for name in fields.keys() - {"input_ids"}:
                fields[name].append(0)
        return fields

    def _cut(self, ids: list[int]) -> list[int]:
        limit = self.max_tokens
        if limit is None or len(ids) <= limit:
            return ids
        self._warn(len(ids))
        front = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
        return [*front, *ids[len(ids) - limit + len(front) :]]

    def _warn(self, tokens: int) -> None:
        if not self.asked:
            warnings.warn(
                f"an input of {tokens} tokens was longer than the {self.max_tokens} that the reward "
                "model reads, and lost its beginning. Set `max_tokens` of the reward to accept that, "
                "or shorten prompts or responses",
                TruncationWarning,
                stacklevel=2,
            )


def asked_text(prompt: Prompt) -> str:
    """What was asked, without anybody's template: of a chat, the contents of its turns."""
    if prompt.messages is None:
        return prompt.text
    return "\n".join(str(turn["content"]) for turn in prompt.messages)


def _one_text(prompt: Prompt, response: str) -> str:
    if prompt.messages is None:
        return prompt.text + response  # a plain response continues its prompt
    return f"{asked_text(prompt)}\n{response}"


def input_of(
    reader: Reader,
    *,
    policy: PreTrainedTokenizerBase,
    form: Form | Literal["auto"],
    append_eos: bool,
    max_tokens: int | None,
) -> ModelInput:
    """How a reward model is asked.

    Where the recipe leaves it open: the sampled tokens, if they mean the same to the model and its
    template is the policy's; else the model's own template; without one, plain text.

    Raises:
      RecipeError: it cannot be asked as the recipe says.
    """
    own = reader.tokenizer
    missing = _missing_tokens(policy, reader)
    if form == "auto":
        same = own.chat_template in (None, policy.chat_template)
        fallback: Form = "text" if own.chat_template is None else "chat"
        form = "ids" if reader.ids and not missing and same else fallback
    _refuse(reader, form, missing)
    if form == "ids" and max_tokens is not None:
        raise RecipeError(
            "`max_tokens` shortens text, but this model reads the sampled tokens. Leave it out"
        )
    if append_eos and (form not in ("text", "response") or own.eos_token_id is None):
        raise RecipeError(
            "`append_eos` goes with `input: text` or `input: response`, and a tokenizer with an EOS"
        )
    return ModelInput(
        form=form,
        tokenizer=own,
        append_eos=append_eos or (reader.ends_with_turn and form == "text"),
        ends_with_turn=reader.ends_with_turn,
        max_tokens=max_tokens or reader.limit,
        asked=max_tokens is not None,
    )


def _missing_tokens(policy: PreTrainedTokenizerBase, reader: Reader) -> list[str]:
    """The policy's tokens that the model knows by another number, or not at all.

    Tokens that the model has beyond those of the policy do no harm.
    """
    theirs = reader.tokenizer.get_vocab()
    return [
        token
        for token, number in policy.get_vocab().items()
        if theirs.get(token) != number or number >= reader.embedding
    ]


def _refuse(reader: Reader, form: Form, missing: list[str]) -> None:
    """Raise a RecipeError where a model cannot read this form."""
    which, tokenizer = f"reward model {reader.name!r}", reader.tokenizer
    if form == "ids" and not reader.ids:
        raise RecipeError(
            f"{which} is not a causal model with a score head, which could read the policy's tokens; "
            "use `input: text`"
        )
    if form == "ids" and missing:
        raise RecipeError(
            f"{which} has another vocabulary than the policy ({len(tokenizer)} tokens, an embedding "
            f"of {reader.embedding}): {len(missing)} of the policy's tokens, such as "
            f"{', '.join(map(repr, missing[:3]))}, have another number in it or none. Use "
            "`input: chat` or `input: text`"
        )
    if form != "ids" and reader.per_token:
        raise RecipeError(
            f"{which} scores each token, so it must read the tokens that the policy samples, and its "
            "vocabulary is another. Use a model with the policy's tokenizer"
        )
    if form == "chat" and tokenizer.chat_template is None:
        raise RecipeError(
            f"{which} has no chat template; use `input: text`, `input: pair` or `input: response`"
        )

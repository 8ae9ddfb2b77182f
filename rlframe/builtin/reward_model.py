"""The score of a trained reward model, or of any classifier, asked in the format that it knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, PositiveInt

from rlframe.api import Context, ModelName, PluginConfig, RewardBatch, RewardProvider
from rlframe.builtin.classifier import Classifier, Output
from rlframe.builtin.reward_input import DESCRIPTIONS, ModelInput, Reader, input_of
from rlframe.errors import RecipeError


class RewardModelConfig(PluginConfig):
    model: ModelName = Field(
        "stage:reward_model", description="a path or hub id, or the reward model of this recipe"
    )
    input: Literal["auto", "ids", "chat", "text", "pair", "response"] = Field(
        "auto",
        description="`ids`: the sampled tokens. `chat`: prompt and response in the model's own chat "
        "template. `text`: one text. `pair`: prompt and response as two segments. `response`: the "
        "response alone. `auto`: ids if the model has the policy's vocabulary and template, else chat "
        "if it has a template, else text",
    )
    label: int | str | None = Field(
        None, description="number or name of the output that is the reward, if there are several"
    )
    output: Output = Field(
        "logit",
        description="what is read of it: the number before any activation, or the probability of the "
        "label among all, or its logarithm",
    )
    append_eos: bool = Field(
        False, description="with text and response: end the input with the model's EOS token"
    )
    max_tokens: PositiveInt | None = Field(
        None, description="longer inputs lose their beginning; not with ids"
    )
    batch_tokens: PositiveInt = Field(8192, description="padded tokens in one forward pass")


class RewardModel(RewardProvider[RewardModelConfig]):
    """A transformers classifier's output for a prompt and its response.

    A sequence classifier gives one score, a token classifier one for each sampled token. A causal
    model is read at the last token of its input, whatever that token is.
    """

    def __init__(self, config: RewardModelConfig, context: Context) -> None:
        super().__init__(config, context)
        self._classifier = Classifier.of(config.model, context)
        self._label = self._classifier.label(config.label)
        self._input = input_for(self._classifier.reader, config, context)
        self.model = context.prepare(self._classifier.load(context.dtype))

    @classmethod
    def check(cls, config: RewardModelConfig, context: Context) -> None:
        if config.model.startswith("stage:"):  # the run knows what that stage will leave
            return
        classifier = Classifier.of(config.model, context)
        classifier.label(config.label)
        check_input(classifier.reader, config, context)

    def notes(self) -> list[str]:
        return [f"the reward model {self.config.model} reads {DESCRIPTIONS[self._input.form]}"]

    def score(self, batch: RewardBatch) -> list[float] | list[list[float]]:
        asked = zip(batch.prompts, batch.response_texts, batch.response_ids, strict=True)
        encoded = [self._input.encode(prompt, text, ids) for prompt, text, ids in asked]
        found: list[Any] = [None] * len(encoded)
        for rows in _by_length([len(e["input_ids"]) for e in encoded], self.config.batch_tokens):
            for row, score in zip(rows, self._scores([encoded[r] for r in rows]), strict=True):
                found[row] = score
        if not self._classifier.per_token:
            return found
        return [row[-len(ids) :] for row, ids in zip(found, batch.response_ids, strict=True)]

    def _scores(self, encoded: list[dict[str, list[int]]]) -> list[Any]:
        """The score of each input, or the scores of all of its tokens."""
        import torch

        reader = self._classifier
        with torch.no_grad():
            logits = reader.logits(self.model, encoded, self.context.device)
            scores = reader.read(logits, self._label, self.config.output).tolist()
        if not reader.per_token:
            return list(scores)
        return [row[: len(e["input_ids"])] for row, e in zip(scores, encoded, strict=True)]


def input_for(reader: Reader, config: RewardModelConfig, context: Context) -> ModelInput:
    """How a model is asked by these keys of a recipe."""
    return input_of(
        reader,
        policy=context.tokenizer,
        form=config.input,
        append_eos=config.append_eos,
        max_tokens=config.max_tokens,
    )


def check_input(reader: Reader, config: RewardModelConfig, context: Context) -> ModelInput:
    """How a model is asked by these keys, after making sure that it reads every prompt of the run with
    a response of full length.

    Raises:
      RecipeError: it cannot be asked so, or does not read that much, or its template refuses a prompt.
    """
    given = input_for(reader, config, context)
    limit, response = reader.limit, context.max_new_tokens
    if limit is None:
        return given
    if given.asked and given.max_tokens is not None and given.max_tokens > limit:
        raise RecipeError(
            f"max_tokens is {given.max_tokens}, but reward model {reader.name!r} reads {limit} "
            "tokens"
        )
    whole = replace(given, max_tokens=None)
    longest = max((len(whole.encode(p, "", ())["input_ids"]) for p in context.prompts()), default=0)
    if longest + response > limit and not given.asked:
        advice = (
            "" if given.form == "ids" else ", set `max_tokens` to let inputs lose their beginning"
        )
        raise RecipeError(
            f"reward model {reader.name!r} reads {limit} tokens, but the longest prompt has "
            f"{longest} in it and a response up to {response} (rollout.max_new_tokens). Shorten "
            f"them{advice}, or use another model"
        )
    return given


def _by_length(lengths: list[int], budget: int) -> list[list[int]]:
    """Row numbers in batches of similar length, at most `budget` padded tokens each."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[row] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches

"""Auxiliary losses on data of their own: what the policy should not forget while it is aligned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat

from rlframe.api import (
    AuxiliaryLoss,
    Context,
    DataName,
    LossTerm,
    Needs,
    PluginConfig,
    PolicyView,
    TokenBatch,
    TokenExample,
)
from rlframe.errors import RecipeError


def _next_token_loss(policy: PolicyView, batch: TokenBatch) -> LossTerm:
    """-Σ log π over the tokens that count, in nats."""
    logprobs = policy.logprobs(batch.tokens, batch.mask)  # [B, L-1]
    return LossTerm(total=-logprobs[batch.mask].sum(), count=batch.mask.sum())


class SFTConfig(PluginConfig):
    data: DataName = Field(description="name of a data set with prompts and responses, or messages")
    learn: Literal["all", "last"] = Field(
        "all", description="of a conversation: from every answer of the assistant, or the last one"
    )
    coefficient: NonNegativeFloat = 1.0
    examples_per_step: int = Field(
        16, gt=0, le=1_000_000, description="in each optimiser step, over all ranks"
    )


def _demonstrations(config: SFTConfig, context: Context) -> list[TokenExample]:
    """The examples of a data set, each with something to learn.

    Raises:
      RecipeError: one has none.
    """
    examples = [context.tokenize(row) for row in context.training_rows(config.data)]
    if any(example.context_tokens == 0 for example in examples):
        raise RecipeError(
            f"data set {config.data!r} has rows without a prompt; loss 'sft' needs prompt and "
            "response, or messages. For plain text use `type: ptx`"
        )
    if config.learn == "last":
        examples = [example.last_span() for example in examples]
    return _learnable(examples, config.data)


def _learnable(examples: list[TokenExample], data: str) -> list[TokenExample]:
    """The examples, if each has a token to learn.

    Raises:
      RecipeError: some have none.
    """
    lost = [example for example in examples if not any(example.counts())]
    if lost:
        raise RecipeError(
            f"{len(lost)} of {len(examples)} examples of data set {data!r} have no token to learn, the "
            f"first with ids {list(lost[0].ids[:8])}: an empty text or response. Leave them out"
        )
    return examples


class SFT(AuxiliaryLoss[SFTConfig]):
    """Next-token loss on the responses of demonstrations; their prompts are context only."""

    @property
    def coefficient(self) -> float:
        return self.config.coefficient

    @property
    def examples_per_step(self) -> int:
        return self.config.examples_per_step

    @classmethod
    def needs(cls, config: SFTConfig) -> Needs:
        return Needs(demonstrations=frozenset({config.data}))

    @classmethod
    def check(cls, config: SFTConfig, context: Context) -> None:
        _demonstrations(config, context)

    def examples(self) -> list[TokenExample]:
        return _demonstrations(self.config, self.context)

    def loss(self, policy: PolicyView, batch: TokenBatch) -> LossTerm:
        return _next_token_loss(policy, batch)


class PTXConfig(PluginConfig):
    data: DataName = Field(description="name of a data set")
    gamma: NonNegativeFloat = Field(
        description="coefficient; both losses are means per token, so 1 weighs them alike"
    )
    examples_per_step: int = Field(
        16, gt=0, le=1_000_000, description="in each optimiser step, over all ranks"
    )


def _texts(config: PTXConfig, context: Context) -> list[TokenExample]:
    """The whole texts of a data set, each with something to learn."""
    rows = context.training_rows(config.data)
    examples = [TokenExample(context.tokenize(row).ids, 0) for row in rows]
    return _learnable(examples, config.data)


class PTX(AuxiliaryLoss[PTXConfig]):
    """Next-token loss on all tokens of pretraining text (Ouyang et al. 2022, arXiv 2203.02155, eq. 2).

    The paper's gamma of 27.8 multiplies a loss normalised in its own way; here both terms are means
    over their tokens, and values below 1 are usual.
    """

    @property
    def coefficient(self) -> float:
        return self.config.gamma

    @property
    def examples_per_step(self) -> int:
        return self.config.examples_per_step

    @classmethod
    def needs(cls, config: PTXConfig) -> Needs:
        return Needs(texts=frozenset({config.data}))

    @classmethod
    def check(cls, config: PTXConfig, context: Context) -> None:
        _texts(config, context)

    def examples(self) -> list[TokenExample]:
        return _texts(self.config, self.context)

    def loss(self, policy: PolicyView, batch: TokenBatch) -> LossTerm:
        return _next_token_loss(policy, batch)

"""Auxiliary losses: so that the policy does not forget while it is aligned, or stop exploring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from torch import Tensor


def _next_token_loss(policy: PolicyView, batch: TokenBatch, *, smoothing: float) -> LossTerm:
    """-Σ log π over the tokens that count, in nats; with `smoothing`, of smoothed targets."""
    from rlframe.functional.losses import smoothed  # torch: only when training

    def likelihood(logprobs: Tensor, targets: Tensor) -> Tensor:
        real = policy.has_token(logprobs)
        return smoothed(logprobs, targets, epsilon=smoothing, has_token=real)

    if smoothing:
        found = policy.per_token(likelihood, batch.tokens, batch.mask)
    else:  # the same number in less time: the distribution is not needed
        found = policy.logprobs(batch.tokens, batch.mask)
    return LossTerm(total=-found[batch.mask].sum(), count=batch.mask.sum())  # of [B, L-1]


LabelSmoothing = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="share of the target that is spread evenly over the vocabulary; 0.1 is usual",
    ),
]


class SFTConfig(PluginConfig):
    data: DataName = Field(description="name of a data set with prompts and responses, or messages")
    learn: Literal["all", "last"] = Field(
        "all", description="of a conversation: from every answer of the assistant, or the last one"
    )
    coefficient: NonNegativeFloat = 1.0
    examples_per_step: int = Field(
        16, gt=0, le=1_000_000, description="in each optimiser step, over all ranks"
    )
    label_smoothing: LabelSmoothing = 0.0


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
        return _next_token_loss(policy, batch, smoothing=self.config.label_smoothing)


class PTXConfig(PluginConfig):
    data: DataName = Field(description="name of a data set")
    gamma: NonNegativeFloat = Field(
        description="coefficient; both losses are means per token, so 1 weighs them alike"
    )
    examples_per_step: int = Field(
        16, gt=0, le=1_000_000, description="in each optimiser step, over all ranks"
    )
    label_smoothing: LabelSmoothing = 0.0


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
        return _next_token_loss(policy, batch, smoothing=self.config.label_smoothing)


class EntropyBonusConfig(PluginConfig):
    coefficient: NonNegativeFloat = Field(
        0.01, description="of the entropy in nats per token; Mnih et al. 2016 have 0.01"
    )


class EntropyBonus(AuxiliaryLoss[EntropyBonusConfig]):
    """Minus the mean entropy of the policy at the response tokens of the rollout, at temperature 1.

        -1/N Σ_t H(π(· | s_t))        H(π) = -Σ_v π(v) log π(v)

    A policy that is paid for its entropy stays away from early determinism (Mnih et al. 2016,
    "Asynchronous Methods for Deep RL", arXiv 1602.01783, section 4). The gradient is that of the
    entropy at the states which were visited, not of how often they are visited.
    """

    @property
    def coefficient(self) -> float:
        return self.config.coefficient

    def loss(self, policy: PolicyView, batch: TokenBatch) -> LossTerm:
        found = policy.per_token(_negative_entropy, batch.tokens, batch.mask)  # [B, L-1]
        return LossTerm(total=found[batch.mask].sum(), count=batch.mask.sum())


def _negative_entropy(logprobs: Tensor, _: Tensor) -> Tensor:
    """Σ_v π log π of each row, in nats."""
    return (logprobs.exp() * logprobs).sum(-1)

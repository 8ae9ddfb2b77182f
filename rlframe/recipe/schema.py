"""The recipe's keys: types, units, ranges, defaults. Frozen; an unknown key is an error.

Components (data generators, rewards, KL controller, losses, advantages) are named by `type`; the keys
beside it belong to the component and are validated by its own config, see `load.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from rlframe.api.component import ComponentSpec, RewardSpec
from rlframe.api.contract import HIGHEST, LOWEST
from rlframe.recipe.data import DATA, DataNames, Dataset, Prompts
from rlframe.recipe.section import Count, RecipeSection, Share
from rlframe.types import OnNone


class NewTokenizer(RecipeSection):
    """A byte-level BPE tokenizer, trained on a data set of the recipe."""

    data: str = Field(description="name of a data set")
    vocab_size: int = Field(
        ge=260, le=1_000_000, description="tokens, with <pad>, <bos>, <eos> and 256 bytes"
    )
    lowercase: bool = False


class NewModel(RecipeSection):
    """A language model with random weights, from a transformers config."""

    architecture: dict[str, Any] = Field(
        description="`model_type` and any keys of that transformers config; the vocabulary comes from "
        "the tokenizer"
    )
    tokenizer: NewTokenizer | str = Field(description="a new tokenizer, or a path or hub id of one")


class Critic(RecipeSection):
    """The value model."""

    initial: str = Field("policy", description="policy, stage:reward_model, a path or a hub id")
    head: Literal["zero", "normal", "keep"] = Field(
        "zero", description="weights of the value head: 0, N(0, 1/(d+1)), or those of `initial`"
    )
    shared: bool = Field(False, description="a value head on the policy's own trunk")
    learning_rate: PositiveFloat | None = Field(None, description="that of the policy if left out")


class Lora(RecipeSection):
    """Train adapters of low rank in PPO instead of the policy's weights. The reference is then the
    policy without them, and no second model. The other stages train all weights.
    """

    rank: Count = Field(16, description="of each adapter")
    alpha: PositiveInt = Field(32, description="adapters are scaled by alpha / rank")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="every linear layer but the head, or names as in `[q_proj, v_proj]`",
    )

    @model_validator(mode="after")
    def _some_target(self) -> Lora:
        if not self.targets:
            raise ValueError("targets: name at least one layer, or write all-linear")
        return self


class Models(RecipeSection):
    """Which models take part."""

    policy: str | NewModel = Field(description="a path, a hub id, or a new model")
    reference: str | None = Field(None, description="the policy as PPO starts, if left out")
    critic: Critic | None = Field(
        Critic(), description="null where the advantage estimator has no critic"
    )
    lora: Lora | None = Field(None, description="train adapters of the policy, in PPO")
    pad_token: str | None = Field(
        None,
        description="padding token of the saved tokenizer, which other programs may want; a new one "
        "gets a row in every model. None is needed here",
    )

    @property
    def own_critic(self) -> Critic | None:
        """The critic, if there is one and it is no head on the policy's trunk."""
        return None if self.critic is None or self.critic.shared else self.critic


class FineTuning(RecipeSection):
    """What the supervised stages have in common; they run on transformers.Trainer."""

    data: DataNames = Field(description=DATA)
    epochs: Annotated[float, Field(gt=0, le=100_000)] = 1.0
    batch_size: Count = Field(32, description="examples (or pairs) an optimiser step")
    learning_rate: PositiveFloat = 2e-5
    warmup_share: Share = 0.05
    weight_decay: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = Field(
        512,
        description="longer examples are cut: prompts at their beginning, answers and texts at the end",
    )


class SFTStage(FineTuning):
    """Supervised fine-tuning of the policy, on text, prompt and response, or messages."""

    learn: Literal["all", "last"] = Field(
        "all", description="of a conversation: from every answer of the assistant, or the last one"
    )
    pack: bool = Field(
        False,
        description="fill rows of max_tokens with several examples, which do not attend to each other: "
        "little padding, and batches that hardly differ in length; batch_size counts rows",
    )


class RewardModelStage(FineTuning):
    """A reward model from pairs (chosen and rejected), or from labelled text paired at random."""

    initial: str = Field("policy", description="policy (after SFT), a path or a hub id")
    preferred_label: bool | int | str = Field(1, description="with labels: the one that wins")
    pairs: Count | None = Field(None, description="with labels: pairs to draw; all if left out")
    max_equal_pairs: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05,
        description="share of pairs that may be the same tokens on both sides; more are refused",
    )
    center: NonNegativeFloat = Field(
        0.0, description="weight of the squared sum of both scores, which keeps their mean near 0"
    )


class SamplerSpec(ComponentSpec):
    """The sampler."""

    kind: ClassVar[str] = "samplers"
    type: str = "builtin"


class RolloutSection(RecipeSection):
    """How responses are sampled."""

    sampler: SamplerSpec = Field(SamplerSpec(), description="what writes the responses")
    reproducible: bool = Field(
        True, description="whether equal seeds must give equal responses on any number of processes"
    )
    prompts_per_update: Count = 64
    samples_per_prompt: Count = 1
    max_new_tokens: Count = 64
    temperature: PositiveFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    generation_batch: Count | None = Field(
        None, description="responses sampled at a time on a rank; all if left out"
    )


class TransformSpec(ComponentSpec):
    """A transform of a reward."""

    kind: ClassVar[str] = "reward_transforms"


class RewardEntry(RewardSpec):
    """One named reward of the mix."""

    weight: float = 1.0
    time_limit_seconds: Annotated[float, Field(gt=0, le=10_000_000)] | None = Field(
        None,
        description="for one call on a rollout, hook plugins around it and the search for a response "
        "at fault included: longer ends the run, which may hang otherwise",
    )
    transforms: tuple[TransformSpec, ...] = Field(
        (), description="what is done to the score before the weight, in this order"
    )
    gates: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None,
        description="names of the rewards that its gate multiplies; all without a gate, if left out",
    )
    on_none: OnNone = Field(
        "skip",
        description="where it returns None: it adds nothing, or nothing is learned from the response",
    )


class KLControllerSpec(ComponentSpec):
    """The KL controller."""

    kind: ClassVar[str] = "kl_controllers"


class LossSpec(ComponentSpec):
    """An auxiliary loss."""

    kind: ClassVar[str] = "auxiliary_losses"


class AdvantageSpec(ComponentSpec):
    """The advantage estimator."""

    kind: ClassVar[str] = "advantage_estimators"
    type: str = "gae"


class PolicyLossSpec(ComponentSpec):
    """The policy's loss."""

    kind: ClassVar[str] = "policy_losses"
    type: str = "clip"


class ValueLossSpec(ComponentSpec):
    """The critic's loss."""

    kind: ClassVar[str] = "value_losses"
    type: str = "clipped"
    coefficient: NonNegativeFloat = Field(
        0.1, description="what the critic's loss is multiplied with"
    )


class Algorithm(RecipeSection):
    """How PPO, or a relative of it, learns from a rollout."""

    advantages: AdvantageSpec = AdvantageSpec()
    policy_loss: PolicyLossSpec = PolicyLossSpec()
    value_loss: ValueLossSpec | None = Field(
        ValueLossSpec(), description="null where the advantage estimator has no critic"
    )
    importance_correction: Literal["none", "truncate", "mask"] = Field(
        "none", description="weigh each token's loss by pi / q, where q is what was sampled from"
    )
    importance_limit: Annotated[float, Field(ge=1)] | None = Field(
        None, description="largest weight, or the range of it for `mask`; 2 if left out"
    )
    reduction: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="every token weighs the same, or every response, or a token 1 / max_new_tokens",
    )
    whiten_advantages: bool | None = Field(
        None, description="over all ranks; as the estimator says, if left out"
    )
    whiten_rewards: bool = Field(False, description="scale token rewards to unit variance")


class KL(RecipeSection):
    """The KL penalty for leaving the reference model."""

    controller: KLControllerSpec
    estimator: Literal["k1", "k2", "k3", "abs", "full"] = "k1"
    placement: Literal["reward", "loss"] = Field(
        "reward", description="subtract beta * KL from each token's reward, or add it to the loss"
    )
    minimum: NonNegativeFloat = Field(LOWEST, description="lower bound of beta")
    maximum: PositiveFloat = Field(HIGHEST, description="upper bound of beta")

    @model_validator(mode="after")
    def _consistent(self) -> KL:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        if self.placement == "loss" and self.estimator == "full":
            raise ValueError(
                "estimator 'full' measures the rollout; as a loss use k1, k2, k3 or abs"
            )
        return self


class PPO(RecipeSection):
    """The optimisation of PPO."""

    updates: PositiveInt = Field(description="rollouts to learn from")
    epochs: Count = Field(4, description="passes over each rollout")
    minibatches: Count = Field(1, description="optimiser steps a pass")
    microbatch_tokens: PositiveInt = Field(4096, description="padded tokens in one forward pass")
    logits_chunk: PositiveInt = Field(512, description="positions whose logits exist at a time")
    learning_rate: PositiveFloat = 3e-6
    warmup_updates: NonNegativeInt = 0
    decay: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    stop_approx_kl: PositiveFloat | None = Field(
        None, description="end a rollout's passes when 1/2 E[(log ratio)²] exceeds this, in nats²"
    )
    max_bad_steps: PositiveInt = Field(3, description="skipped steps in a row that end the run")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay an update of a moving average of the policy's weights, saved as ppo/ema",
    )


class Evaluation(RecipeSection):
    """Evaluation on held-out prompts."""

    prompts: Count = Field(
        16, description="held-out prompts that are answered; all, with a note, if there are fewer"
    )
    every: PositiveInt | None = Field(None, description="updates; before and after if left out")
    table_rows: Count = 8


class Checkpoints(RecipeSection):
    """What a killed run resumes from; `rlframe resume RUN`."""

    every: PositiveInt | None = Field(
        None, description="updates (of a supervised stage: optimiser steps) between two"
    )
    every_minutes: PositiveFloat | None = Field(
        10.0, description="wall time between two, whatever `every` says"
    )
    keep_last: PositiveInt = Field(2, description="the newest ones stay, older ones go")
    keep_best: NonNegativeInt = Field(
        1, description="so many with the highest held-out score stay too, where it is looked at"
    )
    stop_after_minutes: PositiveFloat | None = Field(
        None, description="wall time after which the run saves a checkpoint and ends"
    )


class Runtime(RecipeSection):
    """The machine, and the engine that spreads the models over its processes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="torch threads of a process; torch's choice if left out"
    )
    strategy: Literal["auto", "ddp", "deepspeed", "fsdp"] = Field(
        "auto", description="what `accelerate launch` says, else ddp"
    )
    zero_stage: Literal[1, 2, 3] | None = Field(
        None,
        description="of deepspeed: 1 shards the optimiser, 2 (default) gradients too, 3 weights too",
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="of deepspeed and fsdp: what waits in the memory of the CPU"
    )
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        "float32", description="bfloat16 computes in it and keeps float32 weights"
    )
    frozen: Literal["replicate", "shard", "offload"] = Field(
        "replicate",
        description="reference and reward models while others learn: whole, as a share on each "
        "process, or in the memory of the CPU",
    )
    deepspeed_config: str | None = Field(
        None,
        description="path of a DeepSpeed JSON file; its keys that the recipe decides must agree",
    )

    @model_validator(mode="after")
    def _of_one_strategy(self) -> Runtime:
        if self.strategy in ("ddp", "fsdp"):
            for key in ("zero_stage", "deepspeed_config"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is a setting of deepspeed, not of {self.strategy}")
        if self.strategy == "ddp" and self.offload != "none":
            raise ValueError("offload needs deepspeed or fsdp; ddp offloads nothing")
        return self


class HookSpec(ComponentSpec):
    """A plugin that takes part in moments of the run; the first one named is the outermost."""

    kind: ClassVar[str] = "hooks"


class Recipe(RecipeSection):
    """A whole run. Each of its stages runs if its section is present, in the order of these keys."""

    version: Literal[1]
    requires: tuple[str, ...] = Field(
        (), description='plugins that must be installed, as pip takes them: `"rlframe-pid>=0.2"`'
    )
    # NumPy's limit, which transformers' Trainer and many plugins meet. What is computed from it stays
    # within torch's 64 bits: see `engine.batching.Schedule` and `stages.supervised`.
    seed: int = Field(0, ge=0, lt=2**32, description="of everything that is drawn at random")
    data: dict[str, Dataset] = Field(default_factory=dict)
    model: Models
    sft: SFTStage | None = None
    reward_model: RewardModelStage | None = None
    prompts: Prompts | None = None
    rollout: RolloutSection = RolloutSection()
    rewards: dict[str, RewardEntry] = Field(default_factory=dict)
    kl: KL | None = None
    losses: dict[str, LossSpec] = Field(default_factory=dict)
    algorithm: Algorithm = Algorithm()
    hooks: dict[str, HookSpec] = Field(default_factory=dict)
    ppo: PPO | None = None
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    runtime: Runtime = Runtime()

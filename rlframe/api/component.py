"""Base classes of the components that a recipe names, and what they are built with.

A component is a class with a pydantic config. The author writes the config's fields and the one or two
methods of the kind; the entry point's name becomes the recipe's `type:`. torch is imported for
annotations alone, so that a recipe is validated without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rlframe.api.pretrained import PretrainedModel
from rlframe.types import (
    KLMeasurement,
    KLState,
    LossTerm,
    PolicyView,
    Prompt,
    RewardBatch,
    Row,
    TokenBatch,
    TokenExample,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

API_VERSION = (1, 0)
"""Version of this contract: a plugin of the same major and no newer minor version works."""


class Section(BaseModel):
    """A mapping of a recipe: frozen, unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_boolean_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic reads true as 1 where a number is wanted."""
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field is not None and not _takes_bool(field.annotation):
            raise PydanticCustomError("bool", "Input should not be true or false")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _an_integer_has_64_bits(cls, value: Any) -> Any:
        """Whatever an integer is for, it ends up in a tensor, a seed or a file, and overflows there."""
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise PydanticCustomError("range", "Input should be less than 2^63")
        return value


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(part) for part in get_args(annotation))


class PluginConfig(Section):
    """Base of every component's config."""


class ComponentSpec(Section):
    """A component as a recipe names it: `type`, and the keys of that component's own config."""

    model_config = ConfigDict(extra="allow")
    kind: ClassVar[str]

    type: str

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the component's config."""
        return dict(self.model_extra or {})


class RewardSpec(ComponentSpec):
    """A reward provider inside another one's config, validated as if it stood in the recipe."""

    kind: ClassVar[str] = "reward_providers"


@dataclass(frozen=True)
class Context:
    """What the engine gives a component when it is built."""

    device: torch.device
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase
    seed: int
    rank: int
    world_size: int
    samples_per_prompt: int
    columns: frozenset[str]
    """Columns that every row of the prompts' data set has."""
    rewards: frozenset[str]
    """What the recipe calls its rewards."""
    prepare: Callable[[Any], Any]
    """Place a frozen torch module on this rank: `module = context.prepare(module)`.

    A reward's is whole on the device whenever the reward is asked, and may wait elsewhere meanwhile
    (`runtime.frozen`); that of any other component stays.
    """
    model_path: Callable[[str], str]
    """Turn a recipe's model name into a path or hub id; `stage:NAME` is a stage's result."""
    pretrained: Callable[[str], PretrainedModel]
    """Open a saved model: a path, a hub id or `stage:NAME`. The way to any model, see there."""
    training_rows: Callable[[str], Sequence[Row]]
    """The rows of a data set of the recipe, without its held-out split."""
    tokenize: Callable[[Row], TokenExample]
    """A row as tokens: a text, prompt and response, or a conversation, with its end. Learned from are a
    text, or every answer; `TokenExample.last_span` leaves the last one."""
    build_reward: Callable[[RewardSpec], RewardProvider[Any]]
    """Build a nested reward provider."""
    tokenizer_of: Callable[[str], PreTrainedTokenizerBase]
    """The tokenizer that goes with a recipe's model name, a copy to keep. Of `stage:NAME` it is that
    which the stage will save, so that it can be asked for before any stage has run.
    """
    prompts: Callable[[], Sequence[Prompt]]
    """All prompts of PPO, the held-out ones included."""
    max_new_tokens: int
    """Longest response, in the policy's tokens."""


@dataclass(frozen=True)
class Needs:
    """What a component needs of the recipe around it, known from its config alone."""

    samples_per_prompt: int = 1
    """At least so many responses to each prompt."""
    columns: frozenset[str] = frozenset()
    """Columns of the prompts' data, beside those that config fields name as `ColumnName`."""
    texts: frozenset[str] = frozenset()
    """Data sets of which every row can become an example: a text, a prompt with its response, or a
    conversation."""
    demonstrations: frozenset[str] = frozenset()
    """The same of those in which a text alone is too little."""


C = TypeVar("C", bound=PluginConfig)


class Component(Generic[C]):
    """What every kind shares: config, context and a state that checkpoints keep.

    `Config` is taken from the type argument: `class Length(RewardProvider[LengthConfig])`.
    """

    Config: ClassVar[type[PluginConfig]] = PluginConfig
    rlframe_api: ClassVar[tuple[int, int]] = API_VERSION
    reserved: ClassVar[frozenset[str]] = frozenset({"type"})
    """Keys that belong to the recipe, so that no config may have a field of that name."""

    config: C
    context: Context
    name: str = ""
    """What the recipe calls this instance, set by the engine once it is built."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__dict__.get("__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, PluginConfig):
                    cls.Config = argument

    def __init__(self, config: C, context: Context) -> None:
        self.config = config
        self.context = context

    @classmethod
    def needs(cls, config: C) -> Needs:
        """What the recipe must have for this component; `rlframe validate` checks it.

        Names that stand in the config need no line here: declare their fields as `DataName`,
        `ModelName`, `ColumnName` or `RewardName`.
        """
        return Needs()

    @classmethod
    def check(cls, config: C, context: Context) -> None:
        """Look for mistakes that can be seen before any stage trains: files, vocabularies, columns.

        Called once before the first stage, when results of stages do not exist yet.

        Raises:
          RecipeError: what is wrong and what to do; the recipe path is put in front.
        """

    def notes(self) -> Sequence[str]:
        """What a user should be told of this instance once, when the run has built it: sentences."""
        return ()

    def state_dict(self) -> Mapping[str, Any]:
        """JSON-serialisable state; empty for a component that remembers nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state but was given {sorted(state)}")


class DataGenerator(Component[C]):
    """Makes a data set.

    What it makes depends on its config alone, so that every rank reads the same rows: it is asked
    through the class and never built, since the tokenizer, and with it the context, may come from
    the rows. Randomness is seeded by a key of the config; equal configs give equal rows everywhere.
    """

    @classmethod
    def rows(cls, config: C) -> Sequence[Row]:
        """The rows to train on; the data set's `columns` say which column holds what.

        Raises:
          Whatever it likes: the run stops before anything trains and names this generator.
        """
        raise NotImplementedError

    @classmethod
    def heldout_rows(cls, config: C) -> Sequence[Row]:
        """Rows that no stage trains on; none, and the data set's `heldout` share of `rows` is kept.

        A row of `rows` that asks what one of these asks is left out of training.
        """
        return ()


class RewardProvider(Component[C]):
    """Judges finished responses."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {"type", "weight", "time_limit_seconds", "normalize"}
    )

    cheap_to_repeat: bool = False
    """Whether `score` costs so little that, once it has raised for a batch, it may be called again for
    each prompt to find the response at fault. Not for a paid service. A provider that asks another one
    sets it when it is built, to what that one says."""

    def score(self, batch: RewardBatch) -> Sequence[float | Sequence[float] | None]:
        """One value a response, higher is better.

        Called once a rollout on every rank with that rank's share of the batch, without gradient.
        It must not change `batch`, draw from global random state, or call a collective.

        Returns:
          A list or tuple, or an array or tensor of one dimension, with `len(batch)` entries in order.
          Each is a finite number (True counts as 1, False as 0); or a row of numbers, one for each
          sampled token of that response, as a list, tuple, array or tensor; or None for "cannot judge
          this one", which stops the run, since nothing becomes 0 silently. A mapping, a set, an
          iterator, text, a rectangle of two dimensions and anything with a gradient are refused.
          `rlframe.api.token_scores` reads an answer so, for a provider that asks another one.

        Raises:
          Whatever it likes: the run stops and names this component and its distribution.
        """
        raise NotImplementedError

    def combine(self, total: Tensor, values: Tensor, batch: RewardBatch) -> Tensor:
        """Join this reward to the sum of those before it in the recipe; the default adds.

        Args:
          total: [B, T] weighted rewards of the providers before this one.
          values: [B, T] this provider's values times its weight, scores on the last token.
          batch: what was judged.
        """
        return total + values


class KLController(Component[C]):
    """Chooses beta, the price of a nat. Pure: the state goes in and comes out.

    The engine clamps the coefficient to the recipe's bounds, keeps the last finite state if an update
    is not finite (an eleventh time in a row ends the run), checkpoints the state, measures over
    all ranks before `update` sees anything, and ends the run where ranks come to different states.

    A state is a float that is not negative and a mapping from names to plain numbers: JSON keeps it.
    """

    @classmethod
    def initial_coefficient(cls, config: C) -> float | None:
        """The coefficient of `initial()` if the config alone says it, so that `validate` can compare it
        with the bounds; None, and it is compared before the first stage.
        """
        return None

    @property
    def unit(self) -> str:
        """The unit of `measured.kl`: "nats_per_response" or "nats_per_token"."""
        return "nats_per_response"

    def initial(self) -> KLState:
        """The state before the first rollout."""
        raise NotImplementedError

    def update(self, state: KLState, measured: KLMeasurement) -> KLState:
        """The next state, once after each rollout that `state.coefficient` was applied to."""
        raise NotImplementedError


class AuxiliaryLoss(Component[C]):
    """A loss added to PPO's in the same backward pass, divided by its own global count.

    Where nothing is counted in a whole optimiser step, nothing is added to it, and a warning says so.
    """

    @property
    def coefficient(self) -> float:
        """What the loss is multiplied with. 0 costs no forward pass."""
        raise NotImplementedError

    @property
    def examples_per_step(self) -> int:
        """Examples of the own data that each optimiser step takes, over all ranks together."""
        raise NotImplementedError

    def examples(self) -> Sequence[TokenExample] | None:
        """The own training data, read once at the start; None to work on the rollout itself.

        The engine shuffles, batches and pads. Without own data `loss` is given each micro-batch of
        the rollout, with the mask on the response tokens.

        Returns:
          A list (no iterator), the same on every rank. Of each example at least one token has to count.
        """
        return None

    def count(self, batch: TokenBatch) -> Tensor:
        """What `loss` will return as its count, known before the forward pass: one number, 0 or more.

        The default counts the mask.
        """
        return batch.mask.sum()

    def loss(self, policy: PolicyView, batch: TokenBatch) -> LossTerm:
        """The sum of the loss over a part of the batch, and what it is a sum over.

        The total has a gradient. Some parts hold no token that counts, since every rank makes the same
        passes: there the total is 0, and the policy is asked all the same. A step whose total is not
        finite is skipped like any other.
        """
        raise NotImplementedError


class AdvantageEstimator(Component[C]):
    """Turns token rewards and values into advantages and value targets."""

    def estimate(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(advantages, returns), both [B, T] like the rewards in type and device, not whitened.

        Both are 0 where `mask` is False, and finite elsewhere if rewards and values are. What is given
        must not be changed.

        Args:
          rewards: [B, T] reward for each token, KL penalty included.
          values: [B, T] the critic's estimate before each token.
          mask: [B, T] bool.
        """
        raise NotImplementedError


class HookPlugin(Component[C]):
    """Takes part in moments of the run: its methods decorated with `@hookimpl` are registered.

    A recipe names it under `hooks:`. The specification of each hook is its manual page, see
    `rlframe.api.spec`.
    """


K = TypeVar("K", bound=Component[Any])


@dataclass(frozen=True)
class Instance(Generic[K]):
    """A built component under the name that the recipe gives it, and where it came from."""

    name: str
    origin: str
    """"length (rlframe 0.1.0)": what an error message calls it."""
    component: K

    def __str__(self) -> str:
        return f"{self.name!r} of type {self.origin}"

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

from rlframe.api.answers import missing
from rlframe.api.owners import stamp_methods
from rlframe.api.pretrained import PretrainedModel
from rlframe.api.streams import ExampleStream
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

API_VERSION = (2, 0)
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
    """Base of every component's config: a frozen pydantic model, whose fields are the recipe's keys.

    Unknown keys, NaN and infinity, and booleans where a number belongs are errors.
    """


class ComponentSpec(Section):
    """A component as a recipe names it: `type`, and the keys of that component's own config."""

    model_config = ConfigDict(extra="allow")
    kind: ClassVar[str]
    """The entry-point group of the component, without `rlframe.` in front."""

    type: str
    """The name of the component's entry point."""

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
    """The device of this rank."""
    dtype: torch.dtype
    """The dtype in which models are loaded, from `runtime.precision`."""
    tokenizer: PreTrainedTokenizerBase
    """The policy's tokenizer."""
    seed: int
    """The run's seed."""
    rank: int
    """The number of this process, from 0."""
    world_size: int
    """The number of processes."""
    samples_per_prompt: int
    """Responses sampled per prompt."""
    columns: frozenset[str]
    """The columns that every row of the prompts' data set has."""
    rewards: frozenset[str]
    """The names that the recipe gives its rewards."""
    prepare: Callable[[Any], Any]
    """Places a frozen torch module on this rank: `module = context.prepare(module)`. A reward's is
    whole on the device whenever the reward is called, and may be kept elsewhere in between
    (`runtime.frozen`); any other component's stays there."""
    model_path: Callable[[str], str]
    """Turns a recipe's model name into a path or hub id; `stage:NAME` is a stage's result."""
    pretrained: Callable[[str], PretrainedModel]
    """Opens a saved model: a path, a hub id or `stage:NAME`. Code in its folder never runs."""
    training_rows: Callable[[str], Sequence[Row]]
    """Reads the rows of a data set of the recipe, without its held-out split."""
    tokenize: Callable[[Row], TokenExample]
    """Turns a row (a text, a prompt with its response, a conversation) into tokens with their end. The
    whole text or every answer is learned from; `TokenExample.last_span` keeps the last answer."""
    build_reward: Callable[[RewardSpec], RewardProvider[Any]]
    """Builds a nested reward provider."""
    tokenizer_of: Callable[[str], PreTrainedTokenizerBase]
    """Returns a copy of the tokenizer that belongs to a recipe's model name. That of `stage:NAME` is
    the one which the stage will save, so it is known before any stage has run."""
    prompts: Callable[[], Sequence[Prompt]]
    """Reads all prompts of PPO, the held-out ones included."""
    max_new_tokens: int
    """The most tokens that a response can have."""


@dataclass(frozen=True)
class Needs:
    """What a component needs of the recipe around it, known from its config alone."""

    samples_per_prompt: int = 1
    """The fewest responses per prompt that the component can work with."""
    columns: frozenset[str] = frozenset()
    """Columns of the prompts' data, beside those that config fields name as `ColumnName`."""
    texts: frozenset[str] = frozenset()
    """Data sets of which every row must make an example: text, prompt and response, or conversation."""
    demonstrations: frozenset[str] = frozenset()
    """Data sets of which every row must have an answer to learn from; a text alone is not enough."""
    logprobs: bool = False
    """Whether a reward reads `RewardBatch.logprobs`, which the sampler must return then."""


C = TypeVar("C", bound=PluginConfig)


class Component(Generic[C]):
    """What every kind shares: config, context and a state that checkpoints keep."""

    Config: ClassVar[type[PluginConfig]] = PluginConfig
    """The config class, from the type argument: `class Length(RewardProvider[LengthConfig])`."""
    rlframe_api: ClassVar[tuple[int, int]] = API_VERSION
    """The version (major, minor) of `rlframe.api` that the component was written for."""
    reserved: ClassVar[frozenset[str]] = frozenset({"type"})
    """Keys that belong to the recipe, so that no config may have a field of that name."""

    config: C
    """The validated keys of the recipe."""
    context: Context
    """What the engine provides."""
    name: str = ""
    """What the recipe calls this instance, set by the engine once it is built."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__dict__.get("__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, PluginConfig):
                    cls.Config = argument
        stamp_methods(cls)

    def __init__(self, config: C, context: Context) -> None:
        self.config = config
        self.context = context

    @classmethod
    def needs(cls, config: C) -> Needs:
        """What the recipe must have for this component; `rlframe validate` checks it.

        Names in the config are checked without it, in fields of type `DataName`, `ModelName`,
        `ColumnName` or `RewardName`.
        """
        return Needs()

    @classmethod
    def check(cls, config: C, context: Context) -> None:
        """Look for mistakes that can be seen before any stage trains: files, vocabularies, columns.

        Called once before the first stage, when results of stages do not exist yet.

        Raises:
          RecipeError: what is wrong and how to fix it; the engine puts the recipe's path in front.
        """

    def notes(self) -> Sequence[str]:
        """Sentences about this instance that the run shows once, when it has built it."""
        return ()

    def state_dict(self) -> Mapping[str, Any]:
        """The JSON-serialisable state that checkpoints keep; empty for a component without any."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state but was given {sorted(state)}")


class DataGenerator(Component[C]):
    """Makes a data set.

    The rows depend on the config alone, so that every rank reads the same: equal configs give equal
    rows everywhere, and a key of the config seeds randomness. A generator is never built; its class
    methods are called, since the tokenizer, and with it the context, may come from the rows.
    """

    @classmethod
    def rows(cls, config: C) -> Sequence[Row]:
        """The rows to train on; the data set's `columns` say which column holds what.

        Raises:
          Exception: any; the run stops before anything trains, and names this generator.
        """
        raise missing(cls, "rows")

    @classmethod
    def heldout_rows(cls, config: C) -> Sequence[Row]:
        """Rows that no stage trains on; if there are none, a fraction `heldout` of `rows`.

        A row of `rows` with the prompt of one of these is left out of training.
        """
        return ()


class RewardProvider(Component[C]):
    """Scores finished responses."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {"type", "weight", "time_limit_seconds", "transforms", "gates", "on_none"}
    )
    """Keys that a recipe may write beside `type` for any reward."""

    cheap_to_repeat: bool = False
    """Whether `score` may be called again for each prompt, to find the response for which it raised.
    Not for a paid service. A provider that calls another one copies its value when it is built."""

    def score(self, batch: RewardBatch) -> Sequence[float | Sequence[float] | None]:
        """One value per response; higher is better.

        Called once per rollout on every rank with that rank's shard of the batch, without a gradient.
        It must not change `batch`, draw from global random state, or call a collective.

        Returns:
          A list or tuple, or an array or tensor of one dimension, with `len(batch)` entries in order.
          Each is a finite number (True counts as 1, False as 0); or a row of numbers, one per sampled
          token of that response, as a list, tuple, array or tensor; or None for "cannot judge this
          one": the reward then adds nothing to the mix, and enters no statistic. Nothing is learned
          from a response that no reward judged, or that a reward with `on_none: invalid` did not. A
          mapping, a set, an iterator, text, a rectangle of two dimensions and anything with a gradient
          are refused. A provider that calls another one reads its answer with `token_scores`.

        Raises:
          Exception: any; the run stops, and names this component and its distribution.
        """
        raise missing(self, "score")

    @classmethod
    def invalidates(cls, config: C) -> bool:
        """Whether None from `score` leaves the response out, whatever the recipe's `on_none` says."""
        return False

    @classmethod
    def has_gate(cls, config: C) -> bool:
        """Whether `gate` answers with this config; by default, whether the class has a `gate`."""
        return cls.gate is not RewardProvider.gate

    def gate(self, batch: RewardBatch) -> Sequence[float] | None:
        """What other rewards of each response are multiplied with, from 0 to 1; None for no gate.

        A gate acts on the rewards that the recipe names in its `gates`, and on every one without a
        gate if it names none. The mix is

            Σ_r (Π_g gate_g) weight_r score_r        g: the gates that act on reward r

        so that the order of rewards does not matter. Called after `score`, with the same batch. With a
        weight of 0 it is not called.
        """
        return None


class KLController(Component[C]):
    """Chooses the KL coefficient β. Pure: the state goes in and comes out.

    The engine measures KL over all ranks, clamps the coefficient to the recipe's bounds, keeps the last
    finite state if an update is not finite (the eleventh time in a row ends the run), checkpoints the
    state, and ends the run if ranks arrive at different states.
    """

    @classmethod
    def initial_coefficient(cls, config: C) -> float | None:
        """The coefficient of `initial()`, which `rlframe validate` compares with the recipe's bounds;
        None if the config alone does not say it.
        """
        return None

    @property
    def unit(self) -> str:
        """The unit of `KLMeasurement.kl`: "nats_per_response" or "nats_per_token"."""
        return "nats_per_response"

    def initial(self) -> KLState:
        """The state before the first rollout."""
        raise missing(self, "initial")

    def update(self, state: KLState, measured: KLMeasurement) -> KLState:
        """The next state, after an update of the policy with `state.coefficient`; once per rollout."""
        raise missing(self, "update")


class AuxiliaryLoss(Component[C]):
    """A loss that is added to PPO's, divided by its own count over all ranks.

    If nothing is counted in a whole optimiser step, nothing is added to it, and a warning says so.
    """

    @property
    def coefficient(self) -> float:
        """The factor of the loss. 0 costs no forward pass."""
        raise missing(self, "coefficient")

    @property
    def examples_per_step(self) -> int:
        """The number of the loss's examples that each optimiser step takes, on all ranks together."""
        raise missing(self, "examples_per_step")

    def examples(self) -> Sequence[TokenExample] | ExampleStream | None:
        """The loss's own training data, asked for once; None to work on the rollout itself: `loss` then
        gets each of its micro-batches, with a mask that is True on the response tokens.

        Returns:
          A list, which the engine reads at the start and shuffles; or an `ExampleStream`, which is read
          in its own order as the run goes. The same on every rank, each with a token that counts.
        """
        return None

    def count(self, batch: TokenBatch) -> Tensor:
        """What `loss` will return as its count, known before the forward pass: one number, 0 or more.

        The default is the number of tokens that the mask selects.
        """
        return batch.mask.sum()

    def loss(self, policy: PolicyView, batch: TokenBatch) -> LossTerm:
        """The sum of the loss over a micro-batch, and what it is a sum over.

        The total has a gradient. A micro-batch may hold no token that counts, since every rank makes
        the same number of forward passes: its total is 0, from a forward pass like any other. A step
        whose total is not finite is skipped.
        """
        raise missing(self, "loss")


class HookPlugin(Component[C]):
    """Takes part in moments of the run through its methods that are decorated with `@hookimpl`.

    A recipe names it under `hooks:`. `rlframe.api.spec.Specification` is the manual of the hooks.
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

"""What a stage is: looked at before the first one trains, then run. `stage_table.py` lists them.

A stage is built as `Run(section, context)`, as a component is as `Component(config, context)`: it reads
its own section of the recipe and is handed everything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from transformers import PreTrainedTokenizerBase

from rlframe.data.encode import RowEncoder
from rlframe.data.examples import Prepared
from rlframe.data.rows import Lazy
from rlframe.distributed.runtime import Runtime
from rlframe.models.profile import Profile
from rlframe.models.vocabulary import Vocabulary
from rlframe.recipe.schema import FineTuning
from rlframe.runs.directory import RunDirectory
from rlframe.runs.display import Display
from rlframe.runs.saving import Saver
from rlframe.stages.ppo import Aligned
from rlframe.stages.supervised import FineTuningSettings, Progress
from rlframe.types import Row, TokenExample

EVALUATION_TOKENS = 8192
"""Padded tokens in one forward pass without gradient."""

Example = TypeVar("Example")
Section = TypeVar("Section", bound=FineTuning)
T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """What a supervised stage leaves.

    Args:
      model: is saved with its tokenizer; the next stage trains it if the result is the policy.
      tokenizer: of the model.
      metrics: on held-out examples, without the name of the stage.
      sentence: says the same to people.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    metrics: dict[str, float]
    sentence: str


class StageRun(Protocol):
    """A stage of one run."""

    def check(self) -> None:
        """Look at everything that can be known before the first stage trains.

        Raises:
          RecipeError: the stage could not run.
        """

    @property
    def headline(self) -> str:
        """What it is about to do, for people."""

    @property
    def notes(self) -> Sequence[str]:
        """What people should know of its data, a sentence each."""

    def run(
        self, policy: Any, files: RunDirectory, display: Display, saver: Saver
    ) -> Trained | Aligned:
        """Train, resuming from the newest checkpoint if there is one. Collective: call on all ranks.

        Args:
          policy: as the stages before it left it.
          files: of the run; what is `Trained` is saved by the caller.
          display: is notified of each step.
          saver: of the stage's checkpoints.
        """


class StageContext(Protocol):
    """What the composition root hands to a stage."""

    @property
    def name(self) -> str:
        """The stage's."""

    @property
    def seed(self) -> int:
        """The recipe's."""

    @property
    def runtime(self) -> Runtime:
        """The processes."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the model that the stage trains."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids that have a token."""

    @property
    def rows(self) -> tuple[Lazy[Row], Lazy[Row]]:
        """The rows of the stage's data, in the format that its model reads: (to train on, held out)."""

    @property
    def within(self) -> str:
        """What stands before the place of a row in a message."""

    def placed(self) -> AbstractContextManager[None]:
        """Puts the stage's name in front of an error."""

    def noted(self, found: Prepared[T], encoder: RowEncoder) -> Prepared[T]:
        """Examples with everything that people should know, also of how the rows were read."""

    def check(self, counts: tuple[int, int], longest: int) -> None:
        """There are examples to train on and examples to measure it, and they fit into the model.

        Args:
          counts: (to train on, held out).
          longest: tokens of the longest one.

        Raises:
          RecipeError: that is not so.
        """

    def start(self, policy: Any) -> Any:
        """The model that the stage trains: the policy itself, or one with one output and a new head."""

    def profile(self, model: Any) -> Profile:
        """How the policy is run."""


class SupervisedRun(ABC, Generic[Section, Example]):
    """A stage that learns from examples and is measured by those that are held out.

    Args:
      section: of the recipe.
      context: everything else.
    """

    noun: ClassVar[str] = "examples"
    """What an example is called."""

    def __init__(self, section: Section, context: StageContext) -> None:
        self.section = section
        self.context = context

    @abstractmethod
    def prepare(self) -> Prepared[Example]:
        """Make the examples from `context.rows`, each at most `section.max_tokens` long."""

    @abstractmethod
    def texts(self, example: Example) -> Sequence[TokenExample]:
        """The texts that the model reads of an example."""

    @abstractmethod
    def train(self, model: Any, progress: Progress, saver: Saver) -> None:
        """Train a model on `examples.train` in place. Collective: call on all ranks."""

    @abstractmethod
    def measure(self, model: Any) -> tuple[dict[str, float], str]:
        """(metrics on `examples.heldout`, a sentence about them). Collective: call on all ranks."""

    @cached_property
    def examples(self) -> Prepared[Example]:
        """What the stage learns from and is measured by."""
        with self.context.placed():
            return self.prepare()

    def check(self) -> None:
        """Every example can be read by the model, and both parts have some."""
        train, heldout = self.examples.train, self.examples.heldout
        lengths = (len(text.ids) for one in (*train, *heldout) for text in self.texts(one))
        self.context.check((len(train), len(heldout)), max(lengths, default=0))

    @property
    def headline(self) -> str:
        """How much it learns from."""
        found = self.examples
        counted = f"{len(found.train)} {self.noun} from {self.section.data!r}"
        return f"{counted}, {len(found.heldout)} held out"

    @property
    def notes(self) -> Sequence[str]:
        """What people should know of its data."""
        return self.examples.notes

    @property
    def settings(self) -> FineTuningSettings:
        """The hyperparameters that all supervised stages share."""
        section, runtime = self.section, self.context.runtime
        return FineTuningSettings(
            epochs=section.epochs,
            batch_size=section.batch_size,
            processes=runtime.world_size,
            learning_rate=section.learning_rate,
            warmup_share=section.warmup_share,
            weight_decay=section.weight_decay,
            seed=self.context.seed,
            cpu=runtime.device.type == "cpu",
            autocast=runtime.mixed_precision,
        )

    def run(self, policy: Any, files: RunDirectory, display: Display, saver: Saver) -> Trained:
        """Train what the stage trains, and measure it."""
        runtime = self.context.runtime
        model = self.context.start(policy)
        model.to(runtime.device)
        self.train(model, display.step, saver)
        with runtime.mixed_precision():
            metrics, sentence = self.measure(model)
        return Trained(model, self.context.tokenizer, metrics, sentence)

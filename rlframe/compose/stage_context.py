"""What a project hands to each of its stages."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from transformers import PreTrainedTokenizerBase

from rlframe.compose.encoded import Rows, within_of
from rlframe.compose.places import at
from rlframe.data.encode import RowEncoder
from rlframe.data.examples import Prepared
from rlframe.distributed.runtime import Runtime
from rlframe.models.profile import Profile
from rlframe.models.vocabulary import Vocabulary
from rlframe.recipe.data import DataNames
from rlframe.stage_table import Stage

if TYPE_CHECKING:
    from rlframe.compose.project import Project

T = TypeVar("T")


class ProjectStage:
    """A `StageContext`.

    Args:
      project: its recipe, data and models.
      stage: a line of the table, of which the recipe has a section.
    """

    def __init__(self, project: Project, stage: Stage) -> None:
        self.project = project
        self._stage = stage

    @property
    def name(self) -> str:
        return self._stage.name

    @property
    def seed(self) -> int:
        return self.project.recipe.seed

    @property
    def runtime(self) -> Runtime:
        return self.project.runtime

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.project.models.tokenizer_of(self._stage)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.project.profiles.vocabulary

    @property
    def rows(self) -> Rows:
        return self.project.data.rows(self._data, self.tokenizer)

    @property
    def within(self) -> str:
        return within_of(self._data)

    @property
    def _data(self) -> DataNames:
        data: DataNames = getattr(self.project.recipe, self.name).data
        return data

    def placed(self) -> AbstractContextManager[None]:
        return at(self.name)

    def noted(self, found: Prepared[T], encoder: RowEncoder) -> Prepared[T]:
        return self.project.data.with_remarks(found, self._data, encoder)

    def check(self, counts: tuple[int, int], longest: int) -> None:
        parts = dict(zip(("to train on", "held out to measure it"), counts, strict=True))
        with at(f"{self.name}.data"):
            self.project.datasets.require_both(parts, self._data)
        self.project.lengths.check_fits(self._stage, longest)

    def start(self, policy: Any) -> Any:
        return self.project.models.start(self._stage, policy)

    def profile(self, model: Any) -> Profile:
        return self.project.profiles.of("model.policy", model)

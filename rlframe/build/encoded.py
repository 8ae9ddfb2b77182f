"""The data sets of a recipe as tokens, each in its format; errors name the row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from transformers import PreTrainedTokenizerBase

from rlframe.data.encode import RowEncoder, remarks_on
from rlframe.data.examples import Prepared, demonstrations, preferences
from rlframe.data.fitting import Pair
from rlframe.data.format import as_chat, is_chat
from rlframe.errors import RecipeError
from rlframe.recipe.schema import RewardModelStage
from rlframe.stages.reward_model import pairs_from_labels
from rlframe.types import Row, TokenExample

if TYPE_CHECKING:
    from rlframe.build.project import Project

T = TypeVar("T")
_Formatted = tuple[tuple[Sequence[Row], Sequence[Row]], str | None]
"""Both parts of a data set, and what people should know of how they are read."""


class EncodedData:
    """What the stages of a project read, and what people should know of it.

    Args:
      project: its recipe, data sets and tokenizer.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._rows: dict[tuple[str, int], _Formatted] = {}

    def rows(
        self, name: str, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> tuple[Sequence[Row], Sequence[Row]]:
        """The rows of a data set, (to train on, held out), prompts as messages where it is a chat.

        Args:
          name: of the data set.
          tokenizer: of the model that reads them; the policy's if left out.
        """
        return self._formatted(name, tokenizer or self._project.tokenizer)[0]

    def _notes(self, name: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """How a data set is read, where the recipe leaves that open."""
        note = self._formatted(name, tokenizer)[1]
        return [] if note is None else [f"data.{name}: {note}"]

    def _formatted(self, name: str, tokenizer: PreTrainedTokenizerBase) -> _Formatted:
        key = (name, id(tokenizer))
        if key not in self._rows:
            split = self._project.split(name)
            try:
                chat, note = is_chat(
                    [*split.train, *split.heldout],
                    tokenizer,
                    wanted=self._project.recipe.data[name].format,
                )
            except RecipeError as error:
                raise RecipeError(f"data.{name}.{error}") from error
            parts = (split.train, split.heldout)
            if chat:
                parts = tuple(map(as_chat, split.train)), tuple(map(as_chat, split.heldout))
            self._rows[key] = parts, note
        return self._rows[key]

    def located(self, name: str, encode: Callable[[Row], T]) -> Callable[[Row], T]:
        """`encode`, with the place of the row in front of its errors."""

        def encoded(row: Row) -> T:
            try:
                return encode(row)
            except RecipeError as error:
                raise RecipeError(
                    f"data.{name}, {self._project.place(name, row)}: {error}"
                ) from error

        return encoded

    def demonstrations(self) -> Prepared[TokenExample]:
        """Of the sft stage."""
        stage, encoder = self._project.recipe.sft, RowEncoder(self._project.tokenizer)
        assert stage is not None
        found = demonstrations(
            self.rows(stage.data),
            self.located(stage.data, encoder.example),
            self._project.tokenizer,
            max_tokens=stage.max_tokens,
            learn=stage.learn,
        )
        return self._with_remarks(found, stage.data, encoder)

    def preferences(self) -> Prepared[Pair]:
        """Of the reward_model stage."""
        stage, tokenizer = self._project.recipe.reward_model, self._project.models.reward_tokenizer
        assert stage is not None
        encoder = RowEncoder(tokenizer)
        train, heldout = self.rows(stage.data, tokenizer)
        paired = partial(_paired, stage=stage, seed=self._project.recipe.seed)
        found = preferences(
            (paired(train, count=stage.pairs), paired(heldout, count=None)),
            self.located(stage.data, encoder.pair),
            tokenizer,
            max_tokens=stage.max_tokens,
            max_equal=stage.max_equal_pairs,
        )
        return self._with_remarks(found, stage.data, encoder)

    def stage_notes(self, stage: str) -> tuple[str, ...]:
        """What people should know of a stage's data before it trains; after the project's check."""
        project = self._project
        if stage != "ppo":
            return (project.sft_examples if stage == "sft" else project.pairs).notes
        assert project.recipe.prompts is not None
        said = (f"prompts and losses: {line}" for line in remarks_on(project.encoder.remarks))
        return (*self._notes(project.recipe.prompts.data, project.tokenizer), *said)

    def _with_remarks(self, found: Prepared[T], name: str, encoder: RowEncoder) -> Prepared[T]:
        remarks = remarks_on(encoder.remarks)
        notes = [f"data.{name}: {line}" for line in (*remarks, *found.notes)]
        how = self._notes(name, encoder.tokenizer)
        return Prepared(found.train, found.heldout, (*how, *notes))


def _paired(
    rows: Sequence[Row], *, stage: RewardModelStage, seed: int, count: int | None
) -> Sequence[Row]:
    """Rows with chosen and rejected, whatever else they have; labelled texts are paired."""
    answers = ("chosen", "rejected")
    if not rows or any(row.get(key) is not None for row in rows for key in answers):
        return rows
    return pairs_from_labels(rows, preferred=stage.preferred_label, count=count, seed=seed)

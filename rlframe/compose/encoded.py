"""The data sets of a recipe as tokens, each in its format; errors name the row."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from transformers import PreTrainedTokenizerBase

from rlframe.data.encode import RowEncoder, remarks_on
from rlframe.data.examples import Prepared
from rlframe.data.format import row_format
from rlframe.data.mixture import mixed
from rlframe.data.rows import Joined, Lazy, Mapped
from rlframe.data.split import asked
from rlframe.errors import RecipeError
from rlframe.recipe.data import DataNames
from rlframe.types import Row

if TYPE_CHECKING:
    from rlframe.compose.project import Project

T = TypeVar("T")
Rows = tuple[Lazy[Row], Lazy[Row]]
"""(to train on, held out)."""


class EncodedData:
    """What the stages of a project read, and what people should know of it.

    Args:
      project: its recipe, data sets and tokenizer.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._rows: dict[tuple[str, int], tuple[Rows, str | None]] = {}

    def rows(self, data: DataNames, tokenizer: PreTrainedTokenizerBase | None = None) -> Rows:
        """The rows of a data set, or of several mixed by weight; prompts as messages in a chat.

        Args:
          data: a name, or names with their weights.
          tokenizer: of the model that reads them; the policy's if left out.
        """
        if isinstance(data, str):
            return self._formatted(data, tokenizer or self._project.tokenizer)[0]
        seed = self._project.recipe.seed
        parts = {name: self.rows(name, tokenizer) for name in data}
        return mixed(parts, data, seed=seed, asked=asked)

    def formatted(
        self, name: str, parts: Rows, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Rows, str | None]:
        """Rows in the format that a model reads, and what people should know of it.

        Args:
          name: of their data set, which has a `format`.
          parts: (to train on, held out).
          tokenizer: of the model.
        """
        try:
            form, note = row_format(
                Joined(parts), tokenizer, wanted=self._project.recipe.data[name].format
            )
        except RecipeError as error:
            raise RecipeError(f"data.{name}.{error}") from error
        train, heldout = parts
        return parts if form is None else (Mapped(train, form), Mapped(heldout, form)), note

    def _formatted(self, name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Rows, str | None]:
        key = (name, id(tokenizer))
        if key not in self._rows:
            split = self._project.split(name)
            self._rows[key] = self.formatted(name, (split.train, split.heldout), tokenizer)
        return self._rows[key]

    def _notes(self, data: DataNames, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """How data sets are read, where the recipe leaves that open."""
        notes = {name: self._formatted(name, tokenizer)[1] for name in names_in(data)}
        return [f"data.{name}: {note}" for name, note in notes.items() if note is not None]

    def prompt_notes(self) -> list[str]:
        """What people should know of the data that PPO reads; after the project's check."""
        project = self._project
        section = project.recipe.prompts
        assert section is not None
        said = (f"prompts and losses: {line}" for line in remarks_on(project.encoder.remarks))
        # Where there is a template, the prompts are formatted by themselves.
        how = [] if section.template else self._notes(section.data, project.tokenizer)
        return [*how, *said]

    def with_remarks(self, found: Prepared[T], data: DataNames, encoder: RowEncoder) -> Prepared[T]:
        """What a stage learns from, with everything that people should know of it.

        Args:
          found: its examples, with notes of their own.
          data: of its section.
          encoder: what has made tokens of the rows.
        """
        name = ", ".join(f"data.{name}" for name in names_in(data))
        said = (*remarks_on(encoder.remarks), *found.notes)
        how = self._notes(data, encoder.tokenizer)
        return Prepared(found.train, found.heldout, (*how, *(f"{name}: {line}" for line in said)))


def names_in(data: DataNames) -> tuple[str, ...]:
    """The names of one data set, or of several."""
    return (data,) if isinstance(data, str) else tuple(data)


def within_of(data: DataNames) -> str:
    """What stands before the place of a row: the name of its data set, if there is one alone."""
    return f"data.{data}, " if isinstance(data, str) else ""

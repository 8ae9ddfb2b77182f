"""The data sets of a recipe: read, brought into one form, split, and mixed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlframe.api.answers import ContractError
from rlframe.api.component import DataGenerator
from rlframe.api.rows import (
    refuse_odd_values,
    refuse_other_columns,
    refuse_other_heldout,
    rows_of,
)
from rlframe.compose.places import at
from rlframe.data import sources
from rlframe.data.roles import understand
from rlframe.data.rows import Held, Lazy, names_of
from rlframe.data.split import Split, split_apart, split_rows
from rlframe.errors import RecipeError, did_you_mean, listed
from rlframe.recipe import Chosen
from rlframe.recipe.data import DataNames, Dataset
from rlframe.recipe.document import Path_
from rlframe.registry.owners import component_errors, offered
from rlframe.types import Row


class DataSets:
    """What stands under `data:`, each set read when it is first asked for.

    Args:
      specs: what the recipe says of each.
      chosen: the components at each path of the recipe, data generators among them.
      notes: takes what was recognised, converted or left out.
    """

    def __init__(
        self, specs: Mapping[str, Dataset], chosen: Mapping[Path_, Chosen], notes: list[str]
    ) -> None:
        self._specs = specs
        self._chosen = chosen
        self._splits: dict[str, Split] = {}
        self._notes = notes

    def split(self, data: str) -> Split:
        """A data set in its two parts.

        Raises:
          RecipeError: it is not in the recipe, is empty, or cannot be read.
        """
        known = self._specs
        if data not in known:
            raise RecipeError(
                f"there is no data set {data!r}.{did_you_mean(data, known)} `data:` holds "
                f"{listed(known)}"
            )
        with at(f"data.{data}"):
            return self.read(data)

    def read(self, data: str) -> Split:
        """The same of a data set that is there; errors do not name it."""
        if data not in self._splits:
            self._splits[data] = self._read(data, self._specs[data])
        return self._splits[data]

    def columns(self, data: DataNames) -> frozenset[str]:
        """The columns in which every row of a data set, or of each of several, has a value."""
        names = [data] if isinstance(data, str) else data
        return frozenset.intersection(*(self.split(name).columns for name in names))

    def require_columns(self, wanted: Iterable[str], data: DataNames) -> None:
        """Every row of the prompts has a value in the columns that a component reads.

        Raises:
          RecipeError: one has none.
        """
        have = self.columns(data)
        for column in sorted(wanted):
            if column not in have:
                place = self._without(column, data)
                raise RecipeError(
                    f"not every row of the prompts' data has a value in column {column!r} ({place} "
                    f"has none).{did_you_mean(column, have)} All have {listed(have)}"
                )

    def require_both(self, counts: Mapping[str, int], data: DataNames) -> None:
        """There are rows to train on, and rows to measure by.

        Args:
          counts: of the parts `to train on` and `held out to measure it`.
          data: one name or several.

        Raises:
          RecipeError: one part is empty.
        """
        names = [data] if isinstance(data, str) else list(data)
        for part, count in counts.items():
            if not count:
                shares = listed(
                    f"data.{one}.heldout is {self._specs[one].heldout}" for one in names
                )
                raise RecipeError(f"data set {data!r} has no rows {part} ({shares})")

    def _without(self, column: str, data: DataNames) -> str:
        """Where the first row is that has no value in a column, for a message."""
        for name in [data] if isinstance(data, str) else data:
            split = self.split(name)
            for part in (split.train, split.heldout) if column not in split.columns else ():
                for index, row in enumerate(part):
                    if row.get(column) is None:
                        return f"data.{name}, {part.place(index)}"
        raise ValueError(f"every row has a column {column!r}")

    def _read(self, name: str, spec: Dataset) -> Split:
        """A data set, split: by a hash, or as its generator says."""
        generator = self._chosen.get(("data", name, "generator"))
        made, kept = (_stored(spec), None) if generator is None else _generated(generator)
        if not made:
            raise RecipeError(f"the data set is empty ({spec.path or 'no rows came'})")
        rows = self._understood(name, spec, made[: spec.limit] if spec.limit else made)
        if not kept:
            return split_rows(rows, heldout=spec.heldout)
        if spec.heldout != Dataset.model_fields["heldout"].default:  # a resolved recipe has it too
            raise RecipeError(
                "heldout: the generator brings held-out rows of its own, so that nothing would read "
                "this share; leave it out"
            )
        return split_apart(rows, self._understood(name, spec, kept))

    def _understood(self, name: str, spec: Dataset, rows: Lazy[Row]) -> Lazy[Row]:
        found = understand(rows, names_of(rows), spec.columns.model_dump())
        self._notes += [f"data.{name}: {notice}" for notice in found.notices]
        return found.rows


def _stored(spec: Dataset) -> Lazy[Row]:
    """The rows of files or of the hub."""
    if spec.path is not None:
        return sources.read_rows(spec.path, split=spec.split)
    assert spec.hub is not None
    hub = spec.hub
    return sources.hub_rows(hub.id, config=hub.config, split=hub.split, revision=hub.revision)


def _generated(chosen: Chosen) -> tuple[Lazy[Row], Lazy[Row]]:
    """The rows of a data generator: (to train on, held out).

    Raises:
      RecipeError: it raised, or returned something else than rows.
    """
    generator, config = chosen.component, chosen.config
    assert issubclass(generator, DataGenerator)
    who = offered(chosen.offer)

    def ask(method: str) -> Any:
        with component_errors(who, generator, method, raises=RecipeError):
            return getattr(generator, method)(config)

    try:
        made = rows_of(generator, ask)
        for refuse in (refuse_other_columns, refuse_other_heldout, refuse_odd_values):
            refuse(made)
    except ContractError as error:
        raise RecipeError(f"{who} {error}") from error
    rows, heldout = made.values()
    return _held(rows), _held(heldout)


def _held(rows: Sequence[Row]) -> Lazy[Row]:
    return Held(list(rows), called="generated row")

"""What rewards log of their own, as metrics of an update and beside held-out responses."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence, Sized
from numbers import Real
from typing import Any

from rlframe.api.answers import ContractError, shown

TAKEN = ("raw", "weighted", "std", "judged_share", "running_mean", "running_std")
"""Metrics `reward/NAME/...` of the engine and of built-in transforms."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class RewardFigures:
    """The figures that one reward logs while it scores one rollout: the `log` of its batch.

    Args:
      responses: how many there are.
    """

    def __init__(self, responses: int) -> None:
        self._responses = responses
        self._columns: dict[str, list[float | str | None]] = {}
        self._single: dict[str, list[float]] = {}

    def __call__(self, name: str, values: float | Sequence[float | str | None]) -> None:
        """Take a column, or one number; entries that are not None take the place of earlier ones.

        Raises:
          ContractError: the name cannot be a metric's, or the values are of another kind.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in TAKEN:
            raise ContractError(
                f"logged {shown(name)}, which cannot be the name of a metric: letters, digits, _ . "
                f"and -, and none of {', '.join(TAKEN)}"
            )
        if isinstance(values, Real) and not isinstance(values, bool):
            self._single.setdefault(name, []).append(_entry(name, values))  # type: ignore[arg-type]
            return
        if isinstance(values, str) or not isinstance(values, Sized):
            raise ContractError(
                f"logged {name} as {shown(values)}; it must be one number, or a list with an entry for "
                "each response"
            )
        if len(values) != self._responses:
            raise ContractError(
                f"logged {len(values)} entries of {name} for {self._responses} responses; it must be "
                "one for each"
            )
        column = self._columns.setdefault(name, [None] * self._responses)
        for row, value in enumerate(values):
            if value is not None:
                column[row] = _entry(name, value)

    @property
    def names(self) -> set[str]:
        """Of figures that are numbers."""
        numbers = {n for n, column in self._columns.items() if any(map(_is_number, column))}
        return numbers | self._single.keys()

    def sums(self) -> dict[str, tuple[float, float]]:
        """Name -> (sum, number of entries)."""
        found = {}
        for name in self.names:
            numbers = [x for x in self._columns.get(name, []) if _is_number(x)]
            numbers += self._single.get(name, [])
            found[name] = (math.fsum(map(float, numbers)), float(len(numbers)))  # type: ignore[arg-type]
        return found

    def row(self, number: int) -> dict[str, float | str]:
        """The entries of one response."""
        entries = {name: column[number] for name, column in self._columns.items()}
        return {name: value for name, value in entries.items() if value is not None}


def _entry(name: str, value: Any) -> float | str:
    if isinstance(value, str):
        return value
    if getattr(value, "ndim", None) == 0 and hasattr(value, "tolist"):
        value = value.tolist()  # of NumPy or torch
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ContractError(
            f"logged {shown(value)} as an entry of {name}; it must be a finite number, a text or None"
        )
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, float)

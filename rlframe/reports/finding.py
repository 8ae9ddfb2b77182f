"""What `rlframe doctor` says about a run: one finding, with the numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Level = Literal["serious", "warning", "note"]
"""serious: the run does not learn what it is meant to. warning: it may not soon. note: for
information."""

LEVELS: tuple[Level, ...] = ("serious", "warning", "note")
"""From the most serious one down."""

TOO_SHORT = "too_short"
"""The name of the note that trends cannot be judged."""


class Span(NamedTuple):
    """A value of a metric: of one update, or the mean over several."""

    first: int
    """Update, from 1; 0 is before the first update."""
    last: int
    """Update; equal to `first` for a single one."""
    value: float

    def __str__(self) -> str:
        when = (
            f"update {self.first}"
            if self.first == self.last
            else f"updates {self.first}-{self.last}"
        )
        return f"{self.value:.4g} ({when})"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    name: str
    """Stable, for programs: a heading of docs/doctor.md."""
    level: Level
    what: str
    """One sentence on what is wrong."""
    cause: str
    """One sentence on the likely cause."""
    remedy: str
    """One sentence on what to change next, or to check."""
    key: str | None = None
    """The recipe key to change next; None if the remedy is not in the recipe."""
    value: Any = None
    """What to set the key to."""
    evidence: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    """Metric -> its values."""

    @property
    def change(self) -> str | None:
        """`key=value`, as the command line takes it."""
        if self.key is None:
            return None
        shown = f"{self.value:.3g}" if isinstance(self.value, float) else self.value
        return f"{self.key}={shown}"

    def as_json(self) -> dict[str, Any]:
        """For `--json`: the fields, with each span as an object."""
        spans = {
            metric: [{"updates": [s.first, s.last], "value": s.value} for s in values]
            for metric, values in self.evidence.items()
        }
        return {**vars(self), "evidence": spans, "change": self.change}


def verdict(found: Sequence[Finding]) -> str:
    """One of "healthy", "too short to judge trends", "N warnings" and "N serious findings"."""
    count = {level: sum(f.level == level for f in found) for level in LEVELS}
    if number := count["serious"]:
        return counted(number, "serious finding")
    if number := count["warning"]:
        return counted(number, "warning")
    if any(f.name == TOO_SHORT for f in found):
        return "nothing wrong so far, but too short to judge trends"
    return "healthy"


def counted(number: int, noun: str) -> str:
    """`1 update`, `2 updates`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"

"""A run directory as reports read it, whether the run is finished, running or failed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlframe.errors import SetupError
from rlframe.runs.manifest import read_manifest
from rlframe.runs.records import MetricsFile, of_jsonl, update_of

_EVALUATION = re.compile(r"update_(\d+)")


@dataclass(frozen=True)
class RunRecord:
    """What a run has left so far."""

    path: Path
    manifest: Mapping[str, Any]
    rows: list[dict[str, Any]]
    """Metrics of PPO updates, in order."""
    samples: dict[int, list[dict[str, Any]]]
    """Update -> the rows of its evaluation; 0 is before the first update."""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Resolved."""
        found: Mapping[str, Any] = self.manifest.get("recipe", {})
        return found

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Data set or model -> its fingerprint."""
        found: Mapping[str, Any] = self.manifest.get("inputs", {})
        return found


def read_run(path: Path) -> RunRecord:
    """Read what a run has written.

    Args:
      path: of its directory.

    Raises:
      SetupError: it holds no run, or a file of it cannot be read.
    """
    manifest = read_manifest(path, edited=True)
    try:
        rows = {
            number: row
            for row in MetricsFile(path / "metrics.jsonl").rows()
            if (number := update_of(row))
        }
    except OSError as error:
        raise SetupError(f"{path / 'metrics.jsonl'} cannot be read: {error.strerror}") from error
    ordered = [rows[number] for number in sorted(rows)]
    return RunRecord(path, manifest, ordered, _samples(path / "samples", max(rows, default=0)))


def _samples(folder: Path, updates: int) -> dict[int, list[dict[str, Any]]]:
    """Every evaluation by its update; that after the last update has a name of its own."""
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        number = _EVALUATION.fullmatch(file.stem)
        known = {"before": 0, "after": updates}.get(file.stem)
        update = int(number[1]) if number else known
        if update is None:
            continue
        try:
            found[update] = of_jsonl(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SetupError(f"{file} cannot be read: {error}") from error
    return found

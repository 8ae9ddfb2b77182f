"""JSONL files of a run: metrics that grow line by line, and samples that are written as a whole.

Where lines were lost or damaged, what is left is read, and what is missing is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlframe.runs.durable import append_lines, json_text, replace_text, sync
from rlframe.text import lines

UNREADABLE = "metrics.unreadable"
"""Where lines of metrics.jsonl go that are no JSON objects."""


class MetricsFile:
    """metrics.jsonl: a JSON object a line, `stage` and for PPO `update` among its keys.

    Args:
      path: of the file; made by the first row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; a number that is not finite becomes null, as JSON wants.

        Raises:
          OSError: it cannot be written.
        """
        new = not self._path.exists()
        append_lines(self._path, [json_text(row)])
        if new:
            sync(self._path.parent)

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        if self._path.exists():
            sync(self._path)

    def repair(self) -> str | None:
        """Take out what a killed process, a loss of power or a person left that is no row.

        A torn last line goes, and blank lines; other lines that are no JSON objects are kept in
        metrics.unreadable.

        Returns:
          What was taken out, where that is worth saying.
        """
        if not self._path.exists():
            return None
        text = self._path.read_bytes().decode(errors="replace")
        whole = lines(text)
        torn = whole.pop() if whole and not text.endswith("\n") else None
        rows = [line for line in whole if _row(line) is not None]
        foreign = [line for line in whole if line.strip("\0 \t\r") and _row(line) is None]
        if len(rows) == len(whole) and torn is None:
            return None
        if foreign:
            append_lines(self._path.with_name(UNREADABLE), foreign)
        replace_text(self._path, "".join(f"{line}\n" for line in rows))
        if not foreign:
            return None
        return f"{self._path}: {len(foreign)} of its lines are no JSON objects, and are in {UNREADABLE}"

    def keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Drop the rows that are not wanted. Rows of others, without a stage, stay."""
        kept = [line for line, row in self._rows() if "stage" not in row or wanted(row)]
        if self._path.exists():
            replace_text(self._path, "".join(f"{line}\n" for line in kept))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row that can be read, in the order of the file; none if there is no file yet."""
        return (row for _, row in self._rows())

    def updates(self) -> list[int]:
        """The PPO updates that have a row, in the order of the file."""
        numbers = (update_of(row) for _, row in self._rows())
        return [number for number in numbers if number is not None]

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._path.exists():
            for line in lines(self._path.read_bytes().decode(errors="replace")):
                row = _row(line)
                if row is not None:
                    yield line, row


def update_of(row: Mapping[str, Any]) -> int | None:
    """The PPO update that a row is about; None for rows of other stages and for the last evaluation."""
    number = row.get("update")
    of_update = row.get("stage") == "ppo" and "episode" in row and isinstance(number, int)
    return number if of_update else None


def _row(line: str) -> dict[str, Any] | None:
    """The object that a line holds; None if it holds none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as text, an object a line."""
    return "".join(f"{json_text(row)}\n" for row in rows)


def of_jsonl(text: str) -> list[dict[str, Any]]:
    """Back from `jsonl`.

    Raises:
      ValueError: it is not what `jsonl` gave.
    """
    return [json.loads(line) for line in lines(text)]

"""Rows from JSONL, JSON, Parquet, plain text or the hub, and the split that no stage may break."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlframe.errors import RecipeError, listed
from rlframe.types import Row


@dataclass(frozen=True)
class Split:
    """A data set in two parts that share no content."""

    train: tuple[Row, ...]
    heldout: tuple[Row, ...]


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, by its ending: .jsonl, .json (a list), .parquet, .txt (a row a line).

    Raises:
      RecipeError: the ending is unknown, or a row can not be read; names the line.
    """
    readers: dict[str, Callable[[Path], list[Row]]] = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
        ".txt": _read_text,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RecipeError(f"{path}: can not tell what this file is; known: {listed(readers)}")
    try:
        return reader(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: can not be read: {error}") from error


def _read_jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                rows.append(_object(_parse(line, f"{path}:{number}"), f"{path}:{number}"))
    return rows


def _read_json(path: Path) -> list[Row]:
    found = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(found, list):
        raise RecipeError(
            f"{path}: a .json data set is a list of objects; for a row a line use .jsonl"
        )
    return [_object(row, f"{path}: row {number}") for number, row in enumerate(found, 1)]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{where}: not valid JSON: {error}") from error


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise RecipeError(f"{where}: a row is a JSON object, not {type(row).__name__}")
    return row


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise RecipeError(f"{path}: not a Parquet file: {error}") from error
    return rows


def _read_text(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [{"text": line} for line in lines if line.strip()]


def hub_rows(name: str, *, config: str | None, split: str, revision: str | None) -> list[Row]:
    """The rows of a data set of the Hugging Face hub, or of its cache on this machine.

    Raises:
      RecipeError: it can not be loaded; carries the library's own words.
    """
    import datasets

    try:
        return list(datasets.load_dataset(name, config, split=split, revision=revision))
    except Exception as error:  # the library raises a dozen unrelated classes here
        raise RecipeError(f"hub data set {name!r} can not be loaded: {error}") from error


def with_roles(rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows with each role (`text`, `prompt`...) under its own name, beside all columns."""
    renamed = {role: name for role, name in columns.items() if role != name}
    return [
        {**row, **{role: row[name] for role, name in renamed.items() if name in row}}
        for row in rows
    ]


def split_rows(rows: Sequence[Row], *, heldout: float) -> Split:
    """Divide by a hash of what a model is asked: its prompt, its chat, or else its text.

    Rows with the same prompt fall on the same side (a random split leaks: PandaLM judges reach 0.90
    by row and 0.57 by prompt), whatever their case, and adding rows moves none of the others.

    Args:
      rows: in any order, which both parts keep.
      heldout: share of distinct prompts held out, in [0, 1).
    """
    train: list[Row] = []
    kept: list[Row] = []
    for row in rows:
        digest = hashlib.blake2b(_asked(row).encode(), digest_size=8).digest()
        (kept if int.from_bytes(digest) < heldout * 2**64 else train).append(row)
    return Split(tuple(train), tuple(kept))


def split_apart(rows: Sequence[Row], heldout: Sequence[Row]) -> Split:
    """A given split, without the training rows that ask what a held-out row asks.

    Raises:
      RecipeError: nothing is left to train on.
    """
    kept = {_asked(row) for row in heldout}
    train = tuple(row for row in rows if _asked(row) not in kept)
    if not train:
        raise RecipeError(f"all {len(rows)} rows to train on are held out as well")
    return Split(train, tuple(heldout))


def _asked(row: Row) -> str:
    """What a row asks of a model, whatever its case: rows of one question share a side of the split."""
    asked = next(
        (row[key] for key in ("prompt", "messages", "text") if row.get(key) is not None), row
    )
    return json.dumps(_without_answer(asked), sort_keys=True, default=str).casefold()


def _without_answer(asked: Any) -> Any:
    """A chat is the same question whatever the assistant's last answer was."""
    if isinstance(asked, list) and asked and isinstance(asked[-1], dict):
        return asked[:-1] if asked[-1].get("role") == "assistant" else asked
    return asked


def texts_of(rows: Sequence[Row]) -> Iterator[str]:
    """Every piece of text in the rows' roles: what a tokenizer is trained on."""
    for row in rows:
        for role in ("text", "prompt", "response", "chosen", "rejected"):
            if isinstance(row.get(role), str):
                yield row[role]
        messages = row.get("messages")
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict) and isinstance(message.get("content"), str):
                yield message["content"]

"""Pairs for a reward model, drawn from texts with labels."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlframe.data.rows import Lazy, Mapped, lazy
from rlframe.errors import RecipeError, listed
from rlframe.types import Row


def compares(rows: Sequence[Row]) -> bool:
    """Whether rows are pairs, whatever else they have; labelled texts otherwise."""
    return any(row.get(key) is not None for row in rows for key in ("chosen", "rejected"))


def as_pairs(
    rows: Sequence[Row], *, preferred: bool | int | str, count: int | None, seed: int
) -> Lazy[Row]:
    """Rows with chosen and rejected as they are; labelled texts are paired.

    Args and errors are those of `pairs_from_labels`.
    """
    if not rows or compares(rows):
        return lazy(rows)
    return lazy(pairs_from_labels(rows, preferred=preferred, count=count, seed=seed))


def pairs_from_labels(
    rows: Sequence[Row], *, preferred: bool | int | str, count: int | None, seed: int
) -> list[Row]:
    """Pair texts of the preferred label with texts of the others, at random.

    Args:
      rows: each with `text` and `label`.
      preferred: the label that wins.
      count: pairs to draw; if left out, as many as the more frequent side has rows.
      seed: of the pairing.

    Returns:
      Rows with `chosen` and `rejected`. Each text is used once before any is used again.

    Raises:
      RecipeError: one side is empty.
    """
    labelled = list(Mapped(lazy(rows), _labelled))
    sides = [
        [text for text, label in labelled if _is(label, preferred) is wins]
        for wins in (True, False)
    ]
    if not all(sides):
        labels = listed({repr(label) for _, label in labelled})
        raise RecipeError(
            f"preferred_label: {len(sides[0])} rows are labelled {preferred!r} and "
            f"{len(sides[1])} are not; pairs need both. The labels are {labels}"
        )
    number = count or max(map(len, sides))
    rng = random.Random(seed)
    columns = []
    for texts in sides:
        drawn: list[str] = []
        while len(drawn) < number:
            drawn += rng.sample(texts, len(texts))
        columns.append(drawn[:number])
    return [{"chosen": c, "rejected": r} for c, r in zip(*columns, strict=True)]


def _labelled(row: Row) -> tuple[str, object]:
    if not isinstance(row.get("text"), str) or row.get("label") is None:
        raise RecipeError(
            "this row is neither a pair (chosen and rejected) nor a labelled text (text and label); "
            f"it has {listed(row)}. Name the columns in `data.NAME.columns`"
        )
    return row["text"], row["label"]


def _is(label: object, preferred: bool | int | str) -> bool:
    """Whether a label is the preferred one; the cells of CSV are text, whatever they say."""
    return label == preferred or (isinstance(label, str) and label == str(preferred))

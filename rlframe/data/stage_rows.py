"""Whether a supervised stage can learn from the rows of its data, as far as shows without a tokenizer.

The stage table names one of these functions for each such stage. Its arguments are the stage's section
of the recipe, the data sets that the section names, and `at`: `with at("data"):` collects an error
about that key of the section. An error names the first row that the stage cannot read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from rlframe.data.contents import check_example, check_pair
from rlframe.data.labelled import as_pairs
from rlframe.data.rows import Joined, Mapped
from rlframe.data.split import Split

At = Callable[..., AbstractContextManager[None]]


def check_examples(section: Any, data: Mapping[str, Split], at: At) -> None:
    """Each row is a conversation, a prompt with its response, or a text."""
    with at("data"):
        for name, split in data.items():
            for part in (split.train, split.heldout):
                make_all(Mapped(part, check_example, within=f"data.{name}, "))


def check_pairs(section: Any, data: Mapping[str, Split], at: At) -> None:
    """The rows of each part are pairs, or labelled texts of which pairs can be made."""
    for part in ("train", "heldout"):  # each is paired by itself
        rows = Joined([getattr(split, part) for split in data.values()])
        with at():
            pairs = as_pairs(rows, preferred=section.preferred_label, count=1, seed=0)
            make_all(Mapped(pairs, check_pair))


def make_all(rows: Iterable[object]) -> None:
    """Make every row, for the errors of those that cannot be made."""
    for _ in rows:
        pass

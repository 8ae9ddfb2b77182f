"""What a program has to say of itself, for its files to be converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlframe.convert.option import Given, Option, Written

Table = Mapping[str, Option]
Facts = dict[str, tuple[Any, str]]
"""Key -> (value, why it is so, or what to write there)."""


@dataclass(frozen=True)
class Source:
    """A program whose files can be converted."""

    name: str
    """As `--from` takes it."""
    title: str
    """As people write it."""
    kind: str
    """What its files are, in a sentence about several of them."""
    recognises: Callable[[str], bool]
    """Whether a text is one of its files."""
    read: Callable[[str], list[Written]]
    """The options of a file, in its order. Raises RecipeError."""
    tables: Mapping[str, Table]
    """What becomes of its options, by the versions that have them."""
    table: Callable[[Sequence[Written]], Table]
    """The table of the version that a file is written for."""
    facts: Callable[[Given], Facts]
    """What the program always does, and a recipe has to say."""
    required: Callable[[Given], Facts]
    """What a recipe needs and the file may not say: what stands in its place, and what to write."""
    processes: tuple[str, ...] = ()
    """The options that hold the number of processes."""

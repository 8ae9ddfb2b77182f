"""Situations that people meet, one module for each area; `tests/test_situations.py` runs them all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.conftest import TINY


@dataclass(frozen=True)
class Situation:
    """What somebody does, and how rlframe answers."""

    name: str
    """In words: it becomes the test's name."""
    make: Callable[[Path], list[str]]
    """Writes files into an empty folder, the current one, and returns the command's arguments."""
    code: int
    """The exit code."""
    says: tuple[str, ...] = ()
    """Each occurs in what the command writes to stdout or stderr."""
    never_says: tuple[str, ...] = ("Traceback",)
    """None of these does."""
    environment: tuple[tuple[str, str], ...] = ()


def recipe(folder: Path, **sections: Any) -> str:
    """Write `recipe.yaml`: the tiny PPO recipe with sections replaced (None removes one); its path."""
    data = {**copy.deepcopy(TINY), **sections}
    path = folder / "recipe.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump({k: v for k, v in data.items() if v is not None}, file)
    return str(path)

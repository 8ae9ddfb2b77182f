"""The broken recipes: for each NAME.yaml in `broken/`, NAME.txt is what `rlframe validate` says.

A recipe may begin with `# override: ...`, `# env: NAME=value` and `# exit: code` (3 if left out).
`python -m tests.recipe.corpus` writes every NAME.txt anew; read the difference before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import rlframe
from rlframe.errors import RlframeError
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from rlframe.registry.offers import CORE

FOLDER = Path(__file__).parent / "broken"


class Case(NamedTuple):
    """One broken recipe and how it has to be refused."""

    name: str
    overrides: list[str]
    environment: dict[str, str]
    code: int
    message: str

    @property
    def file(self) -> str:
        """Relative to `FOLDER`, where commands run, so that messages are the same everywhere."""
        return f"{self.name}.yaml"


def refused(case: Case) -> str:
    """What is said of a broken recipe, with only built-in components installed, in `FOLDER`."""
    registry = Registry()
    registry._offers = [offer for offer in registry._offers if offer.distribution == CORE]
    try:
        load_recipe(Path(case.file), case.overrides, registry=registry)
    except RlframeError as error:
        found = error
    else:
        raise AssertionError(f"{case.name} is valid")
    assert found.exit_code == case.code, (case.name, found)
    return portable(f"error: {found}\n")


def portable(text: str) -> str:
    """Without what differs from one machine or version to the next."""
    return text.replace(str(FOLDER), "FOLDER").replace(
        f"(rlframe {rlframe.__version__})", "(rlframe)"
    )


def cases() -> list[Case]:
    return [_case(path) for path in sorted(FOLDER.glob("*.yaml"))]


def _case(path: Path) -> Case:
    given: dict[str, list[str]] = {"override": [], "env": [], "exit": []}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, colon, value = line.removeprefix("# ").partition(": ")
        if not (line.startswith("# ") and colon and key in given):
            break
        given[key].append(value)
    golden = path.with_suffix(".txt")
    return Case(
        path.stem,
        given["override"],
        dict(item.split("=", 1) for item in given["env"]),
        int(given["exit"][0]) if given["exit"] else 3,
        golden.read_text(encoding="utf-8") if golden.exists() else "",
    )


def _write() -> None:
    os.chdir(FOLDER)
    for case in cases():
        os.environ |= case.environment
        Path(f"{case.name}.txt").write_text(refused(case), encoding="utf-8")
        for name in case.environment:
            del os.environ[name]


if __name__ == "__main__":
    _write()

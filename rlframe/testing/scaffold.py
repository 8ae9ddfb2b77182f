"""A plugin to begin with: a distribution that installs, passes its tests and trains, for each kind."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from rlframe.errors import SetupError, did_you_mean

TEMPLATES = Path(__file__).parent / "templates"

SUMMARIES = {
    "reward": "A reward for saying it in different words",
    "kl": "A KL controller that smooths the error it steers by",
    "loss": "An auxiliary loss on the rows that somebody approved of",
    "transform": "A reward transform that keeps large scores from outweighing all others",
    "advantage": "Advantages from discounted Monte-Carlo returns",
    "policy_loss": "A policy loss whose ratio is bounded from above alone",
    "value_loss": "A value loss that is squared for small errors and linear for large ones",
    "sampler": "A sampler that writes with transformers' `generate`",
    "generator": "A data generator that makes sums with their answers",
    "hook": "A hook plugin that measures how long each reward takes",
}
"""Kind, as on the command line -> what the component does that the author begins with."""


def name_problem(name: str) -> str | None:
    """Why a name cannot be a component's, with one that can; None if it can."""
    if re.fullmatch(r"[a-z][a-z0-9_]*", name) and not keyword.iskeyword(name):
        return None
    near = re.sub(r"[^a-z0-9]+", "_", name.lower().removeprefix("rlframe")).strip("_")
    guess = did_you_mean(near, [near]) if near[:1].isalpha() and not keyword.iskeyword(near) else ""
    return (
        f"{name!r} cannot name a component: a name is lower case, begins with a letter, has letters, "
        f"digits and underscores, and is no word of Python.{guess}"
    )


def write_plugin(name: str, *, word: str, kind: str, parent: Path) -> Path:
    """Write a distribution called rlframe-NAME and return its folder.

    Args:
      name: what a recipe will write in `type:`, for which `name_problem` is None.
      word: the kind as on the command line, a key of `SUMMARIES`.
      kind: the same as in an entry-point group.
      parent: where the folder will stand; made if it is not there.

    Raises:
      SetupError: the folder exists, or cannot be written.
    """
    distribution, package = f"rlframe-{name.replace('_', '-')}", f"rlframe_{name}"
    values = {
        "name": name,
        "word": word,
        "kind": kind,
        "distribution": distribution,
        "package": package,
        "component": "".join(part.capitalize() for part in name.split("_")),
        "summary": SUMMARIES[word],
    }
    if _exists(f"{word}/sections.yaml"):
        values["sections"] = _filled(f"{word}/sections.yaml", values)
    root = parent / distribution
    if root.exists():
        raise SetupError(
            f"{root} exists already, and nothing in it was touched. Take another name, another "
            "`--directory`, or remove it first"
        )
    files = {
        "pyproject.toml": "common/pyproject.toml",
        "README.md": "common/README.md",
        f"src/{package}/__init__.py": f"{word}/component.py",
        f"tests/test_{name}.py": f"{word}/test.py",
        f"recipes/{name}.yaml": next(
            filter(_exists, (f"{word}/recipe.yaml", "common/recipe.yaml"))
        ),
    }
    try:
        for place, template in files.items():
            path = root / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_filled(template, values), encoding="utf-8")
        (root / "src" / package / "py.typed").touch()
    except OSError as error:
        raise SetupError(f"{root} cannot be written: {error}") from error
    return root


def _exists(template: str) -> bool:
    return (TEMPLATES / f"{template}.tmpl").is_file()


def _filled(template: str, values: dict[str, str]) -> str:
    text = (TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")
    return Template(text).substitute(values)

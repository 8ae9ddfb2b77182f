"""One recipe from many texts: the files it extends, overrides, interpolation; nothing is validated."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlframe.errors import RecipeError
from rlframe.recipe.document import REMOVE, Document, Path_, Problem
from rlframe.recipe.interpolation import interpolate
from rlframe.recipe.yaml12 import parse_value, read_file

_LAST = 10**9  # overrides are reported after all files
_LONGEST = 500  # characters of an override, where it is named
_MOST_FILES = 100  # each of two may extend the same two, and so on: 2^n readings


def compose(path: Path, overrides: Iterable[str] = ()) -> Document:
    """Read a recipe with everything it extends, change it by overrides, fill in `${...}`.

    Args:
      path: a YAML file.
      overrides: `key.path=value` or `~key.path`, applied in order.

    Returns:
      The document. Single mistakes are in its `problems`, for the caller to raise.

    Raises:
      RecipeError: a file cannot be read at all.
    """
    document = _Files().read(path)
    for turn, text in enumerate(overrides):
        place = f"override {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'!r}"
        document.order[place] = (_LAST, turn, 0)
        try:
            override(document, text, place)
        except RecipeError as error:
            key = tuple(text.removeprefix(REMOVE).partition("=")[0].split("."))
            document.problems.append(Problem(place, key, str(error)))
    interpolate(document)
    return document


def override(document: Document, text: str, place: str) -> None:
    """Apply one `key.path=value`, whose value is YAML and replaces what is there, or `~key.path`.

    Raises:
      RecipeError: it is neither, the value is not YAML, or the path is not there.
    """
    key, equals, value = text.partition("=")
    path: Path_ = tuple(key.removeprefix(REMOVE).split("."))
    if not all(path) or not (equals or key.startswith(REMOVE)):
        raise RecipeError(
            "write key.path=value, as in ppo.updates=10, or ~key.path to remove a key"
        )
    if path[0] == "extends":
        raise RecipeError("`extends` stands in a file; it cannot be an override")
    if key.startswith(REMOVE):
        if equals:
            raise RecipeError(
                f"{key} removes a key and takes no value; to change it leave out the ~"
            )
        document.remove(path)
        return
    parsed = parse_value(value)
    if path[-1] == "type":
        _drop_the_old_component(document, path[:-1], parsed, place)
    document.set(path, parsed, place)


def _drop_the_old_component(document: Document, path: Path_, new: Any, place: str) -> None:
    """A changed `type` drops the keys that files gave the old one, whatever the order of overrides."""
    try:
        old = document.at(path)
    except (KeyError, TypeError):
        return
    if isinstance(old, dict) and old.get("type", new) != new:
        overrides = frozenset(p for p, (file, *_) in document.order.items() if file == _LAST)
        document.clear(path, keep=overrides)
        document.places[path] = place  # what the new one lacks is reported there


class _Files:
    """Reads a file and, before it, the files that it extends."""

    def __init__(self) -> None:
        self.open: list[Path] = []
        self.count = 0

    def read(self, path: Path) -> Document:
        if self.count == _MOST_FILES:
            raise RecipeError(
                f"{path}: a recipe extends at most {_MOST_FILES} files, and here are more"
            )
        own = read_file(path, self.count)
        self.count += 1
        self.open.append(path)
        document = Document()
        wanted = own.data.pop("extends", None)
        names = wanted if isinstance(wanted, list) else [wanted]
        for index, name in enumerate(names if wanted is not None else ()):
            where = ("extends", index) if isinstance(wanted, list) else ("extends",)
            try:
                document.merge(self.read(self._base(path, name)))
            except _NoBaseError as error:
                document.problems.append(Problem(own.place(where), where, str(error)))
                document.incomplete = True
        own.places = {p: q for p, q in own.places.items() if p[:1] != ("extends",)}
        self.open.pop()
        document.merge(own)
        return document

    def _base(self, path: Path, name: Any) -> Path:
        if not isinstance(name, str) or not name:
            raise _NoBaseError("extends takes the path of a recipe file, or a list of such paths")
        base = Path(os.path.normpath(path.parent / name))
        resolved = base.resolve()
        before = [opened.resolve() for opened in self.open]
        if resolved in before:
            chain = [*self.open[before.index(resolved) :], base]
            raise _NoBaseError(
                f"recipes extend each other in a circle: {' -> '.join(map(str, chain))}"
            )
        if base.is_dir():
            raise _NoBaseError(f"{str(base)!r} is a folder; give the path of a recipe file")
        if not base.is_file():
            near = {p.stem: p.name for p in sorted(base.parent.glob("*.y*ml"))}
            guess = difflib.get_close_matches(base.stem, near, n=1)
            guessed = f". Did you mean {near[guess[0]]!r}?" if guess else ""
            raise _NoBaseError(f"there is no recipe file {str(base)!r}{guessed}")
        return base


class _NoBaseError(RecipeError):
    """A file that cannot be extended; the recipe is read without it, to report everything at once."""

"""A YAML 1.2 document as plain data, with the place of every value: what errors point at."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rlframe.errors import RecipeError

Path_ = tuple[str | int, ...]


@dataclass
class Document:
    """Plain data and, for each path in it, where it was written."""

    data: dict[str, Any]
    places: dict[Path_, str] = field(default_factory=dict)
    """"file:line:column" or "override 'kl.target=3'"."""
    order: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The same places as numbers, so that messages come sorted by line."""

    def place(self, path: Path_) -> str:
        """Where `path`, or the nearest thing around it, was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "recipe")

    def override(self, text: str) -> None:
        """Apply one `key.path=value`; the value is YAML.

        Raises:
          RecipeError: there is no `=`, or the path runs through something that is not a mapping.
        """
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"override {text!r}: write key.path=value, as in ppo.updates=10")
        path = tuple(key.split("."))
        try:
            parsed = parse_scalar(value)
        except RecipeError as error:
            raise RecipeError(f"override {text!r}: {error}") from error
        node = self.data
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise RecipeError(f"override {text!r}: {part!r} is not a mapping in this recipe")
        node[path[-1]] = parsed
        place = f"override {text!r}"
        self.places = {p: q for p, q in self.places.items() if p[: len(path)] != path}
        for end in range(1, len(path) + 1):
            self.places.setdefault(path[:end], place)
        self.places[path] = place


_PLAIN_TAGS = {"map", "seq", "str", "int", "float", "bool", "null"}


def parse_scalar(text: str) -> Any:
    """The value of an override: YAML 1.2, so 1e-5 is a number and `on` a word.

    Raises:
      RecipeError: it can not be parsed.
    """
    try:
        return _plain(YAML(typ="safe", pure=True).load(text))
    except YAMLError as error:
        problem = getattr(error, "problem", None) or "it can not be parsed"
        raise RecipeError(f"the value is not YAML: {problem}") from error


def read_document(path: Path) -> Document:
    """Parse a recipe.

    Raises:
      RecipeError: the file is missing, is not YAML, has a key twice, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such recipe file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: can not be read: {error}") from error
    yaml = YAML(typ="rt", pure=True)
    yaml.version = "1.2"
    try:
        tree = yaml.load(io.StringIO(text))
    except DuplicateKeyError as error:
        mark = error.problem_mark
        problem = str(error.problem).split(" with value")[0].replace("found ", "")
        raise RecipeError(f"{path}:{mark.line + 1}:{mark.column + 1}: {problem}") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError(f"{where}: not valid YAML: {error.problem}") from error
    if not isinstance(tree, CommentedMap):
        raise RecipeError(f"{path}: a recipe is a mapping of keys; start with `version: 1`")
    document = Document(_plain(tree))
    _note_places(tree, (), str(path), document)
    if document.places:
        document.places[()] = min(document.places.values(), key=document.order.__getitem__)
    return document


def _note_places(node: Any, path: Path_, file: str, into: Document) -> None:
    """Remember where each value stands, and refuse tags: a recipe is data."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if tag is not None and str(tag).removeprefix("tag:yaml.org,2002:") not in _PLAIN_TAGS:
        raise RecipeError(f"{into.place(path)}: a recipe takes no YAML tags, here is {tag}")
    if isinstance(node, CommentedMap):
        places = {key: node.lc.key(key) for key in node if key in (node.lc.data or {})}
        items: list[Any] = list(node.items())
    elif isinstance(node, CommentedSeq):
        places = {index: node.lc.item(index) for index in range(len(node))}
        items = list(enumerate(node))
    else:
        return
    for key, value in items:
        if key in places:  # what `<<` merges in stands elsewhere
            line, column = places[key]
            place = f"{file}:{line + 1}:{column + 1}"
            into.places[(*path, key)] = place
            into.order[place] = (line, column)
        _note_places(value, (*path, key), file, into)


def _plain(node: Any) -> Any:
    """Dicts, lists and Python scalars instead of the parser's round-trip types."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node

"""`${env:NAME}` and `${ref:path}` in the values of a recipe, and nothing else. `$${` is a literal `${`.

A value that is one `${...}` and nothing else keeps the type of what it stands for: a reference may mean
a number or a whole mapping, and the text of a variable is read as YAML would read it there. Inside
longer text both become text.

The value of a variable may be a secret. The document notes, for each value that holds one, the text
that is shown in its place, in which references to other keys are filled in and `${env:NAME}` is not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from rlframe.errors import RecipeError, did_you_mean, listed
from rlframe.recipe.document import Document, Path_, Problem, dotted, escaped
from rlframe.recipe.yaml12 import plain_scalar
from rlframe.redaction import conceal

_MARK = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_LONGEST, _MOST = 100_000, 3_000
_HOW = "a recipe knows ${env:NAME} and ${ref:path.of.a.key}; write $${ for a literal ${"


def interpolate(document: Document) -> None:
    """Fill in every `${...}`; what cannot be filled in is added to the document's problems."""
    _Filling(document).mapping(())


def _refuse_endless(value: Any) -> None:
    """Refuse what references to references have multiplied: each of ten to ten others, and so on."""
    if isinstance(value, str) and len(value) > _LONGEST:
        raise RecipeError(
            f"with what it refers to, this text has more than {_LONGEST:,} characters"
        )
    if isinstance(value, dict | list) and _size(value) > _MOST:
        raise RecipeError(f"with what it refers to, this has more than {_MOST:,} values")


def _size(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_size, parts))


class _NotKnownError(RecipeError):
    """What is referred to could not be filled in, which is reported where it stands."""


@dataclass(frozen=True)
class _Meant:
    """What a `${...}` stands for."""

    value: Any
    shown: Mapping[Path_, str] = field(default_factory=dict)
    """Path within the value -> text that holds references to variables in place of their values."""


class _Filling:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.under_way: list[Path_] = []
        self.done: set[Path_] = set()

    def mapping(self, path: Path_) -> None:
        """Fill in everything below a path."""
        node = self.document.at(path)
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            inner = (*path, key)
            if isinstance(key, str) and "${" in key:
                self.problem(inner, "only values take ${...}, keys do not")
            if isinstance(value, dict | list):
                self.mapping(inner)
            elif isinstance(value, str) and "${" in value:
                self.leaf(inner, value)

    def leaf(self, path: Path_, text: str) -> None:
        if path in self.done:
            return
        self.under_way.append(path)
        try:
            found = self.filled(text)
            _refuse_endless(found.value)
        except _NotKnownError:
            self.document.unknown.add(path)
        except RecipeError as error:
            self.problem(path, str(error))
        else:
            self.document.at(path[:-1])[path[-1]] = found.value
            self.document.written[path] = text
            self.done.update(_below(found.value, path))  # a `${` that came with the value is text
            self.document.concealed |= {(*path, *inner): t for inner, t in found.shown.items()}
        finally:
            self.under_way.pop()
            self.done.add(path)

    def filled(self, text: str) -> _Meant:
        whole = _MARK.fullmatch(text)
        if whole and whole[1] is not None:
            return self.meant(whole[1], whole=True)
        pieces = [self._piece(match) for match in _MARK.finditer(text)]
        values, shown = (
            iter([str(p.value) for p in pieces]),
            iter([p.shown.get(()) for p in pieces]),
        )
        value = _MARK.sub(lambda _: next(values), text)
        if not any(() in piece.shown for piece in pieces):
            return _Meant(value)
        texts = iter([next(shown) or escaped(str(piece.value)) for piece in pieces])
        return _Meant(value, {(): _MARK.sub(lambda _: next(texts), text)})

    def _piece(self, match: re.Match[str]) -> _Meant:
        if match[0] == "$${":
            return _Meant("${")
        if match[1] is None:
            raise RecipeError(f"a ${{ without its closing brace; {_HOW}")
        return self.meant(match[1], whole=False)

    def meant(self, inside: str, *, whole: bool) -> _Meant:
        """What stands between the braces, as a value or as a piece of text."""
        kind, _, name = inside.partition(":")
        if kind == "env" and name:
            return _Meant(_variable(name, whole=whole), {(): f"${{env:{name}}}"})
        if kind == "ref" and name:
            target: Path_ = tuple(name.split("."))
            value = self.referred(target)
            shown = {
                path[len(target) :]: text
                for path, text in self.document.concealed.items()
                if path[: len(target)] == target
            }
            return _Meant(value if whole else _as_text(name, value), shown)
        raise RecipeError(f"${{{inside}}} is not known; {_HOW}")

    def referred(self, target: Path_) -> Any:
        if any(target == path[: len(target)] for path in self.under_way):
            chain = [*map(dotted, self.under_way), dotted(target)]
            raise RecipeError(f"references go round in a circle: {' -> '.join(chain)}")
        for end, key in enumerate(target):
            node = self.document.at(target[:end])
            if not isinstance(node, dict) or key not in node:
                raise RecipeError(_missing(target, end, node))
            value = node[str(key)]
            if isinstance(value, str) and "${" in value:
                self.leaf(target[: end + 1], value)
        if isinstance(self.document.at(target), dict | list):
            self.mapping(target)
        for path in self.document.unknown:
            if path[: len(target)] == target or target[: len(path)] == path:
                raise _NotKnownError
        return deepcopy(self.document.at(target))

    def problem(self, path: Path_, message: str) -> None:
        self.document.problems.append(Problem(self.document.place(path), path, message))
        self.document.unknown.add(path)


def _below(value: Any, path: Path_) -> Iterator[Path_]:
    if not isinstance(value, dict | list):
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from _below(inner, (*path, key))


def _variable(name: str, *, whole: bool) -> Any:
    text = os.environ.get(name)
    if text is None:
        guess = did_you_mean(name, os.environ)
        raise RecipeError(f"the environment variable {name!r} is not set.{guess}")
    conceal(text, f"${{env:{name}}}")
    if not whole:
        return text
    if not text:
        raise RecipeError(f"the environment variable {name!r} is set but empty")
    try:
        return plain_scalar(text)
    except ValueError:  # a number of more digits than Python reads
        return text


def _missing(target: Path_, end: int, node: Any) -> str:
    if not isinstance(node, dict):
        return f"${{ref:{dotted(target)}}}: {dotted(target[:end])} is not a mapping of keys"
    inside = dotted(target[:end]) if end else "this recipe"
    return (
        f"${{ref:{dotted(target)}}}: there is no {target[end]!r} in {inside}."
        f"{did_you_mean(str(target[end]), node)} Written there: {listed(node)} "
        "(a default that nobody wrote cannot be referred to)"
    )


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, dict | list) or value is None:
        what = "null" if value is None else "a mapping" if isinstance(value, dict) else "a list"
        raise RecipeError(f"${{ref:{name}}} is {what}, which cannot stand inside longer text")
    return str(value).lower() if isinstance(value, bool) else str(value)

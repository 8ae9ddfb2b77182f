"""Plain data with the history of every value: where it was written and what it replaced.

A recipe is made of documents: files that extend each other, and overrides on the command line.
`Document.merge`, `set` and `remove` are the only ways in which one changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from rlframe.errors import PluginError, RecipeError, RlframeError, did_you_mean, listed
from rlframe.redaction import redacted, without_credentials

Path_ = tuple[str | int, ...]

_SHOWN = 100  # mistakes in one message
_LONGEST = 2000  # characters of one
REMOVE = "~"
"""`~key` removes an inherited key."""


def dotted(path: Path_) -> str:
    """("rewards", "brevity", "weight") -> "rewards.brevity.weight"."""
    return ".".join(map(str, path)) or "recipe"


@dataclass(frozen=True)
class Problem:
    """One mistake: the place where it is reported, the path in the recipe, and what is wrong."""

    place: str
    path: Path_
    message: str
    error: type[RlframeError] = RecipeError

    def __str__(self) -> str:
        return f"{self.place}: {dotted(self.path)}: {self.message}"


@dataclass(frozen=True)
class Replaced:
    """A value that something else took the place of."""

    value: Any
    place: str


@dataclass
class Document:
    """Plain data and, for each path in it, where it was written."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Path_, str] = field(default_factory=dict)
    """"file:line:column" or "override 'kl.target=3'"."""
    order: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """The same places as numbers, so that messages come sorted: file, line, column."""
    replaced: dict[Path_, list[Replaced]] = field(default_factory=dict)
    """What stood at a path before, the oldest first."""
    written: dict[Path_, str] = field(default_factory=dict)
    """The text that `${...}` stood in, for each value that came out of one."""
    concealed: dict[Path_, str] = field(default_factory=dict)
    """What is shown in place of each value that came from the environment: `${env:NAME}`."""
    problems: list[Problem] = field(default_factory=list)
    incomplete: bool = False
    """A file that this one extends is missing, so that nobody knows which keys are."""
    unknown: set[Path_] = field(default_factory=set)
    """Paths whose value could not be found out; what is said of such a value means nothing."""

    def place(self, path: Path_) -> str:
        """Where `path`, or the nearest thing around it, was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "recipe")

    def check(self, found: Iterable[Problem] = ()) -> None:
        """Raise one error with a line for each problem, sorted by file, line and column.

        Args:
          found: problems beside those of the document itself; they are left out where the value is
            not known.

        Raises:
          RecipeError: there are any.
          PluginError: all of them are of components that are missing or broken.
        """
        reported = self.problems + [
            p for p in found if not any(p.path[: len(path)] == path for path in self.unknown)
        ]
        if reported:
            last = (10**9, 0, 0)
            reported.sort(
                key=lambda p: (self.order.get(p.place, last), p.path == (), dotted(p.path))
            )
            plugins_only = all(p.error is PluginError for p in reported)
            reported = [self._without_secrets(problem) for problem in reported]
            shown, more = reported[:_SHOWN], len(reported) - _SHOWN
            texts = [
                text if len(text := str(p)) <= _LONGEST else f"{text[:_LONGEST]}..." for p in shown
            ]
            text = "\n".join([*texts, *([f"and {more:,} more"] if more > 0 else [])])
            error = (PluginError if plugins_only else RecipeError)(text)
            error.problems = tuple(reported)
            raise error

    def _without_secrets(self, problem: Problem) -> Problem:
        """A problem whose message quotes no value of the environment, however short it is."""
        message = problem.message
        for path, shown in self.concealed.items():
            if path[: len(problem.path)] == problem.path:
                message = _replaced(message, self.at(path), shown)
        place = redacted(problem.place)
        return replace(problem, place=place, message=redacted(message))

    def shown(self, data: Any, path: Path_ = ()) -> Any:
        """Data of this document as it may be written down, and means the same as a recipe.

        Args:
          data: the document's own, or the same with defaults filled in.
          path: where in the document the data stands.
        """
        if path in self.concealed:
            return without_credentials(self.concealed[path])
        if isinstance(data, dict):
            return {key: self.shown(value, (*path, key)) for key, value in data.items()}
        if isinstance(data, list | tuple):
            return [self.shown(value, (*path, index)) for index, value in enumerate(data)]
        return without_credentials(escaped(data)) if isinstance(data, str) else data

    def secrets(self, data: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
        """(path, value) of each value in such data that is not shown as it is."""
        if isinstance(data, dict | list | tuple) and path not in self.concealed:
            inside = data.items() if isinstance(data, dict) else enumerate(data)
            for key, value in inside:
                yield from self.secrets(value, (*path, key))
        elif path in self.concealed:
            yield path, self.at(path)
        elif isinstance(data, str) and without_credentials(data) != data:
            yield path, data

    def at(self, path: Path_) -> Any:
        """The value at a path that is there."""
        node: Any = self.data
        for key in path:
            node = node[key]
        return node

    def set(self, path: Path_, value: Any, place: str) -> None:
        """Write a value; mappings on the way are made.

        Raises:
          RecipeError: the path runs through something that is not a mapping.
        """
        node: Any = self.data
        for end, key in enumerate(path[:-1], 1):
            if node.get(key) is None:
                node[key] = {}
                self.places[path[:end]] = place
            node = node[key]
            if not isinstance(node, dict):
                what = (
                    "a list, which is replaced as a whole" if isinstance(node, list) else repr(node)
                )
                raise RecipeError(f"{dotted(path[:end])!r} is not a mapping of keys but {what}")
        self._forget(path)
        node[path[-1]] = value
        self.places[path] = place

    def remove(self, path: Path_) -> None:
        """Take a key out.

        Raises:
          RecipeError: it is not there.
        """
        for end, key in enumerate(path):
            node = self.at(path[:end])
            if not isinstance(node, dict) or key not in node:
                here = dotted(path[:end]) if end else "the recipe"
                keys = node if isinstance(node, dict) else ()
                raise RecipeError(
                    f"there is no {dotted(path[: end + 1])!r} to remove."
                    f"{did_you_mean(str(key), keys)} Keys of {here}: {listed(keys)}"
                )
        self._forget(path)
        del self.at(path[:-1])[path[-1]]

    def clear(self, path: Path_, *, keep: frozenset[str] = frozenset()) -> None:
        """Empty the mapping at a path, except for values that were written at one of `keep`."""
        node = self.at(path)
        for key in list(node):
            inner = (*path, key)
            if isinstance(node[key], dict) and any(
                self.places.get(leaf) in keep for leaf, _ in leaves(node[key], inner)
            ):
                self.clear(inner, keep=keep)
            elif self.places.get(inner) not in keep:
                self.remove(inner)

    def merge(self, over: Document) -> None:
        """Lay another document over this one.

        Mappings merge key by key, everything else replaces; a mapping whose `type` changes is
        emptied first; `~key` removes.
        """
        self.order |= over.order
        self.problems += over.problems
        self.unknown |= over.unknown
        self.incomplete |= over.incomplete
        self._merge(over.data, (), over)
        for path, history in over.replaced.items():
            self.replaced.setdefault(path, []).extend(history)
        self.places[()] = over.place(())

    def _merge(self, data: dict[str, Any], path: Path_, over: Document) -> None:
        node = self.at(path)
        self._merge_removals(data, path, over)
        if "type" in node and "type" in data and node["type"] != data["type"]:
            self.clear(path)
        for key, value in data.items():
            inner = (*path, key)
            if key.startswith(REMOVE):
                continue
            if not isinstance(value, dict):
                self._forget(inner)
                node[key] = deepcopy(value)
                self.places |= {p: q for p, q in over.places.items() if p[: len(inner)] == inner}
                continue
            if not isinstance(node.get(key), dict):
                self._forget(inner)
                node[key] = {}
            self.places[inner] = over.place(inner)
            self._merge(value, inner, over)

    def _merge_removals(self, data: dict[str, Any], path: Path_, over: Document) -> None:
        """First of all, so that `~key:` with `key: ...` beside it replaces a mapping as a whole."""
        for key in (k for k in data if k.startswith(REMOVE)):
            written, name, inherited = (*path, key), key.removeprefix(REMOVE), self.at(path)
            if data[key] is not None:
                problem = f"{key!r} removes what was inherited and takes no value"
            elif name in inherited:
                self.remove((*path, name))
                continue
            elif self.incomplete:
                continue
            else:
                guess = did_you_mean(name, inherited)
                problem = f"no {name!r} was inherited here.{guess} Inherited: {listed(inherited)}"
            self.problems.append(Problem(over.place(written), written, problem))

    def _forget(self, path: Path_) -> None:
        """Move what is written at a path and below it to the history."""
        try:
            value = self.at(path)
        except (KeyError, TypeError):
            return
        for leaf, old in dict([(path, value), *leaves(value, path)]).items():
            if leaf in self.places:
                self.replaced.setdefault(leaf, []).append(Replaced(old, self.places[leaf]))
        self.places = {p: q for p, q in self.places.items() if p[: len(path)] != path}


def escaped(text: str) -> str:
    """Text in which nothing is filled in when it is read as a value of a recipe."""
    return text.replace("${", "$${")


def _replaced(text: str, value: Any, shown: str) -> str:
    """A message in which a value, as messages quote it, is replaced."""
    quoted = {repr(value), repr(value)[:57] + "...", str(value), str(value).lower()}
    for form in sorted(quoted, key=len, reverse=True):
        if form and form != "...":
            text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", lambda _: shown, text)
    return text


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """(path, value) of everything that is not a mapping of keys; lists count as one value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value

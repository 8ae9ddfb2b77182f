"""From a file to a validated recipe: parse, override, check every key, choose the components.

All mistakes are reported at once, sorted by line, each with the place, a guess and the alternatives.
Only the plugins that the recipe names are imported, and torch is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rlframe.errors import PluginError, RecipeError, RlframeError
from rlframe.hooks.component import Component, ComponentSpec, PluginConfig
from rlframe.hooks.registry import Offer, Registry
from rlframe.recipe import wording
from rlframe.recipe.document import Document, Path_, read_document
from rlframe.recipe.references import broken_references
from rlframe.recipe.schema import Recipe


@dataclass(frozen=True)
class Chosen:
    """A component that the recipe names: who offers it, its class and its validated config."""

    offer: Offer
    component: type[Component[Any]]
    config: PluginConfig


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that can be run, as far as can be told without opening a model."""

    recipe: Recipe
    chosen: dict[Path_, Chosen]
    """The component at each path, e.g. ("rewards", "brevity")."""
    source: str
    """The text of the file, as it was."""

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled in: plain data that loads to the same digest."""
        plain = self.recipe.model_dump(mode="json")
        for path, chosen in self.chosen.items():
            node: Any = plain
            for key in path:
                node = node[key]
            for name, value in chosen.config.model_dump(mode="json").items():
                # A nested component's own defaults are filled in by its own entry of `chosen`.
                node[name] = value
        return plain

    @property
    def digest(self) -> str:
        """sha256 of the resolved recipe: equal digests describe the same run."""
        plain = self.resolved()
        # The order of keys means nothing but where each joins or wraps those beside it.
        for ordered in ("rewards", "hooks"):
            plain[ordered] = list(plain[ordered].items())
        canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class _Problem:
    path: Path_
    message: str
    error: type[RlframeError] = RecipeError


def load_recipe(
    path: Path, overrides: Iterable[str] = (), *, registry: Registry | None = None
) -> LoadedRecipe:
    """Read a recipe and check everything that needs no model.

    Args:
      path: a YAML file.
      overrides: `key.path=value`, applied in order.
      registry: the installed components; a fresh look at the environment if left out.

    Raises:
      RecipeError: any number of mistakes, each on a line of its own.
      PluginError: nothing is wrong but components that are missing or broken.
    """
    document = read_document(path)
    for text in overrides:
        document.override(text)
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        # Components are looked at all the same, so that one round shows every mistake.
        problems = [_Problem(p, m) for p, m in wording.explain(error, Recipe, document.data)]
        specs = list(_specs_in_data(document.data))
    else:
        problems = [_Problem(p, m) for p, m in broken_references(recipe)]
        specs = list(_specs(recipe, ()))
    chosen: dict[Path_, Chosen] = {}
    registry = registry or Registry()
    for where, spec in specs:
        problems += _choose(where, spec, registry, chosen)
    if problems:
        raise _all_at_once(problems, document)
    return LoadedRecipe(recipe, chosen, path.read_text(encoding="utf-8"))


def _specs(node: Any, path: Path_) -> Iterator[tuple[Path_, ComponentSpec]]:
    """Every component named below a validated model, with its path."""
    if isinstance(node, ComponentSpec):
        yield path, node
        return
    for key, value in _children(node):
        yield from _specs(value, (*path, key))


def _children(node: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(node, BaseModel):
        return [(name, getattr(node, name)) for name in type(node).model_fields]
    if isinstance(node, dict):
        return list(node.items())
    return enumerate(node) if isinstance(node, list | tuple) else ()


def _specs_in_data(data: dict[str, Any]) -> Iterator[tuple[Path_, ComponentSpec]]:
    """The same for a recipe that does not validate: whatever can be read as a component."""
    for path, kind in wording.component_slots(data):
        node: Any = data
        for key in path:
            node = node[key]
        try:
            yield path, kind.model_validate(node)
        except ValidationError:
            continue  # reported with the rest of the recipe


def _choose(
    path: Path_, spec: ComponentSpec, registry: Registry, chosen: dict[Path_, Chosen]
) -> list[_Problem]:
    """Find the component, validate its keys, and do the same for components inside it."""
    try:
        component = registry.load(spec.kind, spec.type)
    except PluginError as error:
        return [_Problem((*path, "type"), str(error), PluginError)]
    try:
        config = component.Config.model_validate(spec.options)
    except ValidationError as error:
        told = wording.explain(
            error, component.Config, spec.options, beside=frozenset(type(spec).model_fields)
        )
        return [_Problem((*path, *inner), message) for inner, message in told]
    chosen[path] = Chosen(registry.find(spec.kind, spec.type), component, config)
    return [
        problem
        for inner, nested in _specs(config, ())
        for problem in _choose((*path, *inner), nested, registry, chosen)
    ]


def _all_at_once(problems: list[_Problem], document: Document) -> RlframeError:
    far = (10**9, 0)

    def line(problem: _Problem) -> tuple[tuple[int, int], str]:
        return document.order.get(document.place(problem.path), far), wording.dotted(problem.path)

    told = [
        f"{document.place(p.path)}: {wording.dotted(p.path)}: {p.message}"
        for p in sorted(problems, key=line)
    ]
    plugins_only = all(p.error is PluginError for p in problems)
    return (PluginError if plugins_only else RecipeError)("\n".join(told))

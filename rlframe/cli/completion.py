"""What a shell may complete: names of components and recipes, keys of a recipe.

`rlframe --install-completion` teaches it to the shell, which completes paths of recipes by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import typer


def components(incomplete: str) -> list[str]:
    """Names that `type:` takes; `distribution/name` once there is a slash."""
    from rlframe.registry.discovery import KINDS, Registry

    registry = Registry()
    offers = [offer for kind in KINDS for offer in registry.offers(kind)]
    names = {offer.qualified if "/" in incomplete else offer.name for offer in offers}
    return _beginning(names, incomplete)


def distributions(incomplete: str) -> list[str]:
    """Distributions with components, and distribution/name, as --no-plugin takes them."""
    from rlframe.registry.discovery import KINDS, Registry
    from rlframe.registry.offers import CORE

    registry = Registry()
    offers = [offer for kind in KINDS for offer in registry.offers(kind)]
    names = {name for o in offers for name in (o.distribution, o.qualified)} - {CORE}
    return _beginning(names, incomplete)


def recipes(incomplete: str) -> list[str]:
    """The recipes that come with rlframe."""
    from rlframe.cli.recipes import known_recipes

    return _beginning(known_recipes(), incomplete)


def overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """`key.path=` for each key of the schema, and for each value that the recipe gives."""
    from rlframe.errors import RlframeError
    from rlframe.recipe.compose import compose
    from rlframe.recipe.document import dotted, leaves
    from rlframe.recipe.schema import Recipe

    removal = "~" if incomplete.startswith("~") else ""
    keys = set(_keys(Recipe))
    recipe = ctx.params.get("recipe")
    try:
        given = compose(Path(recipe)).data if recipe else {}
    except (
        RlframeError
    ):  # Tab in the middle of writing a recipe: the schema's keys are known all the same
        given = {}
    keys |= {dotted(path) for path, _ in leaves(given)}
    ending = "" if removal else "="
    return _beginning({f"{removal}{key}{ending}" for key in keys}, incomplete)


def _keys(model: Any, before: str = "") -> Iterator[str]:
    """Dotted paths of the keys of a section, without those of named instances."""
    for name, field in model.model_fields.items():
        parts = (field.annotation, *get_args(field.annotation))
        inner = [part for part in parts if _section(part)]
        if get_origin(field.annotation) is dict:  # of names that the recipe chooses
            continue
        if not inner:
            yield f"{before}{name}"
        for part in inner:
            yield from _keys(part, f"{before}{name}.")


def _section(part: Any) -> bool:
    return isinstance(part, type) and hasattr(part, "model_fields")


def _beginning(names: Any, incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))

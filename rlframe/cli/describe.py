"""`rlframe plugins show NAME`: what a component is for, where it comes from, and its keys."""

from __future__ import annotations

import inspect
import json
from typing import Annotated, Any

import typer

from rlframe.api.component import Component
from rlframe.cli.check import ComponentName, find
from rlframe.cli.options import AllowLocalCode
from rlframe.registry.discovery import KINDS, Registry
from rlframe.registry.local import is_local
from rlframe.registry.offers import Offer
from rlframe.text import cell, console, say, table


def show_plugin(
    name: ComponentName,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    allow_local_code: AllowLocalCode = False,
) -> None:
    """Say what a component does, where it comes from, and which keys a recipe may give it."""
    registry = Registry(local_code=allow_local_code)
    kind, offer = find(registry, name)
    component = registry.load(kind, name if is_local(name) else offer.qualified)
    page = _page(offer, component, registry)
    if as_json:
        say(json.dumps(page, default=str))
    else:
        _print(page)


def _page(offer: Offer, component: type[Component[Any]], registry: Registry) -> dict[str, Any]:
    return {
        "type": offer.name,
        "kind": offer.kind,
        "noun": KINDS[offer.kind][1],
        "distribution": offer.distribution,
        "version": offer.version,
        "api": list(component.rlframe_api),
        "target": offer.target,
        "file": _file(component),
        "state": registry.state(offer),
        "documentation": inspect.getdoc(component) or "",
        "keys": keys_of(component),
        "recipe_keys": sorted(component.reserved - {"type"}),
    }


def _file(component: type[Component[Any]]) -> str | None:
    try:
        return inspect.getsourcefile(component)
    except TypeError:  # of a class that was made by hand
        return None


def keys_of(component: type[Component[Any]]) -> list[dict[str, Any]]:
    """Each key of a component's config: name, type in words, whether required, default, description."""
    schema = component.Config.model_json_schema()
    required, definitions = schema.get("required", []), schema.get("$defs", {})
    return [
        {
            "name": name,
            "type": in_words(part, definitions),
            "required": name in required,
            "default": part.get("default"),
            "description": part.get("description", ""),
        }
        for name, part in schema.get("properties", {}).items()
    ]


_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "of {} characters or more",
    "minItems": "with {} or more",
}


def in_words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """The type that a JSON Schema asks for, as a person would say it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        target = definitions.get(name, {})
        return in_words(target, {}) if "enum" in target else f"mapping ({name})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(
                dict.fromkeys(in_words(part, definitions) for part in schema[several])
            )
    if "const" in schema or "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any value"))
    if kind == "array":
        return f"list of {in_words(schema.get('items', {}), definitions)}"
    bounds = [words.format(schema[key]) for key, words in _BOUNDS.items() if key in schema]
    return " ".join(
        [{"object": "mapping", "string": "text"}.get(kind, kind), ", ".join(bounds)]
    ).strip()


def _print(page: dict[str, Any]) -> None:
    major, minor = page["api"]
    say(f"{page['noun']} {page['type']}, of {page['distribution']} {page['version']}")
    say(f"plugin API {major}.{minor}; {page['target']}; {page['file'] or 'no file'}")
    if page["state"] != "ok":
        say(f"state: {page['state']}")
    if page["documentation"]:
        say(f"\n{page['documentation']}")
    if page["keys"]:
        shown = table("key", "type", "default", "description", whole=("key",))
        for key in page["keys"]:
            default = "required" if key["required"] else json.dumps(key["default"], default=str)
            shown.add_row(*map(cell, (key["name"], key["type"], default, key["description"])))
        say()
        console(width=140).print(shown)
    else:
        say("\nIt has no keys of its own.")
    if page["recipe_keys"]:
        say(f"Beside these, any {page['noun']} takes {', '.join(page['recipe_keys'])}.")

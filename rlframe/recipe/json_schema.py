"""The JSON Schema of a recipe (draft 2020-12), with every installed component: what an editor asks.

pydantic writes the parts. Three things are ours: keys beside `type` are chosen by if/then, which
gives exact messages where `oneOf` says "is not valid under any of the given schemas"; `${...}` may
stand wherever a value may; and a recipe that extends another needs no key and may remove some.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from rlframe.api.component import Component, ComponentSpec
from rlframe.errors import PluginError
from rlframe.recipe.document import REMOVE
from rlframe.recipe.schema import Recipe
from rlframe.registry.discovery import Registry
from rlframe.registry.local import LOCAL
from rlframe.registry.offers import Offer

Schema = dict[str, Any]

_INTERPOLATION = {"type": "string", "pattern": r"^\$\{(env|ref):"}
_EXTENDS = {
    "description": "a recipe file that this one changes, or a list; relative to this file",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def recipe_schema(registry: Registry) -> tuple[Schema, list[str]]:
    """The schema, and what is wrong with components that it has to leave open.

    Args:
      registry: the installed components; all of them are imported.
    """
    whole, change = _Part(registry, ""), _Part(registry, "change.")
    for part in (whole, change):
        part.add("Recipe", Recipe)
        part.defs[f"{part.prefix}Recipe"]["properties"]["extends"] = _EXTENDS
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rlframe recipe",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": "#/$defs/change.Recipe"},
        "else": {"$ref": "#/$defs/Recipe"},
        "$defs": whole.defs | change.defs,
    }
    return schema, whole.broken


class _Part:
    """The definitions of a recipe that stands alone or, with a prefix, of one that extends another."""

    def __init__(self, registry: Registry, prefix: str) -> None:
        self.registry, self.prefix = registry, prefix
        self.defs: dict[str, Schema] = {}
        self.broken: list[str] = []
        self.specs = {spec.__name__: spec for spec in _subclasses(ComponentSpec)}

    def add(self, name: str, model: type[BaseModel], own: str = "") -> None:
        """Define a model, and under names that begin with `own` what it refers to."""
        template = f"#/$defs/{self.prefix}{own}{{model}}"
        schema = model.model_json_schema(ref_template=template)
        for inner, definition in schema.pop("$defs", {}).items():
            if inner not in self.specs:
                self.defs[f"{self.prefix}{own}{inner}"] = self.finished(definition)
                continue
            if own:  # a component inside a component may be any
                self.defs[f"{self.prefix}{own}{inner}"] = {"$ref": f"#/$defs/{self.prefix}{inner}"}
            if f"{self.prefix}{inner}" not in self.defs:
                self.component(inner, self.specs[inner], self.finished(definition))
        self.defs[f"{self.prefix}{name}"] = self.finished(schema)

    def component(self, name: str, spec: type[ComponentSpec], schema: Schema) -> None:
        """`type` is one of what is installed, and the keys beside it are those of that component."""
        self.defs[f"{self.prefix}{name}"] = schema
        choices: list[str] = []
        schema["allOf"] = []
        for offer in self.registry.offers(spec.kind):
            names = _names(self.registry, offer)
            choices += names
            condition: Schema = {"properties": {"type": {"enum": names}}}
            if self.prefix or spec.model_fields["type"].default not in names:
                condition["required"] = ["type"]
            try:
                component = self.registry.load(spec.kind, offer.qualified)
            except PluginError as error:
                self.broken.append(str(error))
                continue
            own = f"{name}.{offer.distribution}.{offer.name}"
            self.branch(own, component, schema)
            schema["allOf"].append(
                {"if": condition, "then": {"$ref": f"#/$defs/{self.prefix}{own}"}}
            )
        if not schema["allOf"]:  # nobody offers this kind, and JSON Schema wants no empty list
            del schema["allOf"]
        local_file = {"type": "string", "pattern": LOCAL.pattern}
        schema["properties"]["type"] = {"if": local_file, "else": {"enum": choices}}

    def branch(self, own: str, component: type[Component[Any]], spec: Schema) -> None:
        self.add(own, component.Config, f"{own}.")
        branch = self.defs[f"{self.prefix}{own}"]
        branch["description"] = inspect.getdoc(component) or ""
        beside = dict.fromkeys(spec["properties"], True)  # validated by the definition around it
        branch["properties"] = beside | {"type": True} | branch.get("properties", {})

    def finished(self, schema: Schema) -> Schema:
        """A model's schema as it came from pydantic, with what an editor needs."""
        schema.pop("title", None)
        properties = schema.get("properties", {})
        schema["properties"] = {name: _value(part) for name, part in properties.items()}
        if self.prefix:
            schema.pop("required", None)
            schema["patternProperties"] = {
                f"^{REMOVE}": {"type": "null", "description": "removes what was inherited"}
            }
            for part in schema["properties"].values():
                for mapping in (part, part.get("else", {})):
                    if isinstance(mapping.get("additionalProperties"), dict):
                        mapping["patternProperties"] = schema["patternProperties"]
        return schema


def _value(schema: Schema) -> Schema:
    """A key's value, or a `${...}` in its place. The words stay outside, where editors find them."""
    schema.pop("title", None)
    if isinstance(schema.get("default"), dict):
        del schema["default"]  # of a section: stated key by key
    if schema.get("type") == "string" and not {"enum", "const", "pattern"} & schema.keys():
        return schema
    found: Schema = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    parts = schema.get("anyOf", [schema])
    (last,) = [part for part in parts if "$ref" in part][-1:] or parts[:1]
    others = [part for part in parts if part is not last]
    # Not `anyOf` with `last` in it: of a typo inside that it would only say that nothing fits.
    return found | {"if": {"anyOf": [_INTERPOLATION, *others]}, "else": last}


def _names(registry: Registry, offer: Offer) -> list[str]:
    """What a recipe may write for an offer: the bare name only where it is not ambiguous."""
    try:
        bare = registry.find(offer.kind, offer.name) == offer
    except PluginError:
        bare = False
    return [offer.name, offer.qualified] if bare else [offer.qualified]


def _subclasses(model: type[ComponentSpec]) -> Iterator[type[ComponentSpec]]:
    for inner in model.__subclasses__():
        yield inner
        yield from _subclasses(inner)

"""`rlframe show RECIPE [key=value ...]`: what a recipe says once everything is put together."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rlframe.cli.options import AllowLocalCode, NoPlugin, Overrides, installed
from rlframe.recipe.compose import compose
from rlframe.recipe.document import Document, dotted, leaves
from rlframe.redaction import redacted, redacted_tree
from rlframe.text import say, visible


def show(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option(help="Fill in every default; the recipe has to be valid for that.")
    ] = False,
    provenance: Annotated[
        bool, typer.Option(help="A line a value: which file or override wrote it, instead of what.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    no_plugin: NoPlugin = None,
    allow_local_code: AllowLocalCode = False,
) -> None:
    """Print a recipe as it is after extends, overrides and ${...}."""
    if resolved:
        from rlframe.recipe import load_recipe  # builds the whole schema

        registry = installed(no_plugin, allow_local_code=allow_local_code)
        loaded = load_recipe(recipe, overrides or [], registry=registry)
        document, data = loaded.document, loaded.resolved()
    else:
        document = compose(recipe, overrides or [])
        document.check()
        data = document.shown(document.data)
    if provenance:
        rows = [_row(path, value, document) for path, value in leaves(data)]
        say(json.dumps(rows) if as_json else "\n".join(map(_line, rows)))
    else:
        say(json.dumps(data) if as_json else _yaml(data).removesuffix("\n"))


def _row(path: Any, value: Any, document: Document) -> dict[str, Any]:
    """Where one value comes from. Inside a list or a `${ref:}` that is where the whole was written."""
    written = any(path[:end] in document.written for end in range(1, len(path) + 1))
    known = path in document.places or written
    row = {
        "path": dotted(path),
        "value": value,
        "place": redacted(document.place(path)) if known else "default",
        "replaced": [
            {"value": redacted_tree(r.value), "place": redacted(r.place)}
            for r in document.replaced.get(path, [])
        ],
    }
    return {**row, "written": redacted(document.written[path])} if path in document.written else row


def _line(row: dict[str, Any]) -> str:
    text = f"{row['path']}: {json.dumps(row['value'], ensure_ascii=False)}  # {row['place']}"
    if "written" in row:
        text += f", from {row['written']}"
    for old in reversed(row["replaced"]):
        text += f", replaced {json.dumps(old['value'], ensure_ascii=False)} of {old['place']}"
    return text


def _yaml(data: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style = False
    yaml.width = 10_000  # a long value stays on its line
    yaml.dump(data, text)
    if (
        visible(text.getvalue()) != text.getvalue()
    ):  # a terminal would obey it: as escapes, in quotes
        yaml.allow_unicode, text = False, io.StringIO()
        yaml.dump(data, text)
    return text.getvalue()

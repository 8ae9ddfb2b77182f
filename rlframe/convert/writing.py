"""From keys and values to the text of a recipe, with a comment behind each key: where it comes from."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from rlframe.api.component import ComponentSpec
from rlframe.convert.option import ABSENT
from rlframe.errors import RlframeError
from rlframe.recipe import Recipe, load_recipe
from rlframe.recipe.document import dotted, escaped
from rlframe.registry.discovery import Registry
from rlframe.text import lines, visible

Path_ = tuple[str, ...]


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as mappings in mappings."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *above, last = key.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def default_of(key: str, tree: Mapping[str, Any], registry: Registry) -> Any:
    """What a key has in a recipe that leaves it out; ABSENT if it has to be written.

    Args:
      key: dotted.
      tree: the recipe, whose `type:`s say which component a key belongs to.
      registry: the installed components.
    """
    model: Any = Recipe
    node: Any = tree
    *above, last = key.split(".")
    for part in above:
        node = node.get(part, {})
        model = _inner(model, part)
        if model is None:
            return ABSENT
    fields = getattr(model, "model_fields", {})
    if last not in fields and "type" in fields and issubclass(model, ComponentSpec):
        name = node.get("type", fields["type"].default)
        fields = registry.load(model.kind, str(name)).Config.model_fields
    if last not in fields or fields[last].is_required():
        return ABSENT
    return fields[last].get_default(call_default_factory=True)


def _inner(model: Any, part: str) -> Any:
    """The section under a key of a section, or of a mapping of named sections; None if it is none."""
    if get_origin(model) is dict:
        annotation = get_args(model)[1]
    else:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
    return next(_sections(annotation), None)


def _sections(annotation: Any) -> Iterator[Any]:
    if (isinstance(annotation, type) and issubclass(annotation, BaseModel)) or get_origin(
        annotation
    ) is dict:
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _sections(part)


def without_defaults(values: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """The keys that a recipe needs to mean the same.

    A section that is not there by default, such as `model.lora`, stays as `{}`.
    """
    tree, kept = nested(values), dict[str, Any]()
    for key, value in values.items():
        default = default_of(key, tree, registry)
        if not same(value, default):
            kept[key] = value
    for key in values.keys() - kept.keys():
        section = key.rpartition(".")[0]
        missing = not any(k == section or k.startswith(f"{section}.") for k in kept)
        if section and missing and default_of(section, tree, registry) is None:
            kept[section] = {}
    return kept


def same(value: Any, default: Any) -> bool:
    """Whether a value is the default, where true is not 1."""
    if isinstance(value, bool) != isinstance(default, bool):
        return False
    if isinstance(value, list):
        value = tuple(value)
    return bool(value == default)


def recipe_text(values: Mapping[str, Any], comments: Mapping[str, str], head: Sequence[str]) -> str:
    """A recipe as YAML, its keys in the order of docs/recipe.md.

    Args:
      values: dotted keys.
      comments: of each key, what stands behind it.
      head: lines of the comment at the top.
    """
    tree = _commented(_ordered(nested({"version": 1, **values}), Recipe), comments)
    yaml, text = YAML(), io.StringIO()
    yaml.width = 10_000  # a long value stays on its line
    yaml.dump(tree, text)
    body = text.getvalue()
    if visible(body) != body:  # a terminal would obey it: as escapes, in quotes
        yaml.allow_unicode, text = False, io.StringIO()
        yaml.dump(tree, text)
        body = text.getvalue()
    return "".join(f"# {in_one_line(line)}".rstrip() + "\n" for line in head) + body


def in_one_line(text: str) -> str:
    """Text of a file as part of a line: no line break, and nothing that a terminal would obey."""
    return visible(" ".join(text.split()))


def _ordered(tree: dict[str, Any], model: Any) -> dict[str, Any]:
    """The same keys, those of a section in the order of its fields, and `type` first."""
    fields = [] if get_origin(model) is dict else list(model.model_fields)
    rank = {name: place for place, name in enumerate(["type", *(f for f in fields if f != "type")])}
    known = sorted(tree, key=lambda name: rank.get(name, len(rank)))
    found: dict[str, Any] = {}
    for name in known:
        inner = _inner(model, name)
        deeper = isinstance(tree[name], dict) and inner is not None
        found[name] = _ordered(tree[name], inner) if deeper else tree[name]
    return found


def _commented(node: Any, comments: Mapping[str, str], path: Path_ = ()) -> Any:
    if isinstance(node, str):
        return escaped(node)
    if isinstance(node, list | tuple):
        plain = CommentedSeq(_commented(item, {}, ()) for item in node)
        plain.fa.set_flow_style()
        return plain
    if not isinstance(node, dict):
        return node
    found = CommentedMap((k, _commented(v, comments, (*path, k))) for k, v in node.items())
    if not node or dotted(path) in comments or (not path and not comments):
        found.fa.set_flow_style()
    for key in node:
        if comment := comments.get(dotted((*path, key))):
            found.yaml_add_eol_comment(in_one_line(comment), key, column=0)
    return found


def refusals(text: str) -> list[str]:
    """What rlframe's own loading finds wrong with a recipe, apart from files that are not there."""
    with tempfile.TemporaryDirectory(prefix="rlframe-") as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(text, encoding="utf-8")
        try:
            load_recipe(path)
        except RlframeError as error:
            if not error.problems:
                return lines(str(error).replace(f"{path}:", "line "))
            return [
                f"{dotted(problem.path)}: {problem.message}"
                for problem in error.problems
                if not _of_a_file(problem.path)
            ]
    return []


def _of_a_file(path: tuple[str | int, ...]) -> bool:
    """Whether a mistake is that of a data file or DeepSpeed file, which may be on another machine."""
    data = len(path) == 3 and path[0] == "data" and path[2] == "path"
    return data or path == ("runtime", "deepspeed_config")

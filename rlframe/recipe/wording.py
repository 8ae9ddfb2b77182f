"""pydantic's errors in a user's words: the path as it was typed, a guess, what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlframe.errors import did_you_mean, listed
from rlframe.hooks.component import ComponentSpec
from rlframe.recipe.document import Path_
from rlframe.recipe.schema import (
    AdvantageSpec,
    GeneratorSpec,
    HookSpec,
    KLControllerSpec,
    LossSpec,
    RewardEntry,
)


def dotted(path: Path_) -> str:
    """("rewards", "brevity", "weight") -> "rewards.brevity.weight"."""
    return ".".join(map(str, path)) or "recipe"


def component_slots(data: dict[str, Any]) -> Iterator[tuple[Path_, type[ComponentSpec]]]:
    """Where components stand in an unvalidated recipe."""
    datasets = data.get("data")
    for name, dataset in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict) and "generator" in dataset:
            yield ("data", name, "generator"), GeneratorSpec
    for section, kind in (
        ("rewards", RewardEntry),
        ("losses", LossSpec),
        ("hooks", HookSpec),
    ):
        entries = data.get(section)
        if isinstance(entries, dict):
            yield from (((section, name), kind) for name in entries)
    kl = data.get("kl")
    if isinstance(kl, dict) and "controller" in kl:
        yield ("kl", "controller"), KLControllerSpec
    if "advantages" in data:
        yield ("advantages",), AdvantageSpec


def explain(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    *,
    beside: frozenset[str] = frozenset(),
) -> list[tuple[Path_, str]]:
    """Each mistake once: (path as typed, message).

    Args:
      error: what pydantic raised.
      model: the model that was validated.
      data: what was validated, to tell typed keys from pydantic's union tags.
      beside: keys of the recipe's own that stand at the top of `data` as well.
    """
    told: dict[Path_, str] = {}
    for detail in error.errors(include_url=False):
        path = _typed(detail["loc"], data, missing=detail["type"] == "missing")
        keys = _keys_at(model, path[:-1])
        message = _message(detail, keys | beside if len(path) == 1 else keys)
        # Of a union every member complains about the same place; the first to do so is kept,
        # unless a later one knows a deeper place.
        told.setdefault(path, message)
    return [(path, message) for path, message in told.items() if not _shadowed(path, told)]


def _shadowed(path: Path_, told: dict[Path_, str]) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in told)


def _typed(loc: tuple[str | int, ...], data: Any, *, missing: bool) -> Path_:
    """The location without the union tags that pydantic puts in (pydantic #3947)."""
    path: list[str | int] = []
    node = data
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        known: Any = dict(enumerate(node)) if isinstance(node, list) else node
        if isinstance(known, dict) and part in known:
            node = known[part]
        elif not (missing and last):
            continue
        path.append(part)
    return tuple(path)


def _keys_at(model: type[BaseModel], path: Path_) -> frozenset[str]:
    """The keys that the model knows at a path; several members of a union join theirs."""
    found: list[type[BaseModel]] = [model]
    for part in path:
        found = [
            inner
            for here in found
            for inner in (
                _models_in(here.model_fields[str(part)].annotation)
                if str(part) in here.model_fields
                else [here]  # the key of a mapping of named instances
            )
        ]
    return frozenset(name for here in found for name in here.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _message(detail: ErrorDetails, keys: frozenset[str]) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        name = str(detail["loc"][-1])
        return f"unknown key {name!r}.{did_you_mean(name, keys)} Known here: {listed(keys)}"
    if kind == "missing":
        return "this key is required"
    if kind == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    message = detail["msg"]
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "input should be a mapping of keys"
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    return f"{message[0].lower()}{message[1:]}, but it is {shown}"

"""pydantic's errors in a user's words: the path as it was typed, a guess, what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlframe.api.component import ComponentSpec
from rlframe.errors import did_you_mean, listed
from rlframe.recipe.data import GeneratorSpec
from rlframe.recipe.document import Path_, dotted
from rlframe.recipe.renamed import RENAMED
from rlframe.recipe.schema import (
    AdvantageSpec,
    HookSpec,
    KLControllerSpec,
    LossSpec,
    PolicyLossSpec,
    RewardEntry,
    SamplerSpec,
    TransformSpec,
    ValueLossSpec,
)

MOST = 200
"""About how many mistakes are reported at a time: those of a file that is no recipe are endless."""
REQUIRED = "this key is required"


def component_slots(data: dict[str, Any]) -> Iterator[tuple[Path_, type[ComponentSpec]]]:
    """Where components stand in an unvalidated recipe."""
    datasets = data.get("data")
    for name, dataset in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict) and "generator" in dataset:
            yield ("data", name, "generator"), GeneratorSpec
    named: tuple[tuple[str, type[ComponentSpec]], ...] = (
        ("rewards", RewardEntry),
        ("losses", LossSpec),
        ("hooks", HookSpec),
    )
    for section, kind in named:
        entries = data.get(section)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            yield (section, name), kind
            chain = entry.get("transforms") if isinstance(entry, dict) else None
            for number, _ in enumerate(chain if isinstance(chain, list) else ()):
                yield (section, name, "transforms", number), TransformSpec
    kl = data.get("kl")
    if isinstance(kl, dict) and "controller" in kl:
        yield ("kl", "controller"), KLControllerSpec
    rollout = data.get("rollout")
    if isinstance(rollout, dict) and rollout.get("sampler") is not None:
        yield ("rollout", "sampler"), SamplerSpec
    algorithm = data.get("algorithm")
    written: dict[str, Any] = algorithm if isinstance(algorithm, dict) else {}
    parts: dict[str, type[ComponentSpec]] = {
        "advantages": AdvantageSpec,
        "policy_loss": PolicyLossSpec,
        "value_loss": ValueLossSpec,
    }
    for part, kind in parts.items():
        if written.get(part) is not None:
            yield ("algorithm", part), kind


def explain(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    *,
    at: Path_ = (),
    beside: frozenset[str] = frozenset(),
) -> list[tuple[Path_, str]]:
    """Each mistake once: (path as typed, message).

    Args:
      error: what pydantic raised.
      model: the model that was validated.
      data: what was validated, to tell typed keys from pydantic's union tags.
      at: where in the recipe the data stands.
      beside: keys of the recipe's own that stand at the top of `data` as well.
    """
    by_place: dict[Path_, list[_Message]] = {}
    # A guess for each of thousands of keys takes minutes, and nobody reads them.
    for detail in error.errors(include_url=False)[:MOST]:
        path = _typed(detail["loc"], data, missing=detail["type"] == "missing")
        keys = _keys_at(model, path[:-1])
        message = _message(detail, keys | beside if len(path) == 1 else keys, (*at, *path))
        by_place.setdefault(path, []).append(message)
    # Of a union every member complains: about the same place, which is reported in one sentence, or
    # about a deeper one, which then says more.
    return [
        (p, _joined(messages)) for p, messages in by_place.items() if not _shadowed(p, by_place)
    ]


def _shadowed(path: Path_, by_place: Iterable[Path_]) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in by_place)


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


@dataclass(frozen=True)
class _Message:
    """A whole sentence, or what was wanted and what was found instead."""

    text: str
    found: str = ""


_WANTED = {
    "int": "a valid integer",
    "float": "a valid number",
    "bool": "true or false",
    "string": "a valid string",
    "model": "a mapping of keys",
    "dict": "a mapping of keys",
    "list": "a list",
    "tuple": "a list",
    "finite": "a finite number",
}


def _message(detail: ErrorDetails, keys: frozenset[str], path: Path_) -> _Message:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _Message(_unknown_key(path, keys))
    if kind == "missing":
        return _Message(REQUIRED)
    if kind == "value_error":
        return _Message(detail["msg"].removeprefix("Value error, "))
    if kind == "bool":  # of Section: pydantic itself reads true as 1
        return _Message(f"input should not be true or false, but it is {_shown(value)}")
    if kind == "too_short" and not value:
        return _Message(f"at least {detail['ctx']['min_length']} is needed, but none is given")
    family, _, rest = kind.partition("_")
    if rest in ("type", "parsing", "from_float", "number", "attributes_type", "parsing_size"):
        return _Message(_WANTED.get(family, detail["msg"]), _shown(value))
    wanted = detail["msg"].removeprefix("Input should be ")
    if wanted == detail["msg"]:
        return _Message(f"{wanted[0].lower()}{wanted[1:]}, but it is {_shown(value)}")
    guess = ""
    if kind == "literal_error" and isinstance(value, str):
        guess = did_you_mean(value, re.findall(r"'([^']*)'", wanted))
    return _Message(wanted, f"{_shown(value)}{'.' if guess else ''}{guess}")


def _joined(messages: list[_Message]) -> str:
    first = messages[0]
    if not first.found:
        return first.text
    wanted = dict.fromkeys(m.text for m in messages if m.found)
    return f"input should be {' or '.join(wanted)}, but it is {first.found}"


def _unknown_key(path: Path_, keys: frozenset[str]) -> str:
    name = str(path[-1])
    any_name = (path[0], "*", *path[2:])
    renamed = RENAMED.get(dotted(path)) or RENAMED.get(dotted(any_name))
    if renamed:
        return f"unknown key {name!r}. Here it is called {renamed}"
    if not name.isascii():  # a letter of another alphabet, or one without width, is not seen
        foreign = ", ".join(f"U+{ord(letter):04X}" for letter in name if not letter.isascii())
        return (
            f"unknown key {name!r} (with {foreign}).{did_you_mean(name, keys)} "
            f"Known here: {listed(keys)}"
        )
    return f"unknown key {name!r}.{did_you_mean(name, keys)} Known here: {listed(keys)}"


def _shown(value: Any) -> str:
    """A value as YAML has it, in a few words."""
    if isinstance(value, dict):
        return "a mapping of keys" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null (nothing)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}".replace("inf", ".inf").replace("nan", ".nan")
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

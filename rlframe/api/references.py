"""Names in a component's config that mean something else in the recipe, declared so that
`rlframe validate` can look them up without building anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel


@dataclass(frozen=True)
class Refers:
    """What the text in a config field is the name of."""

    to: Literal["data", "model", "column", "reward"]


DataName = Annotated[str, Refers("data")]
"""The type of a config field that names a data set of the recipe."""
ModelName = Annotated[str, Refers("model")]
"""The type of a config field that names a model: a path, a hub id, or `stage:NAME`, the result of a
stage of the recipe."""
ColumnName = Annotated[str, Refers("column")]
"""The type of a config field that names a column which every row of the prompts' data set must have."""
RewardName = Annotated[str, Refers("reward")]
"""The type of a config field that names a reward of the recipe."""


@dataclass(frozen=True)
class Reference:
    """One name in a config."""

    path: tuple[str | int, ...]
    """Of the field, below the config."""
    name: str
    to: Literal["data", "model", "column", "reward"]


def references(config: BaseModel) -> Iterator[Reference]:
    """Every name in a config, fields of nested models and items of sequences included.

    The configs of components inside are not looked into: they are components of their own.
    """
    for field, info in type(config).model_fields.items():
        # pydantic takes the metadata of an annotation off it, unless it stands deeper inside.
        annotation: Any = info.annotation
        if info.metadata:
            annotation = Annotated[annotation, *info.metadata]
        yield from _found(getattr(config, field), annotation, (field,))


def _found(value: Any, annotation: Any, path: tuple[str | int, ...]) -> Iterator[Reference]:
    if isinstance(value, BaseModel):
        yield from (
            Reference((*path, *inner.path), inner.name, inner.to) for inner in references(value)
        )
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _found(item, annotation, (*path, number))
    elif isinstance(value, str) and (mark := _mark(annotation)) is not None:
        yield Reference(path, value, mark.to)


def _mark(annotation: Any) -> Refers | None:
    """The mark in an annotation, however deep."""
    for part in (*getattr(annotation, "__metadata__", ()), *get_args(annotation)):
        found = part if isinstance(part, Refers) else _mark(part)
        if found is not None:
            return found
    return None

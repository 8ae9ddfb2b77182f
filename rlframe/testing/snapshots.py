"""What a value holds, however deep, to see later whether somebody has changed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from rlframe.api.component import Component

Snapshot = dict[str, Any]
"""Path -> what stands there."""


def snapshot(value: Any, path: str) -> Snapshot:
    """Everything in a value, copied: tensors bit by bit, and of a component its attributes.

    Args:
      value: made of dataclasses, mappings, lists, tensors, modules, components and plain values.
      path: what to call it.
    """
    if isinstance(value, torch.Tensor):
        bits = value.detach().cpu().contiguous().numpy().tobytes()
        return {path: (value.dtype, tuple(value.shape), bits)}
    if isinstance(value, Component):
        return {f"{path}.{name}": id(inner) for name, inner in vars(value).items()}
    parts = _parts(value)
    if parts is None:
        return {path: repr(value) if isinstance(value, float) else value}
    found: Snapshot = {path: (type(value), len(parts))}
    for name, inner in parts.items():
        found |= snapshot(inner, f"{path}{name}")
    return found


def _parts(value: Any) -> dict[str, Any] | None:
    """What a value is made of; None if it is a thing by itself."""
    if isinstance(value, torch.nn.Module):
        weights = {f".{name}": weight for name, weight in value.state_dict().items()}
        return {".training": value.training, **weights}
    if is_dataclass(value) and not isinstance(value, type):
        # A generator of random numbers is there to be drawn from.
        inside = {f".{field.name}": getattr(value, field.name) for field in fields(value)}
        return {n: x for n, x in inside.items() if not isinstance(x, torch.Generator)}
    if isinstance(value, Mapping):
        return {f"[{name!r}]": inner for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return {f"[{number}]": inner for number, inner in enumerate(value)}
    return None


def difference(before: Snapshot, after: Snapshot) -> str | None:
    """The first path at which two snapshots differ; None if there is none."""
    for path in {**before, **after}:
        if path not in before or path not in after or before[path] != after[path]:
            return path
    return None

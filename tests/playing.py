"""A PPO run of a recipe's real parts, update by update, with nothing written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from rlframe.api.component import Component, Instance
from rlframe.compose.ppo import PPOParts
from rlframe.engine.ppo import Run
from rlframe.engine.update_metrics import Update


def watched(parts: PPOParts, record: Callable[[Update], None]) -> Run:
    """The run of some parts that hands each update to `record`, and neither evaluates nor saves."""
    nowhere: Any = None
    nothing: Any = SimpleNamespace(after=lambda *_, **__: None)
    log: Any = SimpleNamespace(log=lambda update, _: record(update))
    run = parts.run(nowhere, nowhere, nowhere)
    return replace(run, metrics=log, heldout=nothing, checkpoints=nothing)


def part(key: str, component: type[Component[Any]], **config: Any) -> Instance[Any]:
    """A component of `algorithm`, as a recipe with this config would make it."""
    context: Any = None
    return Instance(
        key, f"{component.__name__} (rlframe)", component(component.Config(**config), context)
    )

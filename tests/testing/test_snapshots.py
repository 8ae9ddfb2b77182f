"""A snapshot notices a change anywhere in a value, says where, and takes nothing for a change."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from rlframe.testing import reward_batch, tiny_context
from rlframe.testing.snapshots import difference, snapshot


@dataclass
class Batch:
    """Of everything that a plugin may be given."""

    scores: torch.Tensor = field(default_factory=lambda: torch.tensor([1.0, torch.nan]))
    names: list[str] = field(default_factory=lambda: ["a", "b"])
    state: dict[str, Any] = field(default_factory=lambda: {"mean": 0.5, "seen": (1, 2)})
    model: torch.nn.Module = field(default_factory=lambda: torch.nn.Linear(2, 1))
    value: float = float("nan")


def change_model(batch):
    with torch.no_grad():
        batch.model.bias += 1


CHANGES = {
    "batch.scores": lambda batch: batch.scores.nan_to_num_(0.0),
    "batch.names": lambda batch: batch.names.append("c"),
    "batch.names[0]": lambda batch: batch.names.sort(reverse=True),
    "batch.state['mean']": lambda batch: batch.state.update(mean=0.25),
    "batch.state": lambda batch: batch.state.update(more=1),
    "batch.model.bias": change_model,
    "batch.model.training": lambda batch: batch.model.eval(),
    "batch.value": lambda batch: setattr(batch, "value", 0.0),
}


@pytest.mark.parametrize("path", CHANGES)
def test_a_change_is_found_where_it_was_made(path):
    batch = Batch()
    before = snapshot(batch, "batch")
    assert difference(before, snapshot(batch, "batch")) is None
    CHANGES[path](batch)
    assert difference(before, snapshot(batch, "batch")) == path


def test_a_copy_is_the_same_and_drawing_random_numbers_changes_nothing():
    batch = reward_batch(tiny_context())
    before = snapshot(batch, "batch")
    torch.rand(3, generator=batch.generator)
    assert difference(before, snapshot(batch, "batch")) is None

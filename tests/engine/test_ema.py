from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlframe.distributed.training import Replicated
from rlframe.engine.ema import EMA


class Models(nn.Module):
    """A policy of two weights, one of them frozen, and a critic."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.policy = nn.ParameterDict({
            "moving": nn.Parameter(torch.tensor([1.0, 2.0], dtype=dtype)),
            "frozen": nn.Parameter(torch.tensor([9.0], dtype=dtype), requires_grad=False),
        })  # fmt: skip
        self.critic = nn.Linear(1, 1)

    def moves_to(self, *values: float) -> None:
        with torch.no_grad():
            self.policy["moving"].copy_(torch.tensor(values))


class Counted(Replicated):
    """Counts how often weights were asked for: under other strategies each time is a gather."""

    asked = 0

    def weights(self) -> dict[str, Tensor]:
        self.asked += 1
        return super().weights()


def training(dtype: torch.dtype = torch.float32) -> tuple[Models, Counted]:
    models = Models(dtype)
    optimizer = torch.optim.SGD([models.policy["moving"]], lr=1.0)
    options: Any = {"max_grad_norm": 1.0, "world_size": 1, "autocast": nullcontext}
    return models, Counted(models, optimizer, **options)


def kept(average: EMA) -> Mapping[str, Tensor]:
    assert average.weights is not None
    return average.weights


def test_two_updates_by_hand() -> None:
    """0.75 of what was, 0.25 of what is, from the weights before the first update."""
    models, trained = training()
    average = EMA(trained, decay=0.75, main=True)
    average.begin(None)
    models.moves_to(5.0, 2.0)
    average.update()
    assert kept(average)["policy.moving"].tolist() == [2.0, 2.0]
    models.moves_to(6.0, 10.0)
    average.update()
    assert kept(average)["policy.moving"].tolist() == [3.0, 4.0]
    assert models.policy["moving"].tolist() == [6.0, 10.0]
    assert set(kept(average)) == {"policy.moving"}  # neither what never moves, nor the critic


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_no_shorter_than_float32(dtype: torch.dtype) -> None:
    models, trained = training(dtype)
    average = EMA(trained, decay=0.992, main=True)
    average.begin(None)
    models.moves_to(2.0, 2.0)
    average.update()
    found = kept(average)["policy.moving"]
    assert found.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert found.tolist() == pytest.approx([1.008, 2.0], rel=1e-6)  # 1.0078125 in bfloat16


def test_it_goes_on_from_what_was_saved() -> None:
    models, trained = training()
    calm = EMA(trained, decay=0.9, main=True)
    calm.begin(None)
    models.moves_to(0.1, 0.7)
    calm.update()
    saved = {name: tensor.clone() for name, tensor in kept(calm).items()}
    again = EMA(trained, decay=0.9, main=True)
    again.begin({**saved, "policy.frozen": torch.ones(1)})
    models.moves_to(0.3, -3.0)
    for average in (calm, again):
        average.update()
    assert torch.equal(kept(again)["policy.moving"], kept(calm)["policy.moving"])
    assert not torch.equal(kept(again)["policy.moving"], saved["policy.moving"])


def test_a_rank_that_keeps_nothing_takes_part_all_the_same() -> None:
    _, trained = training()
    average = EMA(trained, decay=0.9, main=False)
    average.begin(None)
    average.update()
    assert average.weights is None
    assert trained.asked == 2

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rlframe.distributed.offload import brought
from rlframe.distributed.runtime import Runtime


class Tied(nn.Module):
    """Two layers of one weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(self.first(x)) * self.scale


def places(model: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The CPU's memory plays the device: what goes there is a copy. Where the copies are, is noted."""
    arrived: list[int] = []
    move = torch.Tensor.to

    def to(self: torch.Tensor, where: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not isinstance(where, torch.device):
            return move(self, where, *args, **kwargs)
        copied = self.clone()
        arrived.append(copied.data_ptr())
        return copied

    monkeypatch.setattr(torch.Tensor, "to", to)
    return arrived


def test_weights_and_buffers_come_and_go_and_tied_ones_come_once(elsewhere: list[int]) -> None:
    model = Tied()
    x, home = torch.randn(2, 3), places(model)
    expected = model(x)
    for _ in range(2):
        elsewhere.clear()
        with brought(model, torch.device("cpu")):
            assert len(elsewhere) == 2
            assert places(model) == set(elsewhere)
            assert not places(model) & home
            assert model.first.weight is model.second.weight
            assert torch.equal(model(x), expected)
        assert places(model) == home
        assert torch.equal(model(x), expected)


def test_weights_go_when_the_work_fails(elsewhere: list[int]) -> None:
    model = Tied()
    home = places(model)
    with pytest.raises(ZeroDivisionError), brought(model, torch.device("cpu")):
        raise ZeroDivisionError
    assert places(model) == home


def test_a_runtime_brings_all_that_were_frozen_and_leaves_what_was_replicated(
    elsewhere: list[int],
) -> None:
    runtime = Runtime(device="cpu", placement="offload")
    models = [runtime.frozen(Tied()) for _ in range(2)]
    always = runtime.replicated(Tied())
    home, stays = [places(model) for model in models], places(always)
    assert not any(p.requires_grad for model in models for p in model.parameters())
    with runtime.resident():
        assert all(not places(m) & h for m, h in zip(models, home, strict=True))
        assert places(always) == stays
    assert [places(model) for model in models] == home


@pytest.mark.parametrize("placement", ["replicate", "shard"])
def test_one_process_keeps_a_copy_whatever_its_share(placement: Any, elsewhere: list[int]) -> None:
    runtime = Runtime(device="cpu", placement=placement)
    model = runtime.frozen(Tied())
    home = places(model)
    with runtime.resident():
        assert places(model) == home

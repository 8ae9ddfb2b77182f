"""Models that are not trained wait in the memory of the CPU while others learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def brought(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Weights are on the device inside, and outside the very tensors that they are now.

    Nothing is copied back, since nothing has changed: the copies on the device are dropped.
    """
    waiting = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    for tensor, data in waiting:
        tensor.data = data.to(device)
    try:
        yield
    finally:
        for tensor, data in waiting:
            tensor.data = data

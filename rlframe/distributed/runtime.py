"""The processes of a run, as the engine sees them: sums over ranks, and a wrapped model to step."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from rlframe.errors import SetupError

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class Runtime:
    """accelerate's view of this run.

    Args:
      device: "auto" takes a GPU if there is one.
      threads: torch threads of this process; torch's choice if None.

    Raises:
      SetupError: the device is not there.
    """

    def __init__(
        self, *, device: Literal["auto", "cpu", "cuda"] = "auto", threads: int | None = None
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise SetupError("runtime.device is cuda, but torch sees no GPU on this machine")
        if threads is not None:
            torch.set_num_threads(threads)
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        if on_cpu:  # deepspeed warns about every machine without a GPU unless it is told
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        self._accelerator = Accelerator(cpu=on_cpu)
        if self._accelerator.num_processes > 1:
            raise SetupError(
                f"this run was started with {self._accelerator.num_processes} processes; this version "
                "of rlframe trains in one"
            )
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes

    def sum(self, values: Tensor) -> Tensor:
        """Σ over ranks, the same on each."""
        return self._accelerator.reduce(values, reduction="sum")

    def agree(self, what: str, mine: object) -> None:
        """Make sure that all ranks hold the same value before anything is computed with it.

        Raises:
          SetupError: some rank differs from rank 0.
        """
        refuse_difference(what, gather_object([mine]))

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as its strategy wraps it for training."""
        return self._accelerator.prepare_model(model.to(self.device))

    def accumulating(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged in the last backward pass of an optimiser step alone."""
        return nullcontext() if last else self._accelerator.no_sync(model)

    def backward(self, loss: Tensor) -> None:
        """Add this loss's gradient. Engines average over ranks, so the sum is scaled up first."""
        self._accelerator.backward(loss * self.world_size)

    def peak_memory_mib(self) -> float:
        """Most memory that this process has held, in MiB: of the GPU if there is one."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def refuse_difference(what: str, values: Sequence[object]) -> None:
    """Raise if the ranks' values are not all equal.

    Args:
      what: the thing, as an error calls it.
      values: one a rank.
    """
    other = [rank for rank, value in enumerate(values) if value != values[0]]
    if other:
        raise SetupError(
            f"{what} is not the same on all ranks: rank {other[0]} has {values[other[0]]}, rank 0 has "
            f"{values[0]}. Install the same versions on every machine, and start all ranks with the "
            "same recipe"
        )


Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks."""

"""The processes of a run, as the engine sees them: sums over ranks, and a strategy to train by."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rlframe.distributed.loopback import local_meeting
from rlframe.distributed.offload import brought
from rlframe.distributed.strategy import Placement, Strategy
from rlframe.distributed.training import Replicated, Training
from rlframe.errors import SetupError

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
"""Precision of a recipe -> dtype of the weights: whoever computes in bfloat16 keeps float32 weights."""

# Ranks may wait for the slowest reward; a dead one ends the run anyway.
_PATIENCE = timedelta(hours=4)

# For microseconds of work on machines where everybody may be busy.
_LAST_THREADS = 0.3  # seconds

ONE_COPY_EACH = Strategy()

T = TypeVar("T")


class Runtime:
    """One process among the others, and the strategy that all of them run.

    Args:
      strategy: what was asked for; what runs is compared with it.
      device: "auto" takes a GPU if there is one.
      threads: torch threads of this process; torch's choice if None.
      placement: where models that are not trained wait while others learn.

    Raises:
      SetupError: the device is not there, or the strategy cannot run on it.
    """

    def __init__(
        self,
        strategy: Strategy = ONE_COPY_EACH,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        placement: Placement = "replicate",
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise SetupError("runtime.device is cuda, but torch sees no GPU on this machine")
        if threads is not None:
            torch.set_num_threads(threads)
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        if on_cpu and strategy.name == "fsdp" and strategy.offload != "none":
            raise SetupError(
                "runtime.offload: fsdp offloads from a GPU, and this run is on the CPU"
            )
        if on_cpu:  # deepspeed warns about every machine without a GPU unless it is told
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # What `accelerate launch` said of engines has been read; the supervised stages run on DDP.
        for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
            os.environ.pop(name, None)
        meeting = {} if dist.is_initialized() else local_meeting(_PATIENCE)
        state = PartialState(cpu=on_cpu, timeout=_PATIENCE, **meeting)
        if strategy.name != "ddp" and not dist.is_initialized():  # engines want a group of one too
            backend = "gloo" if on_cpu else "nccl"
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
            os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed looks there
        self.strategy = strategy
        self.device: torch.device = state.device
        self._waited = 0.0
        self._placement = placement
        self._absent: list[Callable[[], AbstractContextManager[None]]] = []
        self.rank: int = state.process_index
        self.world_size: int = state.num_processes
        if self.world_size != int(os.environ.get("WORLD_SIZE", 1)):
            raise SetupError(
                f"{os.environ['WORLD_SIZE']} processes were started, but accelerate sees "
                f"{self.world_size}: is RANK or LOCAL_RANK missing from the environment?"
            )

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files and talks."""
        return self.rank == 0

    # Agreement

    def sum(self, values: Tensor) -> Tensor:
        """Σ over ranks, the same on each, in the values' own dtype and place."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """The largest over ranks, the same on each."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        if self.world_size == 1:
            return values
        shared = values.to(self.device, copy=True)
        with self._waiting():
            dist.all_reduce(shared, operation)
            return shared.to(values.device)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        with self._waiting():
            dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: T) -> T:
        """Rank 0's value."""
        if self.world_size == 1:
            return value
        box = [value]
        with self._waiting():
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            with self._waiting():
                dist.barrier()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    def waited(self) -> float:
        """Wall seconds in the above since the last call."""
        taken, self._waited = self._waited, 0.0
        return taken

    def agree(self, what: str, mine: object) -> None:
        """Make sure that all ranks hold the same value before anything is computed with it.

        Raises:
          SetupError: some rank differs from rank 0.
        """
        refuse_difference(what, self.gather(mine))

    # Models

    def train(
        self,
        models: nn.Module,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        *,
        max_grad_norm: float,
    ) -> Training:
        """Hand models over to the strategy.

        Args:
          models: on any device; equal on all ranks.
          optimizer: makes the optimiser of the module as the strategy holds it.
          max_grad_norm: longer gradients are scaled down to it.
        """
        strategy = self.strategy
        if strategy.name == "deepspeed":
            from rlframe.distributed.zero import Zero  # its import takes seconds

            models.to(self.device)
            return Zero(
                models,
                optimizer(models),
                strategy=strategy,
                max_grad_norm=max_grad_norm,
                world_size=self.world_size,
            )
        if strategy.name == "fsdp":
            from rlframe.distributed.fsdp import FullyShard, shard

            shard(models, self._mesh, strategy)
            return FullyShard(
                models,
                optimizer(models),
                max_grad_norm=max_grad_norm,
                world_size=self.world_size,
            )
        models.to(self.device)
        return Replicated(
            models,
            optimizer(models),
            max_grad_norm=max_grad_norm,
            world_size=self.world_size,
            autocast=self.autocast,
        )

    @cached_property
    def _mesh(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, (self.world_size,))

    def autocast(self) -> AbstractContextManager[Any]:
        """Around every forward pass of PPO: bfloat16 in the computation alone, weights stay float32.

        DeepSpeed and FSDP see to it themselves.
        """
        return self.mixed_precision() if self.strategy.name == "ddp" else nullcontext()

    def mixed_precision(self) -> AbstractContextManager[Any]:
        """The same for the supervised stages, which run on DDP whatever the strategy is."""
        if self.strategy.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def replicated(self, model: nn.Module) -> nn.Module:
        """Place a model that is not trained: a copy on each rank, as precise as the computation."""
        return self._exact(model).to(self.device)

    def frozen(self, model: nn.Module) -> nn.Module:
        """Place a model that is not trained, and is asked inside `resident` alone: as the recipe says.

        A share of one process is a copy.
        """
        if self._placement == "replicate" or (self._placement, self.world_size) == ("shard", 1):
            return self.replicated(model)
        model = self._exact(model)
        if self._placement == "offload":
            self._absent.append(partial(brought, model.cpu(), self.device))
        else:
            from rlframe.distributed.fsdp import sharded

            self._absent.append(sharded(model, self._mesh))
        return model

    def _exact(self, model: nn.Module) -> nn.Module:
        model = model.eval().requires_grad_(False)
        half = self.strategy.precision == "bfloat16" and self.strategy.name != "ddp"
        return model.to(torch.bfloat16) if half else model

    @contextmanager
    def resident(self) -> Iterator[None]:
        """Inside, every frozen model is whole on the device. Every rank has to enter it."""
        with ExitStack() as entered:
            for present in self._absent:
                entered.enter_context(present())
            yield

    def peak_memory_mib(self) -> float:
        """Most memory that any process has held, in MiB: of its GPU if there is one."""
        if self.device.type == "cuda":
            mine = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            import resource

            mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return float(self.max(torch.tensor(mine, dtype=torch.float64)))


def leave() -> None:
    """Leave the group of processes: the last thing in one whose run went well, or was stopped on all.

    Not before: DeepSpeed does not run again in a process whose group is gone. And not after a failure:
    where another rank is gone or hangs, this might wait for it.

    gloo's threads drop the tensors of the last exchange when they come to it, and need the
    interpreter's lock for that. One that asks while an interpreter before Python 3.14 is taken down
    ends the process with "terminate called without an active exception", and a launcher then takes
    what went well for a failure (pytorch pull request 179291, closed unmerged). Destroying the group
    joins those threads unless something still refers to it, as default arguments of DeepSpeed do;
    then the pause lets them finish.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(_LAST_THREADS)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that no memory was left, of a GPU or the CPU."""
    while error is not None:
        if isinstance(error, Exception) and should_reduce_batch_size(error):
            return True
        error = error.__cause__
    return False


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

"""The trained models and their optimiser, as a strategy runs them. One class a strategy.

Whatever the strategy: a step's gradient is the sum over all micro-batches and ranks of what `backward`
was given, weights are whole inside `whole()`, and states go in and out by parameter name in full shape,
so that a checkpoint does not know which strategy, or how many processes, wrote it.
"""

from __future__ import annotations

import gc
import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel

State = dict[str, dict[str, Tensor]]
"""Parameter name -> what the optimiser remembers of it, in full shape on the CPU."""


class Training(ABC):
    """What every strategy offers to the engine.

    Args:
      models: the module that is trained; its `forward` runs a function on itself.
      optimizer: over its parameters.
      max_grad_norm: longer gradients are scaled down to it.
    """

    can_begin_again = False
    """Whether ranks wait for each other in `step` alone: a step that failed in one of its passes can be
    begun again after `discard`."""

    def __init__(
        self, models: nn.Module, optimizer: torch.optim.Optimizer, *, max_grad_norm: float
    ) -> None:
        self.models = models
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self._exchange = 0.0

    def waited(self) -> float:
        """Wall seconds of gradient exchange since the last call, where the strategy can tell."""
        taken, self._exchange = self._exchange, 0.0
        return taken

    @abstractmethod
    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(models, *args)` inside the forward pass of the wrapped models."""

    @abstractmethod
    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch; `last` of its optimiser step."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add this loss's gradient: ranks are summed, not averaged."""

    def discard(self) -> None:
        """Forget the gradient so far, and what memory it took; where `can_begin_again`."""
        raise NotImplementedError

    @abstractmethod
    def step(self) -> float:
        """Clip, step, and clear the gradient; one that is not finite is thrown away.

        Returns:
          The gradient's norm before clipping, NaN if no step was taken; the same on all ranks.
        """

    def _clipped_step(self, whole: Callable[[Tensor], Tensor] = lambda norm: norm) -> float:
        """`step` by torch's own means; `whole` makes one norm of what a shard knows of it."""
        weights = [p for p in self.models.parameters() if p.grad is not None]
        norm = whole(nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None]))
        finite = bool(norm.isfinite())
        if finite:
            if norm > self.max_grad_norm:  # else a pass over all gradients would change nothing
                nn.utils.clip_grads_with_norm_(weights, self.max_grad_norm, norm)
            self.optimizer.step()
        self._forget()
        return float(norm) if finite else math.nan

    def _forget(self) -> None:
        """Clear the gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Whole weights on every rank, for generation and for passes whose number differs by rank."""
        yield

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, in the precision of the optimiser; whole on rank 0 alone.

        Every rank has to call it.
        """

    @abstractmethod
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take back what `weights` gave, or some of it; every rank hands in the same."""

    @abstractmethod
    def optimizer_state(self) -> State:
        """The optimiser's memory; whole on rank 0 alone. Every rank has to call it."""

    @abstractmethod
    def load_optimizer_state(self, state: State) -> None:
        """Take back what `optimizer_state` gave; every rank hands in the same."""


# Buffers are constants of positions. torch 2.13 warns of the name that 2.11 knows.
_BUFFERS_STAY: dict[str, Any] = {
    (
        "forward_sync_buffers"
        if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        else "broadcast_buffers"
    ): False
}


# Without annotations: DDP compares them with its own types, and ours are strings.
def _keep(buckets, bucket):  # type: ignore[no-untyped-def]
    """DDP's hook: sum nothing yet, but keep the bucket for later."""
    buckets.append(bucket.buffer())
    return noop_hook(None, bucket)


class Replicated(Training):
    """One process, or DDP: a copy on each rank, gradients summed in `step`.

    Left to itself, DDP sums them in the last backward pass, where it hides some of the exchange. Ranks
    would have to agree before that pass that none of them lacks memory, and so wait for each other once
    more, with passes that differ in length as responses do.
    """

    can_begin_again = True

    def __init__(
        self,
        models: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float,
        world_size: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        super().__init__(models, optimizer, max_grad_norm=max_grad_norm)
        self._world_size = world_size
        self._autocast = autocast
        self._buckets: list[Tensor] = []
        self._wrapped = self._wrap()

    def _wrap(self) -> nn.Module:
        if self._world_size == 1:
            return self.models
        for weight in self.models.parameters():
            if weight.requires_grad:  # a gradient that is there becomes a view of DDP's buckets
                weight.grad = torch.zeros_like(weight)
        wrapped = DistributedDataParallel(
            self.models, gradient_as_bucket_view=True, **_BUFFERS_STAY
        )
        wrapped.register_comm_hook(self._buckets, _keep)
        return wrapped

    def _exchange_gradients(self) -> None:
        """Sum over ranks what DDP has gathered in its buckets, of which gradients are views."""
        begun = time.perf_counter()
        under_way = [dist.all_reduce(bucket, async_op=True) for bucket in self._buckets]
        for work in under_way:
            work.wait()
        self._buckets.clear()
        self._exchange += time.perf_counter() - begun

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        with self._autocast():
            return self._wrapped(function, *args)

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self._world_size > 1:
            # A backward pass that broke off leaves DDP waiting for its gradients forever: start again.
            self._buckets.clear()
            del self._wrapped
            gc.collect()
            self._wrapped = self._wrap()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def step(self) -> float:
        if self._buckets:
            self._exchange_gradients()
        return self._clipped_step()

    def _forget(self) -> None:
        # DDP's buckets stay. Gradients beside them would be summed in memory of their own, then copied.
        self.optimizer.zero_grad(set_to_none=self._world_size == 1)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.models.state_dict().items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.models.load_state_dict({**self.models.state_dict(), **weights})

    def optimizer_state(self) -> State:
        return {
            name: {key: value.detach() for key, value in self.optimizer.state[parameter].items()}
            for name, parameter in self.models.named_parameters()
            if parameter in self.optimizer.state
        }

    def load_optimizer_state(self, state: State) -> None:
        for name, parameter in self.models.named_parameters():
            if name in state:
                self.optimizer.state[parameter] = {
                    # Adam's step stays where the optimiser keeps it: a fused one on the device.
                    key: value.to(parameter.device, copy=True)
                    for key, value in state[name].items()
                }

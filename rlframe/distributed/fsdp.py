"""FSDP2 as a strategy: weights, gradients and the optimiser's state are sharded over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from rlframe.distributed.strategy import Strategy
from rlframe.distributed.training import State, Training

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(module: nn.Module, mesh: DeviceMesh, strategy: Strategy) -> None:
    """Shard a module in place, block by block, so that one block at a time is whole in a pass."""
    half = strategy.precision == "bfloat16"
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None,
            reduce_dtype=torch.float32 if half else None,
        ),
        "offload_policy": CPUOffloadPolicy() if strategy.offload == "all" else OffloadPolicy(),
    }
    for block in _blocks(module):
        fully_shard(block, **options)
    fully_shard(module, **options)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of every transformer inside: what transformers says must not be split."""
    names: set[str] = set()
    for child in module.modules():
        names |= set(getattr(child, "_no_split_modules", None) or ())
    yield from (child for child in module.modules() if type(child).__name__ in names)


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Whole weights on every rank, gathered once."""
    parts = [child for child in module.modules() if isinstance(child, FSDPModule)]
    for part in parts:
        part.unshard()
    for part in parts[1:]:  # the root stays whole until its backward pass anyway
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts[1:]:
            part.set_reshard_after_forward(True, recurse=False)
        for part in parts:
            part.reshard()


def sharded(model: nn.Module, mesh: DeviceMesh) -> Callable[[], AbstractContextManager[None]]:
    """Leave each rank a share of the weights of a model that is not trained, in place.

    Args:
      model: equal on all ranks, in the dtype that it is to compute in.
      mesh: of all ranks.

    Returns:
      Makes the context in which weights are whole, gathered once: every rank has to enter it, and may
      then make as many passes as it likes. Outside, the model cannot be asked.
    """
    roof = _Roof(model)
    shard(roof, mesh, Strategy())
    roof()
    assert isinstance(roof, FSDPModule)
    roof.reshard()  # as in `FullyShard`
    return partial(unsharded, roof)


class _Roof(nn.Module):
    """Runs first, so that FSDP takes it for the root: the model under it is entered anywhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> None:
        """Nothing."""


class FullyShard(Training):
    """Shards of everything; `optimizer` is made after the module was sharded, over its shards."""

    def __init__(
        self,
        models: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float,
        world_size: int,
    ) -> None:
        super().__init__(models, optimizer, max_grad_norm=max_grad_norm)
        self._world_size = world_size
        models(lambda _: None)  # FSDP takes the first module that runs for the root
        assert isinstance(models, FSDPModule)
        models.reshard()  # a root that ran stays whole, and whole parameters take no state back

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.models(function, *args)

    @contextmanager
    def _synchronised(self, last: bool) -> Iterator[None]:
        root = self.models
        assert isinstance(root, FSDPModule)
        root.set_requires_gradient_sync(last)
        yield

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        return self._synchronised(last)

    def backward(self, loss: Tensor) -> None:
        (loss * self._world_size).backward()  # FSDP averages

    def step(self) -> float:
        return self._clipped_step(lambda n: n.full_tensor() if isinstance(n, DTensor) else n)

    @contextmanager
    def whole(self) -> Iterator[None]:
        with unsharded(self.models):
            yield

    def weights(self) -> dict[str, Tensor]:
        found: dict[str, Any] = get_model_state_dict(self.models, options=_WHOLE)
        return found

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        some = StateDictOptions(full_state_dict=True, strict=False)
        left = set_model_state_dict(self.models, dict(weights), options=some)
        if left.unexpected_keys:
            raise KeyError(f"there are no weights {left.unexpected_keys}")

    def optimizer_state(self) -> State:
        return {
            name: {
                key: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()
                for key, value in self.optimizer.state[parameter].items()
            }
            for name, parameter in self.models.named_parameters()
            if parameter in self.optimizer.state
        }

    def load_optimizer_state(self, state: State) -> None:
        for name, parameter in self.models.named_parameters():
            if name in state:
                assert isinstance(parameter, DTensor)
                self.optimizer.state[parameter] = {
                    key: value.clone()
                    if value.ndim == 0
                    else distribute_tensor(value, parameter.device_mesh, parameter.placements)
                    for key, value in state[name].items()
                }

"""A moving average of the policy's weights, which forgets what single updates add to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlframe.distributed.training import Training


class EMA:
    """Exponential moving average of what is trained of the policy, whole, on the CPU of one rank.

        ema = d ema + (1 - d) weights        after each update; at first the weights before them all

    In float32, or the weights' own precision if that is longer: in bfloat16 a step of 1 - d would
    round to nothing. Polyak and Juditsky 1992 (https://doi.org/10.1137/0330046) average to take the
    noise off what is optimised.

    Args:
      training: whose weights, by whatever strategy.
      decay: d, in (0, 1).
      main: whether this rank keeps it; the others take part in gathering weights alone.
    """

    def __init__(self, training: Training, *, decay: float, main: bool) -> None:
        self._training = training
        self._decay = decay
        self._main = main
        # Tied weights have several names. They stay tied: models are saved by what shares memory.
        named = training.models.named_parameters(remove_duplicate=False)
        first: dict[Tensor, str] = {}
        self._names = {
            name: first.setdefault(weight, name)
            for name, weight in named
            if name.startswith("policy.") and weight.requires_grad
        }
        self._means: dict[str, Tensor] = {}

    @property
    def weights(self) -> dict[str, Tensor] | None:
        """By name; None on ranks that do not keep it."""
        means = self._means
        return {name: means[first] for name, first in self._names.items()} if means else None

    def begin(self, saved: Mapping[str, Tensor] | None) -> None:
        """Start from an average that was saved, or from the weights of now. Every rank has to call it.

        Args:
          saved: by name, and perhaps more than is averaged; None for the weights of now, on all ranks.
        """
        found = self._training.weights() if saved is None else saved
        if self._main:
            self._means = {name: _kept(found[name]) for name in self._names.values()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of now. Every rank has to call it."""
        found = self._training.weights()
        for name, mean in self._means.items():
            mean.mul_(self._decay).add_(found[name].to(mean), alpha=1 - self._decay)


def _kept(weight: Tensor) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.detach().to("cpu", wide, copy=True).contiguous()

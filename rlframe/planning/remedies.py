"""Whether a plan fits, and the first changes that would make it fit, tried on the same model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from rlframe.planning.gpus import GIB, Device
from rlframe.planning.memory import Workload, memory, share
from rlframe.planning.strategies import Placement, Strategy

MARGIN = 0.1
"""The share of a GPU that is left for what the allocator cannot use and the model does not see."""
MOST_GPUS = 1024
_LEAST_CHUNK = 64

Verdict = Literal["fits", "tight", "no"]


def verdict(peak: int, device: Device) -> Verdict:
    """`tight` if it fits on paper, but within the margin.

    Args:
      peak: bytes.
      device: what must hold them.
    """
    used = peak / (device.memory_gib * GIB)
    return "fits" if used <= 1 - MARGIN else "tight" if used <= 1 else "no"


@dataclass(frozen=True)
class Remedy:
    """A change after which it fits."""

    change: str
    """As it is written on the command line."""
    peak: int
    """Bytes on each GPU after it."""


def remedies(work: Workload, strategy: Strategy, device: Device, gpus: int) -> list[Remedy]:
    """What would help a strategy that does not fit: offloading, frozen models elsewhere while others
    learn, smaller passes, more GPUs.

    Each is the first of its kind that fits; one that does not exist is left out.
    """
    kinds = (_offloaded, _placed, _smaller, _more)
    found = [kind(work, strategy, device, gpus) for kind in kinds]
    return [remedy for remedy in found if remedy is not None]


def _fitting(change: str, peak: int, device: Device) -> Remedy | None:
    return Remedy(change, peak) if verdict(peak, device) == "fits" else None


def _offloaded(work: Workload, strategy: Strategy, device: Device, gpus: int) -> Remedy | None:
    for offload in _further(strategy):
        other = replace(strategy, offload=offload)
        change = f"runtime.offload={offload}"
        remedy = _fitting(change, memory(work, other, device, gpus).peak, device)
        if remedy:
            return remedy
    return None


def _further(strategy: Strategy) -> Iterator[Literal["optimizer", "all"]]:
    if strategy.name == "deepspeed" and strategy.offload == "none" and strategy.stage > 0:
        yield "optimizer"
    if strategy.shards_weights and strategy.offload != "all":
        yield "all"


def _placed(work: Workload, strategy: Strategy, device: Device, gpus: int) -> Remedy | None:
    further: tuple[Placement, ...] = ("replicate", "shard", "offload")
    for placement in further[further.index(work.placement) + 1 :]:
        other = replace(work, placement=placement)
        change = f"runtime.frozen={placement}"
        remedy = _fitting(change, memory(other, strategy, device, gpus).peak, device)
        if remedy:
            return remedy
    return None


def _smaller(work: Workload, strategy: Strategy, device: Device, gpus: int) -> Remedy | None:
    """Halve what the peak grows with, until it fits or nothing is left to halve."""
    changes: dict[str, int] = {}
    while True:
        found = memory(work, strategy, device, gpus)
        if verdict(found.peak, device) == "fits":
            change = " ".join(f"{key}={value}" for key, value in changes.items())
            return Remedy(change, found.peak) if changes else None
        halved = _halved(work, found.moment, gpus)
        if halved is None:
            return None
        key, value, work = halved
        changes[key] = value


def _halved(work: Workload, moment: str, gpus: int) -> tuple[str, int, Workload] | None:
    """(key of the recipe, its new value, the update with it)."""
    batch = min(share(work, gpus), work.generation_batch or share(work, gpus))
    longest = work.prompt_tokens + work.response_tokens
    rows = min(share(work, gpus), work.microbatch_tokens // longest)
    if moment == "sampling":
        if batch == 1 or work.cache_tokens is not None:  # a sampler with a bound of its own
            return None
        return "rollout.generation_batch", batch // 2, replace(work, generation_batch=batch // 2)
    if moment in ("step", "end of backward"):
        return None
    if rows > 1:
        tokens = work.microbatch_tokens // 2
        return "ppo.microbatch_tokens", tokens, replace(work, microbatch_tokens=tokens)
    if work.logits_chunk > _LEAST_CHUNK:
        chunk = max(_LEAST_CHUNK, work.logits_chunk // 2)
        return "ppo.logits_chunk", chunk, replace(work, logits_chunk=chunk)
    return None


def _more(work: Workload, strategy: Strategy, device: Device, gpus: int) -> Remedy | None:
    while (gpus := 2 * gpus) <= MOST_GPUS:
        peak = memory(work, strategy, device, gpus).peak
        remedy = _fitting(f"--gpus {gpus}", peak, device)
        if remedy:
            return remedy
    return None

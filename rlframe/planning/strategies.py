"""What each strategy keeps of a trained model on a GPU: bytes a parameter, buffers, gathered weights.

    bytes a parameter    weights   gradients   master   Adam's moments
    ddp, fp32 or bf16    4         4           -        8
    ZeRO-1 (bf16)        2         2           4/N      8/N
    ZeRO-2 (bf16)        2         2/N         4/N      8/N
    ZeRO-3 (bf16)        2/N       2/N         4/N      8/N
    FSDP, fp32 or bf16   4/N       4/N         -        8/N

16 bytes a parameter on one GPU whatever the strategy, as Rajbhandari et al. 2020, section 3.1 (ZeRO,
https://arxiv.org/abs/1910.02054) count mixed-precision Adam; autocast makes 18 of ddp's in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]
Name = Literal["ddp", "deepspeed", "fsdp"]
Offload = Literal["none", "optimizer", "all"]
Placement = Literal["replicate", "shard", "offload"]

# DeepSpeed's defaults, in elements (deepspeed/runtime/zero/config.py).
_REDUCE_BUCKET = 500_000_000
_MAX_LIVE = 1_000_000_000
_PREFETCH_BUCKET = 50_000_000
_SUB_GROUP = 1_000_000_000


@dataclass(frozen=True)
class Strategy:
    """How the trained models are spread over GPUs.

    Args:
      name: ddp keeps a copy on each; deepspeed is ZeRO; fsdp shards everything.
      stage: of deepspeed: 1 shards the optimiser, 2 gradients too, 3 weights too.
      offload: what waits in the memory of the CPU.
    """

    name: Name
    stage: int = 0
    offload: Offload = "none"

    def __str__(self) -> str:
        words = {"ddp": "ddp", "deepspeed": f"ZeRO-{self.stage}", "fsdp": "fsdp"}
        return words[self.name] + ("" if self.offload == "none" else f", {self.offload} offloaded")

    @property
    def shards_weights(self) -> bool:
        """Whether a pass has to gather weights first."""
        return self.name == "fsdp" or self.stage == 3

    @property
    def overrides(self) -> str:
        """The keys of a recipe that ask for it."""
        keys: dict[str, str] = {"strategy": self.name, "offload": self.offload}
        if self.name == "deepspeed":
            keys["zero_stage"] = str(self.stage)
        chosen = {key: value for key, value in keys.items() if value != "none"}
        return " ".join(f"runtime.{key}={value}" for key, value in chosen.items())


STRATEGIES = (
    Strategy("ddp"),
    Strategy("deepspeed", 1),
    Strategy("deepspeed", 2),
    Strategy("deepspeed", 3),
    Strategy("deepspeed", 3, "optimizer"),
    Strategy("deepspeed", 3, "all"),
    Strategy("fsdp"),
)


@dataclass(frozen=True)
class Bytes:
    """Bytes a parameter of the trained models, on the GPU and in the memory of the CPU."""

    weights: float
    gradients: float
    optimizer: float
    """Adam's two moments, and the float32 weights that it steps where the model has others."""
    host: float = 0.0

    @property
    def on_gpu(self) -> float:
        return self.weights + self.gradients + self.optimizer


def element(precision: Precision) -> int:
    """Bytes of a number in the computation."""
    return 2 if precision == "bfloat16" else 4


def state(strategy: Strategy, precision: Precision, gpus: int) -> Bytes:
    """Weights, gradients and Adam's state of a parameter.

    Args:
      strategy: how they are spread.
      precision: of the computation.
      gpus: N, that share what is sharded.
    """
    if strategy.name == "ddp":
        return Bytes(4, 4, 8)
    if strategy.name == "fsdp":
        whole = Bytes(4 / gpus, 4 / gpus, 8 / gpus)
        return whole if strategy.offload == "none" else Bytes(0, 0, 0, whole.on_gpu)
    own = element(precision)
    weights = own / gpus if strategy.stage >= 3 else own
    gradients = own / gpus if strategy.stage >= 2 else own
    # In float32 too the stages step a copy of their part. Stage 3 means not to, but compares a device
    # with its name, which are never equal (deepspeed 0.19.8, stage3.py, _create_fp32_partitions).
    optimizer: float = 12 / gpus
    if strategy.stage == 0:
        optimizer = 8 if own == 4 else 12
    if strategy.offload == "none":
        return Bytes(weights, gradients, optimizer)
    # Gradients go to where the optimiser is as soon as they are reduced; below stage 2 they are whole.
    moved = optimizer + (gradients if strategy.stage >= 2 else 0)
    left = 0 if strategy.stage >= 2 else gradients
    if strategy.offload == "all" and strategy.stage == 3:
        return Bytes(0, left, 0, moved + weights)
    return Bytes(weights, left, 0, moved)


@dataclass(frozen=True)
class Waiting:
    """Bytes a parameter of models that are not trained."""

    on_gpu: float
    """Always."""
    gathered: float
    """Besides, while they are asked."""
    host: float
    """In the memory of the CPU, for one GPU."""


def waiting(placement: Placement, strategy: Strategy, precision: Precision, gpus: int) -> Waiting:
    """Where the weights of frozen models are.

    Args:
      placement: `runtime.frozen`.
      strategy: ddp computes under autocast with whatever weights a model has, the frozen ones too.
      precision: of the computation.
      gpus: N, that share what is sharded; one alone keeps all of it.
    """
    size = 4 if strategy.name == "ddp" else element(precision)
    if placement == "offload":
        return Waiting(0, size, size)
    if placement == "shard" and gpus > 1:
        return Waiting(size / gpus, size, 0)
    return Waiting(size, 0, 0)


@dataclass(frozen=True)
class Trained:
    """The trained models as a strategy sees them, in parameters."""

    policy: int
    critic: int
    block: int
    """The largest transformer block."""
    outside: int
    """Everything that is in no block: embeddings, heads, last norms."""

    @property
    def total(self) -> int:
        return self.policy + self.critic


def live(strategy: Strategy, precision: Precision, trained: Trained, *, lazy: bool) -> int:
    """Bytes of weights gathered, and of buffers, while a training pass runs.

    ZeRO-3 keeps up to `max_live_parameters` gathered, and those that were fetched together once more
    until the last of them is asked for; FSDP the block at work, the next one, and what is in no block
    from the first pass to the last.

    Args:
      strategy: how they are spread.
      precision: of the computation.
      trained: their parameters.
      lazy: memory that is never touched does not count: DeepSpeed's buckets are as large as its config
        says, however small the model.
    """
    own = element(precision)
    if strategy.name == "fsdp":
        return own * (2 * trained.block + trained.outside)
    if strategy.name == "deepspeed" and strategy.stage > 0:
        gathered = 0
        if strategy.stage == 3:
            gathered = min(_MAX_LIVE, trained.total) + min(_PREFETCH_BUCKET, trained.total)
        buckets = 2 if strategy.stage == 3 else 1  # stage 3 fills one while the other is sent
        bucket = min(_REDUCE_BUCKET, trained.total) if lazy else _REDUCE_BUCKET
        return own * (gathered + buckets * bucket)
    return 0


def accumulated(
    strategy: Strategy, precision: Precision, trained: Trained, gpus: int, *, passes: int
) -> int:
    """Bytes of gradient on a GPU once a backward pass is through.

    FSDP reduces in the last pass of a step alone; until then gradients are whole, and float32.
    """
    if strategy.name == "fsdp":
        shard = round(state(strategy, precision, gpus).gradients * trained.total)
        return 4 * trained.total if passes > 1 else shard + element(precision) * trained.outside
    return round(state(strategy, precision, gpus).gradients * trained.total)


def stepping(strategy: Strategy, trained: Trained, gpus: int) -> int:
    """Bytes that a step takes besides: ZeRO's gradient in float32, a group at a time."""
    if strategy.name != "deepspeed" or strategy.stage == 0 or strategy.offload != "none":
        return 0
    part = max(trained.policy, trained.critic) // gpus
    return 4 * (min(part, _SUB_GROUP) if strategy.stage == 3 else part)

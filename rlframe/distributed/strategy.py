"""Which engine runs a training: what the recipe asks, and what `accelerate launch` has said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rlframe.errors import SetupError

Name = Literal["ddp", "deepspeed", "fsdp"]
Offload = Literal["none", "optimizer", "all"]
Precision = Literal["float32", "float64", "bfloat16"]
Placement = Literal["replicate", "shard", "offload"]
"""Of a model that is not trained, while others learn: a copy on each rank, a share, or on the CPU."""


@dataclass(frozen=True)
class Strategy:
    """How models are spread over processes.

    Args:
      name: ddp keeps a copy on each rank; deepspeed is ZeRO; fsdp shards weights, gradients, optimiser.
      zero_stage: of deepspeed: 1 shards the optimiser's state, 2 gradients too, 3 weights too.
      offload: of deepspeed and fsdp: what waits in the memory of the CPU.
      precision: of the computation; weights are float32 where it is bfloat16.
      config: path of a DeepSpeed JSON file.
    """

    name: Name = "ddp"
    zero_stage: int = 2
    offload: Offload = "none"
    precision: Precision = "float32"
    config: str | None = None

    def __str__(self) -> str:
        words = {"ddp": "DDP", "deepspeed": f"DeepSpeed ZeRO-{self.zero_stage}", "fsdp": "FSDP2"}
        tail = "" if self.offload == "none" else f", {self.offload} offloaded"
        return f"{words[self.name]}{tail}, {self.precision}"


def chosen(
    *,
    name: Name | Literal["auto"],
    zero_stage: int | None,
    offload: Offload,
    precision: Precision,
    config: str | None,
    environ: Mapping[str, str],
) -> Strategy:
    """The strategy of a run.

    Args:
      name: of the recipe; auto takes what the environment says, or ddp.
      zero_stage: of the recipe; the environment's, or 2, if None.
      offload: of the recipe.
      precision: of the recipe.
      config: path of a DeepSpeed file, of the recipe.
      environ: where `accelerate launch` leaves what its config file says.

    Raises:
      SetupError: recipe and `accelerate launch` contradict each other, or keys that do not go together.
    """
    launched = _of_accelerate(environ)
    if name != "auto" and launched is not None and launched != name:
        raise SetupError(
            f"runtime.strategy is {name}, but `accelerate launch` was given {launched}: change one of "
            "them, or leave runtime.strategy out and accelerate's choice is taken"
        )
    name = launched or "ddp" if name == "auto" else name
    stage = environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") if launched == "deepspeed" else None
    if stage and zero_stage and int(stage) != zero_stage:
        raise SetupError(
            f"runtime.zero_stage is {zero_stage}, but `accelerate launch` was given stage {stage}"
        )
    config = config or (environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE") or None)
    if name != "deepspeed" and (zero_stage or config):
        key = "zero_stage" if zero_stage else "deepspeed_config"
        raise SetupError(f"runtime.{key} is a setting of deepspeed, but the strategy is {name}")
    if name == "ddp" and offload != "none":
        raise SetupError(
            "runtime.offload needs the strategy deepspeed or fsdp; ddp offloads nothing"
        )
    if name == "fsdp" and offload == "optimizer":
        raise SetupError("fsdp offloads weights and optimiser together: runtime.offload=all")
    if name == "deepspeed" and precision == "float64":
        raise SetupError("DeepSpeed has no float64: use runtime.strategy=ddp for it")
    return Strategy(name, zero_stage or int(stage or 2), offload, precision, config)


def _of_accelerate(environ: Mapping[str, str]) -> Name | None:
    if environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true"):
        return "deepspeed"
    if environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        return "fsdp"
    return None

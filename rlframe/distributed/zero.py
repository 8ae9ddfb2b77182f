"""DeepSpeed ZeRO 1 to 3 as a strategy.

One `backward` a micro-batch and one `step` an optimiser step, with the boundary between them set by
hand: DeepSpeed would count micro-batches, and theirs varies. accelerate is gone around, since its
wrapper steps inside `backward`, and takes two CPU processes for one without a word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import GatheredParameters, unwrap_model_for_generation
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from rlframe.distributed.strategy import Strategy
from rlframe.distributed.training import State, Training
from rlframe.errors import SetupError

_OURS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "optimizer",
    "scheduler",
)
"""Keys of a DeepSpeed file that the recipe decides; "auto" is taken as silence."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


def configuration(strategy: Strategy, *, max_grad_norm: float) -> dict[str, Any]:
    """The DeepSpeed config of a strategy: the user's file, if there is one, under what the recipe says.

    Raises:
      SetupError: the file cannot be read, or decides what the recipe decides.
    """
    given = {} if strategy.config is None else _read(Path(strategy.config))
    zero: dict[str, Any] = {"stage": strategy.zero_stage}
    if strategy.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if strategy.offload == "all" and strategy.zero_stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    asked: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # they only scale what is scaled back
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        # A gradient that is not finite is a step that is skipped, in bfloat16 too.
        "bf16": {"enabled": strategy.precision == "bfloat16", "check_grad_overflow": True},
    }
    for key in _OURS:
        if given.pop(key, "auto") != "auto":
            raise SetupError(
                f"runtime.deepspeed_config: {strategy.config} sets {key}, which the recipe decides; "
                "take it out of the file"
            )
    return _merged(given, asked, file=str(strategy.config))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(f"runtime.deepspeed_config: {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise SetupError(f"runtime.deepspeed_config: {path} holds no JSON object")
    return found


def _merged(given: dict[str, Any], asked: dict[str, Any], *, file: str) -> dict[str, Any]:
    """`given` with `asked` laid over it; where both speak, they must agree."""
    merged = dict(given)
    for key, value in asked.items():
        old = given.get(key, "auto")
        if isinstance(value, dict) and isinstance(old, dict):
            merged[key] = _merged(old, value, file=file)
        elif old in ("auto", value):
            merged[key] = value
        else:
            raise SetupError(
                f"runtime.deepspeed_config: {file} sets {key} to {old!r}, but the recipe says {value!r}"
            )
    return merged


class Zero(Training):
    """ZeRO of the stage that was asked for."""

    def __init__(
        self,
        models: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        strategy: Strategy,
        max_grad_norm: float,
        world_size: int,
    ) -> None:
        super().__init__(models, optimizer, max_grad_norm=max_grad_norm)
        # On a CPU DeepSpeed would compile a faster all-reduce as the run starts; a run that is killed
        # meanwhile leaves a lock for which every later one waits forever. gloo does.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._world_size = world_size
        self._sharded = strategy.zero_stage == 3
        self._engine, *_ = deepspeed.initialize(
            model=models,
            optimizer=optimizer,
            config=configuration(strategy, max_grad_norm=max_grad_norm),
            dist_init_required=False,
        )
        running = self._engine.zero_optimization_stage()
        if running != strategy.zero_stage or self._engine.dp_world_size != world_size:
            raise SetupError(
                f"{strategy} on {world_size} processes was asked for, but DeepSpeed runs stage "
                f"{running} on {self._engine.dp_world_size}"
            )
        self._heads = _heads(models) if self._sharded else []
        self._keep_heads()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._engine(function, *args)

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self._world_size)  # ZeRO averages

    def step(self) -> float:
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return math.nan if self._engine.optimizer.overflow else float(norm)

    @contextmanager
    def whole(self) -> Iterator[None]:
        if not self._sharded:
            yield
            return
        with unwrap_model_for_generation(self._engine):
            yield
        self._without_hooks()  # which it has set again

    def _keep_heads(self) -> None:
        """Keep the language-model heads whole on every rank.

        Logits are made in chunks, and ranks have other numbers of them. DeepSpeed gathers a weight
        whenever its module is called, and plans ahead by the order of calls: ranks would wait for
        each other in other collectives, and hang or crash.
        """
        every: list[Any] = [weight for head in self._heads for weight in head.parameters()]
        weights = [weight for weight in every if not weight.ds_persist]
        for weight in weights:
            weight.ds_persist = True
            self._engine.optimizer.persistent_parameters.append(weight)
        if weights:
            weights[0].all_gather(weights)
        self._without_hooks()

    def _without_hooks(self) -> None:
        for head in self._heads:
            for module in head.modules():
                module._forward_pre_hooks.clear()
                module._forward_hooks.clear()

    def weights(self) -> dict[str, Tensor]:
        with GatheredParameters(list(self.models.parameters()), enabled=self._sharded):
            found = {name: value.detach().cpu() for name, value in self.models.state_dict().items()}
        for name, parameter in self._trained():
            found[name] = safe_get_full_fp32_param(parameter).cpu()
        return found

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that DeepSpeed keeps in float32: of a frozen one there is no such copy."""
        return [(n, p) for n, p in self.models.named_parameters() if p.requires_grad]

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        given = [p for name, p in self.models.named_parameters() if name in weights]
        with GatheredParameters(given, modifier_rank=0, enabled=self._sharded):
            self.models.load_state_dict({**self.models.state_dict(), **weights})
        for name, parameter in self._trained():
            if name in weights:
                safe_set_full_fp32_param(parameter, weights[name].to(parameter.device))

    def optimizer_state(self) -> State:
        steps = [state["step"] for state in self.optimizer.state.values()]
        if not steps:
            return {}
        self._link()
        return {
            name: {
                "step": torch.as_tensor(steps[0]).detach().cpu().clone(),
                **{key: safe_get_full_optimizer_state(parameter, key).cpu() for key in _MOMENTS},
            }
            for name, parameter in self._trained()
        }

    def load_optimizer_state(self, state: State) -> None:
        if not state:
            return
        self._make_state()
        self._link()
        for name, parameter in self._trained():
            for key in _MOMENTS:
                value = state[name][key].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, key)
        (step, *_) = (memory["step"] for memory in state.values())
        for memory in self.optimizer.state.values():
            memory["step"].fill_(float(step))

    def _link(self) -> None:
        """Let DeepSpeed find the moments of every parameter group: stages 1 and 2 look for those of all
        groups once, when only the first has made its first step.
        """
        if not self._sharded:
            zero = self._engine.optimizer
            groups = zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True)
            for parameters, flat in groups:
                lazy_init_hp_params_optimizer_state(parameters, flat, self.optimizer.state)

    def _make_state(self) -> None:
        """What AdamW would make in its first step: an optimiser that never stepped has no state."""
        zero = self._engine.optimizer
        flats = (
            zero.fp32_partitioned_groups_flat
            if self._sharded
            else zero.single_partition_of_fp32_groups
        )
        for flat in flats:
            self.optimizer.state[flat] = {
                "step": torch.zeros((), device=flat.device),
                **{key: torch.zeros_like(flat) for key in _MOMENTS},
            }


def _heads(models: nn.Module) -> list[nn.Module]:
    """The modules that make logits, each once."""
    modules: list[Any] = [m for m in models.modules() if hasattr(m, "get_output_embeddings")]
    asked = [module.get_output_embeddings() for module in modules]
    return list({id(head): head for head in asked if isinstance(head, nn.Module)}.values())

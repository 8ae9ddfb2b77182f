"""Weights as transformers saves them, everything else as JSON; nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlframe.distributed.training import State
from rlframe.engine.trees import load_tree, save_tree
from rlframe.models import lora
from rlframe.models.actor_critic import ActorCritic, Critic
from rlframe.models.pretrained import reload
from rlframe.types import KLState


def save_models(
    weights: Mapping[str, Tensor],
    models: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write policy/ and, if it is a model of its own, critic/: both load with transformers unchanged.

    A value head on the policy's trunk is written as critic/value_head.safetensors. Adapters are merged
    into policy/, and written as they are to adapter/ beside it. The policy's average is written to ema/
    in the same way, its adapters to ema_adapter/.

    Args:
      weights: by name, whole, as `Training.weights` gives them.
      models: what they belong to.
      tokenizer: goes with them.
      directory: where to.
      average: of some of the policy's weights, by name; the others are as they are.
    """
    _save(models.policy.model, "policy.model.", weights, tokenizer, directory / "policy")
    if average is not None:
        mean = {**weights, **average}
        _save(models.policy.model, "policy.model.", mean, tokenizer, directory / "ema")
    if isinstance(models.critic, Critic):
        _save(models.critic.model, "critic.model.", weights, tokenizer, directory / "critic")
    else:
        (directory / "critic").mkdir(parents=True, exist_ok=True)
        head = _below("critic.", weights)
        save_file(head, directory / "critic" / "value_head.safetensors")


def _save(
    model: Any,
    prefix: str,
    weights: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> None:
    found = _below(prefix, weights)
    if lora.adapted(model):
        lora.save(model, found, _adapter(directory))
        found = lora.merged(model, found)
    model.save_pretrained(directory, state_dict=found)
    tokenizer.save_pretrained(directory)


def _adapter(directory: Path) -> Path:
    """Where the adapters lie that are merged into a model."""
    return directory.with_name({"policy": "adapter", "ema": "ema_adapter"}[directory.name])


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a module inside, as it calls them."""
    return {
        name.removeprefix(prefix): tensor.contiguous()
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def load_weights(directory: Path, models: ActorCritic) -> dict[str, Tensor]:
    """The weights that `save_models` wrote, by name, whole; of a policy with adapters those alone."""
    found = _loaded(models.policy.model, "policy.model.", directory / "policy")
    if isinstance(models.critic, Critic):
        return found | _loaded(models.critic.model, "critic.model.", directory / "critic")
    head = load_file(directory / "critic" / "value_head.safetensors")
    return found | {f"critic.{name}": tensor for name, tensor in head.items()}


def load_average(directory: Path, models: ActorCritic) -> dict[str, Tensor] | None:
    """The policy's average that `save_models` wrote, by name, or None if it wrote none."""
    path = directory / "ema"
    return _loaded(models.policy.model, "policy.model.", path) if path.is_dir() else None


def _loaded(model: Any, prefix: str, directory: Path) -> dict[str, Tensor]:
    if lora.adapted(model):
        fresh = lora.load(model, _adapter(directory))
    else:
        fresh = reload(model, directory, dtype=_dtype(directory))
    return {f"{prefix}{name}": tensor for name, tensor in fresh.items()}


def _dtype(directory: Path) -> torch.dtype:
    """That of the weights in the file; config.json has that of the computation, often shorter."""
    with safe_open(min(directory.glob("*.safetensors")), framework="pt") as file:
        return file.get_tensor(min(file.keys())).dtype


@dataclass(frozen=True)
class Progress:
    """Where a PPO run stands between two updates, beside its models."""

    updates: int
    """Done."""
    kl: KLState
    """For the next update."""
    learner: Mapping[str, int]
    episodes: int
    last_kl: float
    """Nats a response, of the last rollout."""
    observer_errors: int
    components: Sequence[Mapping[str, Any]]
    """Of each rank: recipe path -> state."""
    judge: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Statistics of rewards that are normalised, the same on all ranks; none in an older checkpoint."""

    def of_rank(self, rank: int) -> Mapping[str, Any]:
        """States of the components of a rank; of rank 0 where the run had fewer processes."""
        return self.components[rank] if rank < len(self.components) else self.components[0]


def save_progress(directory: Path, progress: Progress, memory: State | None) -> None:
    """Write state.json and, for a checkpoint, the optimiser's memory, which a result does without."""
    save_tree(directory / "state", asdict(progress))
    if memory is not None:
        save_tree(directory / "optimizer", memory)


def load_progress(directory: Path) -> tuple[Progress, State | None]:
    """What `save_progress` wrote; no memory of the optimiser from a result."""
    found = load_tree(directory / "state")
    kept = (directory / "optimizer.json").exists()
    memory = load_tree(directory / "optimizer") if kept else None
    return Progress(**{**found, "kl": KLState(**found["kl"])}), memory

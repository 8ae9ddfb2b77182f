"""The trained models in a checkpoint: weights as transformers saves them; nothing is pickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlframe.distributed.training import State, Training
from rlframe.engine.ema import EMA
from rlframe.models import lora
from rlframe.models.actor_critic import ActorCritic, Critic
from rlframe.models.pretrained import reload


def save_models(
    weights: Mapping[str, Tensor],
    models: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write policy/ and, if there is a critic, critic/; models load with transformers unchanged.

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
    elif models.critic is not None:
        (directory / "critic").mkdir()
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
    if models.critic is None:
        return found
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
class PolicyWeights:
    """Policy and critic, and the policy's moving average, as folders of a checkpoint or a result.

    Args:
      training: holds the weights, in parts where the strategy shards them.
      models: what they belong to.
      tokenizer: is written beside the policy.
      ema: the moving average, if the recipe asks for one.
    """

    training: Training
    models: ActorCritic
    tokenizer: PreTrainedTokenizerBase
    ema: EMA | None

    def gather(self) -> Callable[[Path], None]:
        """Something that writes the weights of now into a directory. Collective: call on all ranks."""
        weights = self.training.weights()
        average = None if self.ema is None else self.ema.weights
        return lambda path: save_models(weights, self.models, self.tokenizer, path, average=average)

    def load(self, directory: Path) -> None:
        """Take back what was written. Collective: call on all ranks."""
        self.training.load_weights(load_weights(directory, self.models))
        if self.ema is not None:  # after the weights: it begins from them if it was not kept then
            self.ema.begin(load_average(directory, self.models))


@dataclass(frozen=True)
class OptimizerMemory:
    """The optimiser's memory by parameter name, whole, whatever strategy holds it in parts."""

    training: Training

    def state_dict(self) -> State:
        """Whole on rank 0 alone. Collective: call on all ranks."""
        return self.training.optimizer_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; every rank hands in the same."""
        self.training.load_optimizer_state(dict(state))

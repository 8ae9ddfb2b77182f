"""Weights as transformers saves them, everything else as JSON; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from rlframe.hooks.component import Component
from rlframe.models.actor_critic import ActorCritic, Critic
from rlframe.types import KLState


def save_models(models: ActorCritic, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write policy/ and, if it is a model of its own, critic/: both load with transformers unchanged.

    A value head on the policy's trunk is written as critic/value_head.safetensors.
    """
    models.policy.model.save_pretrained(directory / "policy")
    tokenizer.save_pretrained(directory / "policy")
    critic = models.critic
    if isinstance(critic, Critic):
        critic.model.save_pretrained(directory / "critic")
        tokenizer.save_pretrained(directory / "critic")
    else:
        (directory / "critic").mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in critic.state_dict().items()}
        save_file(weights, directory / "critic" / "value_head.safetensors")


def save_state(
    directory: Path, *, update: int, kl: KLState, components: Mapping[str, Component[Any]]
) -> None:
    """Write state.json: the update just finished, the KL controller's state, each component's state.

    Args:
      directory: of the checkpoint.
      update: number of the last update.
      kl: state that the next update will use.
      components: recipe path -> component.
    """
    state = {
        "update": update,
        "kl": asdict(kl),
        "components": {path: dict(c.state_dict()) for path, c in components.items()},
    }
    (directory / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

"""A bandit whose best policy is known exactly: what PPO has to reach, whatever the estimator.

Eight actions are the eight tokens of a vocabulary, a response is one token, and the reference is
uniform. Of all policies π, π*(a) ∝ exp(r(a) / β) has the largest E[r] - β KL(π ‖ uniform). Each prompt
has the same rewards in another order, so that what one of them teaches is wrong for the others.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlframe.api import PluginConfig, RewardBatch, RewardProvider
from rlframe.compose.ppo import PPOParts
from rlframe.compose.project import Project
from rlframe.engine.ppo import RunState, train
from rlframe.engine.update_metrics import Update
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from tests.playing import watched

ACTIONS = "abcdefgh"
REWARDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
PROMPTS = {"a": REWARDS, "b": REWARDS[::-1], "c": REWARDS[4:] + REWARDS[:4]}
"""Prompt -> the reward of each action. One of them is held out."""

OPTIMA = {1.0: (0.4849, 0.0501), 0.2: (0.8668, 1.1258), 0.05: (0.9998, 2.0758)}
"""β -> (expected reward, nats from the uniform policy) of π*."""

RECIPE: dict[str, Any] = {
    "version": 1,
    "data": {"prompts": {"path": "prompts.jsonl", "heldout": 0.3}},
    "model": {"policy": "model"},
    "prompts": {"data": "prompts"},
    "rollout": {"prompts_per_update": 2, "samples_per_prompt": 128, "max_new_tokens": 1},
    "rewards": {"bandit": {"type": "bandit"}},
    "kl": {"controller": {"type": "fixed", "coefficient": 0.2}},
    "algorithm": {"whiten_advantages": False},
    "ppo": {
        "updates": 120,
        "epochs": 2,
        "minibatches": 2,
        "learning_rate": 0.03,
        "decay": "linear",
        "max_grad_norm": 10.0,
        "microbatch_tokens": 100_000,
    },
    "evaluation": {"prompts": 1},
    "runtime": {"device": "cpu", "threads": 1, "precision": "float32"},
}

ESTIMATORS: dict[str, dict[str, Any]] = {
    "gae": {},
    "rloo": {"model.critic": None, "algorithm.advantages": {"type": "rloo"}},
    "group_relative": {
        "model.critic": None,
        "algorithm.advantages": {"type": "group_relative", "divide_by_std": False},
    },
    "reinforce_plus_plus": {
        "model.critic": None,
        "algorithm.advantages": {"type": "reinforce_plus_plus"},
    },
}
"""Those that are unbiased without whitening."""

LOSSES: dict[str, dict[str, Any]] = {
    "clip": {"algorithm.policy_loss": {"type": "clip"}},
    # Exact for the policy that sampled, which is the one of an update's first step.
    "reinforce": {
        "algorithm.policy_loss": {"type": "reinforce"},
        "ppo.epochs": 1,
        "ppo.minibatches": 1,
    },
}


class Bandit(RewardProvider[PluginConfig]):
    """The reward of the one token of a response."""

    def score(self, batch: RewardBatch) -> list[float]:
        pairs = zip(batch.prompts, batch.response_ids, strict=True)
        return [PROMPTS[prompt.text.strip()][ids[0]] for prompt, ids in pairs]


class Learned(NamedTuple):
    """What a policy came to, exactly: nothing is sampled."""

    reward: float
    """E[r], mean over the prompts that were trained on."""
    kl: float
    """Nats from the uniform policy, mean over the same prompts."""
    coefficient: float
    """The KL coefficient after the last update."""


def optimum(beta: float) -> tuple[float, float]:
    """(E[r], KL) of π*(a) ∝ exp(r(a) / β)."""
    weights = [math.exp(reward / beta) for reward in REWARDS]
    best = [weight / sum(weights) for weight in weights]
    reward = sum(p * r for p, r in zip(best, REWARDS, strict=True))
    return reward, sum(p * math.log(p * len(REWARDS)) for p in best)


@cache
def _registry() -> Registry:
    registry = Registry()
    registry.add("reward_providers", "bandit", Bandit)
    return registry


def _make(folder: Path) -> None:
    """A model that says every token with the same probability, and its tokenizer."""
    words = Tokenizer(models.WordLevel({a: n for n, a in enumerate(ACTIONS)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=ACTIONS[-1])
    config = LlamaConfig(
        vocab_size=len(ACTIONS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=8,
        eos_token_id=len(ACTIONS) - 1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(rows))
    recipe = copy.deepcopy(RECIPE)
    recipe["data"]["prompts"]["path"] = str(folder / "prompts.jsonl")
    recipe["model"]["policy"] = str(folder / "model")
    (folder / "recipe.yaml").write_text(json.dumps(recipe))


def learned(folder: Path, changes: Mapping[str, Any]) -> Learned:
    """Train on the bandit with some keys of RECIPE changed, and look at the policy.

    Args:
      folder: for the model and the recipe; they are made on first use.
      changes: dotted keys.
    """
    if not (folder / "recipe.yaml").exists():
        _make(folder)
    given = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    loaded = load_recipe(folder / "recipe.yaml", given, registry=_registry())
    project = Project(loaded, folder, _registry())
    parts = PPOParts(project, project.models.policy())
    coefficients: list[float] = []

    def record(update: Update) -> None:
        coefficients.append(update.next_kl.coefficient)

    run = watched(parts, record)
    train(run, RunState(0, run.control.initial()))
    rewards, nats = [], []
    with torch.no_grad():
        for prompt in project.prompts[0]:
            ids = torch.tensor([prompt.ids])
            logits = parts.models.trained.policy.model(input_ids=ids).logits[0, -1].double()
            policy = logits.softmax(-1)
            values = torch.tensor(PROMPTS[prompt.text.strip()], dtype=torch.float64)
            rewards.append(float(policy @ values))
            nats.append(float((policy * (policy * len(ACTIONS)).log()).sum()))
    return Learned(fmean(rewards), fmean(nats), coefficients[-1])

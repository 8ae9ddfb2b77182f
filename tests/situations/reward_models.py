"""Reward models of other people: classifiers, other tokenizers, other templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import foreign
from tests.situations import Situation, recipe

SENTIMENT = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}


def asked(folder: Path, family: str, *, reward: dict[str, Any], **model: Any) -> list[str]:
    """Train against a reward model of this family."""
    one = {} if "id2label" in model else {"num_labels": 1}
    foreign.saved(folder / "judge", family, **{"head": "sequence", **one, **model})
    rewards = {"judge": {"type": "reward_model", "model": "judge", **reward}}
    return ["train", recipe(folder, rewards=rewards, ppo={"updates": 1, "epochs": 1})]


SITUATIONS = [
    Situation(
        "a two-label sentiment classifier is a reward once its label is named",
        lambda folder: asked(folder, "base", reward={"label": "POSITIVE"}, **SENTIMENT),
        0,
        ("rewards.judge: the reward model judge reads prompt and response as one text",),
    ),
    Situation(
        "a classifier with several labels and none named",
        lambda folder: asked(folder, "base", reward={}, **SENTIMENT),
        3,
        ("rewards.judge: reward model 'judge' has 2 outputs: 0 (NEGATIVE), 1 (POSITIVE)", "label:"),
    ),
    Situation(
        "a label that the classifier does not have",
        lambda folder: asked(folder, "base", reward={"label": "POSITVE"}, **SENTIMENT),
        3,
        ("no label 'POSITVE'. Did you mean 'POSITIVE'?",),
    ),
    Situation(
        "a chat reward model is asked in its own template",
        lambda folder: asked(folder, "gemma", reward={}),
        0,
        ("the reward model judge reads prompt and response in its own chat template",),
    ),
    Situation(
        "the sampled tokens for a model with another vocabulary",
        lambda folder: asked(folder, "chatml", reward={"input": "ids"}),
        3,
        ("another vocabulary than the policy", "Use `input: chat` or `input: text`"),
    ),
    Situation(
        "a chat form for a model without a template",
        lambda folder: asked(folder, "base", reward={"input": "chat"}),
        3,
        ("has no chat template; use `input: text`, `input: pair` or `input: response`",),
    ),
    Situation(
        "a token classifier with another vocabulary",
        lambda folder: asked(folder, "base", reward={}, head="token"),
        3,
        ("scores each token, so it must read the tokens that the policy samples",),
    ),
    Situation(
        "a language model as reward model",
        lambda folder: asked(folder, "base", reward={}, head="causal"),
        3,
        ("rewards.judge: reward model 'judge' was saved as LlamaForCausalLM",),
    ),
    Situation(
        "a reward model that reads less than prompt and response",
        lambda folder: asked(folder, "base", reward={}, max_position_embeddings=16),
        3,
        ("reads 16 tokens, but the longest prompt has", "set `max_tokens`"),
    ),
]

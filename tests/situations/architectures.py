"""Architectures that are not sampled or learned from as others are, and texts that are too long."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tests import foreign
from tests.conftest import TINY
from tests.situations import Situation, recipe

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 320}


def new(model_type: str, **keys: Any) -> dict[str, Any]:
    """A policy of another architecture, on the tokenizer of the tiny recipe."""
    tokenizer = copy.deepcopy(TINY["model"]["policy"]["tokenizer"])
    return {"architecture": {"model_type": model_type, **keys}, "tokenizer": tokenizer}


def trained(folder: Path, policy: Any, **sections: Any) -> list[str]:
    model = {"policy": policy, "critic": {"shared": True}, **sections.pop("model", {})}
    return ["train", recipe(folder, model=model, **sections), "--output", "run"]


def mamba(folder: Path) -> list[str]:
    return trained(folder, new("mamba", hidden_size=16, num_hidden_layers=2, state_size=4))


def hybrid(folder: Path) -> list[str]:
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    layers = ["conv", "full_attention"]
    return trained(folder, new("lfm2", **shape, num_hidden_layers=2, layer_types=layers))


def saved_mamba(folder: Path) -> list[str]:
    foreign.saved(folder / "policy", "zephyr", kind="mamba", hidden_size=16, state_size=4)
    return trained(folder, "policy")


def encoder(folder: Path) -> list[str]:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return trained(folder, new("bert", **shape, num_hidden_layers=2))


def permuted(folder: Path) -> list[str]:
    foreign.saved(
        folder / "policy", "zephyr", kind="xlnet", d_model=16, n_layer=2, n_head=2, d_inner=32
    )
    return trained(folder, "policy")


def own_critic(folder: Path) -> list[str]:
    policy = new("mamba", hidden_size=16, num_hidden_layers=2, state_size=4)
    return trained(folder, policy, model={"critic": {}})


def inseparable(folder: Path) -> list[str]:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return trained(folder, new("modernbert-decoder", **shape, num_hidden_layers=2))


def packed(folder: Path) -> list[str]:
    sft = {"data": "reviews", "pack": True, "max_tokens": 100}
    policy = new("mamba", hidden_size=16, num_hidden_layers=2, state_size=4)
    return trained(folder, policy, sft=sft)


def long_examples(folder: Path) -> list[str]:
    policy = copy.deepcopy(TINY["model"]["policy"])
    policy["architecture"]["max_position_embeddings"] = 50
    return trained(folder, policy, sft={"data": "reviews"})


def long_pairs(folder: Path) -> list[str]:
    policy = new("gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=50)
    return trained(folder, policy, reward_model={"data": "reviews", "max_tokens": 90})


def short_critic(folder: Path) -> list[str]:
    words = foreign.tokenizer("zephyr")
    foreign.saved(folder / "policy", "zephyr", words=words)
    foreign.saved(folder / "critic", "zephyr", words=words, head="sequence", num_labels=1,
                  max_position_embeddings=10)  # fmt: skip
    return trained(folder, "policy", model={"critic": {"initial": "critic"}})


def scaled_rotation(folder: Path, *, original: int) -> list[str]:
    policy = copy.deepcopy(TINY["model"]["policy"])
    half = (
        policy["architecture"]["hidden_size"] // policy["architecture"]["num_attention_heads"] // 2
    )
    policy["architecture"] |= {
        "max_position_embeddings": 128,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * half,
            "long_factor": [4.0] * half,
            "factor": 4.0,
            "original_max_position_embeddings": original,
        },
    }
    return trained(folder, policy)


SITUATIONS = [
    Situation("a state-space model is trained", mamba, 0, ("same number of tokens",)),
    Situation("a saved state-space model is trained", saved_mamba, 0, ("same number of tokens",)),
    Situation("a hybrid of convolution and attention is trained", hybrid, 0),
    Situation(
        "an encoder is no policy",
        encoder,
        3,
        ("is not causal", "changing later tokens", "BertLMHeadModel", "model_type 'bert'", "nats"),
    ),
    Situation("a permutation language model is no policy", permuted, 3, ("model_type 'xlnet'",)),
    Situation(
        "an architecture without a classifier has no critic of its own",
        own_critic,
        3,
        ("MambaForCausalLM has no sequence classifier", "model.critic.shared: true"),
    ),
    Situation(
        "a shared critic needs a trunk that can be taken apart",
        inseparable,
        3,
        ("model.critic.shared", "cannot be taken apart"),
    ),
    Situation("packed examples would see each other", packed, 3, ("sft.pack", "see each other")),
    Situation(
        "examples are longer than the model reads",
        long_examples,
        3,
        ("sft.max_tokens", "reads 50 tokens", "Set `sft.max_tokens: 50` or less"),
    ),
    Situation(
        "pairs are longer than the model reads",
        long_pairs,
        3,
        ("reward_model.max_tokens", "reads 50 tokens"),
    ),
    Situation(
        "a critic reads fewer tokens than the policy",
        short_critic,
        3,
        ("model.critic.initial reads 10 tokens", "rollout.max_new_tokens is 8"),
    ),
    Situation(
        "a rotation depends on the length of the text",
        lambda folder: scaled_rotation(folder, original=8),
        3,
        ("is not causal", "removing later tokens"),
    ),
    Situation(
        "texts that are too short for the rotation to change are trained",
        lambda folder: scaled_rotation(folder, original=64),
        0,
    ),
]

"""Small real things: a tokenizer, language models with random weights, recipes that run in a second."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import; a name that is no file fails at once

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from rlframe.builtin.product_reviews import product_reviews
from rlframe.data.tokenizer import train_tokenizer

torch.set_num_threads(1)
disable_progress_bar()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A 300-token byte-level BPE tokenizer with <pad> 0, <bos> 1 and <eos> 2."""
    texts = [row["text"] for row in product_reviews(300, seed=0)]
    return train_tokenizer(texts, vocab_size=300, lowercase=False)


@pytest.fixture(scope="session")
def language_model(tokenizer: Any) -> Callable[..., Any]:
    """Makes a 2-layer, 16-wide Llama; equal seeds make equal models."""

    def make(*, dtype: torch.dtype = torch.float32, seed: int = 0, **shape: Any) -> Any:
        config = LlamaConfig(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                # Wide enough that the distributions are not uniform and differences show.
                "initializer_range": 0.5,
                **shape,
            }
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).to(dtype).eval()

    return make


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process of rlframe has read of its environment is nothing to the next test."""
    monkeypatch.setattr("rlframe.redaction._known", {})


TINY: dict[str, Any] = {
    "version": 1,
    "data": {
        "reviews": {"generator": {"type": "product_reviews", "rows": 200}, "heldout": 0.3},
    },
    "model": {
        "policy": {
            "architecture": {
                "model_type": "llama",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 128,
                "initializer_range": 0.2,
            },
            "tokenizer": {"data": "reviews", "vocab_size": 300},
        }
    },
    "prompts": {"data": "reviews", "first_words": 4},
    "rollout": {"prompts_per_update": 8, "max_new_tokens": 8},
    "rewards": {"short": {"type": "length", "target_tokens": 4}},
    "kl": {"controller": {"type": "adaptive", "target": 1.0, "horizon": 100, "initial": 0.1}},
    "ppo": {"updates": 2, "learning_rate": 1e-3},
    "evaluation": {"prompts": 4},
    "runtime": {"device": "cpu", "threads": 1},
}
"""A PPO recipe that runs in about a second."""


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny PPO recipe as YAML, sections replaced as asked (None removes one)."""
    from ruamel.yaml import YAML

    def write(**sections: Any) -> Path:
        data = {**copy.deepcopy(TINY), **sections}
        path = tmp_path / "recipe.yaml"
        with path.open("w") as file:
            YAML(typ="safe").dump({k: v for k, v in data.items() if v is not None}, file)
        return path

    return write

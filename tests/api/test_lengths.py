from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlframe.api import context_tokens

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("gpt2", "n_positions"),
        ("openai-gpt", "n_positions"),
        ("opt", "max_position_embeddings"),
        ("gpt_neo", "max_position_embeddings"),
        ("bert", "max_position_embeddings"),
        ("roberta", "max_position_embeddings"),
        ("camembert", "max_position_embeddings"),
        ("xlm-roberta", "max_position_embeddings"),
        ("mpnet", "max_position_embeddings"),
        ("electra", "max_position_embeddings"),
        ("biogpt", "max_position_embeddings"),
    ],
)
@torch.no_grad()
def test_a_text_of_so_many_tokens_is_read_and_no_longer_one(kind: str, key: str) -> None:
    known = AutoConfig.for_model(kind)
    sizes = {k: v for k, v in SMALL.items() if hasattr(known, k)}
    more: dict[str, Any] = {"gpt_neo": {"attention_types": [[["global"], 1]]}}.get(kind, {})
    config = AutoConfig.for_model(kind, vocab_size=50, **sizes, **more, **{key: 20})
    made: Any = (
        AutoModelForCausalLM if kind in ("gpt2", "opt") else AutoModelForSequenceClassification
    )
    for role in ("pad", "bos", "eos"):
        if (getattr(config, f"{role}_token_id", None) or 0) >= 50:
            setattr(config, f"{role}_token_id", 1)
    model = made.from_config(config).eval()
    limit = context_tokens(config)
    assert limit is not None
    model(input_ids=torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 5))


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "bloom", "xlnet"])
def test_models_without_a_limit_have_none(kind: str) -> None:
    assert context_tokens(AutoConfig.for_model(kind)) is None


@pytest.mark.parametrize(
    ("kind", "keys", "tokens"),
    [
        ("mpt", {"max_seq_len": 77}, 77),
        ("llama", {"max_position_embeddings": 77}, 77),
        ("mistral", {"max_position_embeddings": 77, "sliding_window": 8}, 77),
        ("falcon", {"max_position_embeddings": 77, "alibi": False}, 77),
        ("falcon", {"max_position_embeddings": 77, "alibi": True}, None),
        (
            "gemma3",
            {"text_config": {"max_position_embeddings": 77}},
            77,
        ),  # what it is inside counts
        ("roberta", {"max_position_embeddings": 514}, 512),
        ("rwkv", {"context_length": 77}, 77),
    ],
)
def test_a_config_says_it_in_its_own_words(
    kind: str, keys: dict[str, Any], tokens: int | None
) -> None:
    assert context_tokens(AutoConfig.for_model(kind, **keys)) == tokens

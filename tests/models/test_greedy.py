"""The likeliest token, also where several are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlframe.api.sampling import SampleRequest, SamplingParams
from rlframe.errors import RunError
from rlframe.models.policy import GreedyPolicy
from rlframe.rollout.decoding import decode

PARAMS = SamplingParams(max_new_tokens=6, eos_ids=frozenset({2}))


def responses(model: Any, tokenizer: Any, *seeds: int) -> list[list[int]]:
    policy = GreedyPolicy(model, temperature=1.0, chunk=16)
    asked = [SampleRequest((1, 7 + seed, 9), seed) for seed in seeds]
    found = decode(policy, tokenizer, asked, PARAMS, device=torch.device("cpu"), version=0)
    return [list(ids) for ids in found.ids]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_writes_what_transformers_writes(
    language_model: Callable[..., Any], tokenizer: Any, dtype: torch.dtype
) -> None:
    model = language_model(dtype=dtype)
    for seed, ids in zip((0, 5), responses(model, tokenizer, 0, 5), strict=True):
        given = torch.tensor([[1, 7 + seed, 9]])
        found = model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=6
        )
        if dtype == torch.float32:  # in bfloat16 a batch of two rounds otherwise than a row alone
            assert found[0, 3:].tolist() == ids
        assert responses(model, tokenizer, seed) == [found[0, 3:].tolist()]


def test_of_equals_it_takes_the_lowest_id_whatever_the_seed(
    language_model: Callable[..., Any], tokenizer: Any
) -> None:
    model = language_model()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    assert responses(model, tokenizer, 0, 1, 2) == [[0] * 6] * 3


def test_what_is_not_finite_is_found(language_model: Callable[..., Any], tokenizer: Any) -> None:
    model = language_model()
    torch.nn.init.constant_(model.get_output_embeddings().weight, torch.nan)
    with pytest.raises(RunError, match="not finite"):
        responses(model, tokenizer, 0)

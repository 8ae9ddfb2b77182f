from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlframe.compose.probe import check_policy
from rlframe.errors import RecipeError
from rlframe.models.cache import GrowingCache
from rlframe.models.policy import Policy, exact_kl
from rlframe.rollout.sampler import pack
from rlframe.types import Sequences

CPU = torch.device("cpu")


def batch_of(*rows: tuple[list[int], list[int]]) -> Sequences:
    return pack([p for p, _ in rows], [r for _, r in rows], device=CPU)


ROWS = (([1, 5, 9], [7, 8, 2]), ([1], [30, 31]), ([1, 40], [41, 42, 43, 44, 2]))


@pytest.fixture
def policy(language_model: Any) -> Policy:
    return Policy(language_model(), temperature=0.7, chunk=3)


@torch.no_grad()
def test_log_probabilities_are_those_of_each_sequence_alone_in_the_whole_model(
    policy: Policy,
) -> None:
    batch = batch_of(*ROWS)
    logprobs, entropy = policy.response_logprobs(batch, policy.trunk(batch))
    for i, (prompt, response) in enumerate(ROWS):
        logits = policy.model(torch.tensor([prompt + response])).logits[0] / 0.7
        expected = logits.log_softmax(-1)
        for t, token in enumerate(response):
            row = expected[len(prompt) - 1 + t]
            torch.testing.assert_close(logprobs[i, t], row[token], atol=1e-5, rtol=0)
            torch.testing.assert_close(entropy[i, t], -(row.exp() * row).sum(), atol=1e-5, rtol=0)
        assert (logprobs[i, len(response) :] == 0).all()


@torch.no_grad()
def test_garbage_in_the_padding_changes_nothing(policy: Policy) -> None:
    batch = batch_of(*ROWS)
    spoiled = batch.tokens.clone()
    for i, length in enumerate(batch.lengths.tolist()):
        spoiled[i, length:] = 77
    other = Sequences(spoiled, batch.prompt_lengths, batch.response_lengths)
    for a, b in zip(
        policy.response_logprobs(batch, policy.trunk(batch)),
        policy.response_logprobs(other, policy.trunk(other)),
        strict=True,
    ):
        assert torch.equal(a, b)


@torch.no_grad()
def test_masked_log_probabilities_are_the_unmasked_ones_where_asked(policy: Policy) -> None:
    tokens = torch.tensor([[1, 5, 9, 4], [1, 6, 6, 0]])
    mask = torch.tensor([[False, True, True], [True, False, False]])
    whole, some = policy.logprobs(tokens), policy.logprobs(tokens, mask)
    torch.testing.assert_close(some, whole.where(mask, 0), atol=1e-5, rtol=0)
    expected = policy.model(tokens).logits[:, :-1].log_softmax(-1)  # at temperature 1
    picked = expected.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(whole, picked, atol=1e-5, rtol=0)


def test_exact_kl_is_zero_against_itself_and_the_vocabulary_sum_against_another(
    language_model: Any,
) -> None:
    batch = batch_of(*ROWS)
    one = Policy(language_model(seed=0), temperature=0.7, chunk=2)
    two = Policy(language_model(seed=1), temperature=0.7, chunk=2)
    assert torch.equal(exact_kl(one, one, batch), torch.zeros(3, 5))
    found = exact_kl(one, two, batch)
    with torch.no_grad():
        tokens = torch.tensor([[1, 5, 9, 7, 8, 2]])
        p, q = ((x.model(tokens).logits[0, 2] / 0.7).log_softmax(-1) for x in (one, two))
    torch.testing.assert_close(found[0, 0], (p.exp() * (p - q)).sum(), atol=1e-5, rtol=1e-5)
    assert (found[1, 2:] == 0).all()


def test_a_model_that_caps_its_logits_gives_the_logits_of_the_whole_model(tokenizer: Any) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.05,
    )  # fmt: skip
    policy = Policy(Gemma2ForCausalLM(config), temperature=1.0, chunk=8)
    check_policy(policy, name="gemma")
    assert policy.head(torch.full((1, 16), 100.0)).abs().max() <= 0.05


def test_an_architecture_with_unknown_treatment_of_logits_is_refused(language_model: Any) -> None:
    model = language_model()
    whole = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = whole(*args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    model.forward = scaled
    with pytest.raises(RecipeError, match="are not those of the whole model"):
        check_policy(Policy(model, temperature=1.0, chunk=8), name="odd")


def test_dropout_is_off(language_model: Any) -> None:
    model = language_model(attention_dropout=0.9)
    model.train()
    policy = Policy(model, temperature=1.0, chunk=8)
    batch = batch_of(*ROWS)
    first, _ = policy.response_logprobs(batch, policy.trunk(batch))
    second, _ = policy.response_logprobs(batch, policy.trunk(batch))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "qwen3"])
@pytest.mark.parametrize("gaps", [(0, 0, 0), (0, 3, 5)])
def test_beyond_a_sliding_window_tokens_are_sampled_as_they_are_learned_from(
    kind: str, gaps: tuple[int, ...]
) -> None:
    more: dict[str, dict[str, Any]] = {
        "mistral": {},
        "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
        "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    }
    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, initializer_range=0.5,
        sliding_window=4, **more[kind],
    )  # fmt: skip
    torch.manual_seed(0)
    policy = Policy(
        AutoModelForCausalLM.from_config(config, dtype=torch.float64), temperature=1.0, chunk=64
    )
    tokens = torch.randint(3, 50, (3, 20))
    rows, width = torch.arange(3), 6
    padding = torch.tensor(gaps)[:, None]
    columns = torch.arange(width)
    with torch.no_grad():
        whole = policy.head(policy.hidden(tokens, use_cache=False).last_hidden_state)
        cache = GrowingCache(20)
        positions = (columns - padding).clamp(min=0)
        read = tokens.gather(1, positions)
        mask = (columns >= padding).long() if any(gaps) else None
        for _ in range(12):
            logits = policy.next_logits(read, positions, mask, cache)
            torch.testing.assert_close(logits, whole[rows, positions[:, -1]])
            positions = positions[:, -1:] + 1
            read = tokens.gather(1, positions)
            mask = None if mask is None else torch.cat([mask, mask.new_ones(3, 1)], 1)

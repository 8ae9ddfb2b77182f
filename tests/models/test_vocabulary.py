from __future__ import annotations

from typing import Any

import pytest
import torch

from rlframe.functional import logprobs
from rlframe.models.policy import Policy, exact_kl
from rlframe.models.vocabulary import Vocabulary, vocabulary_of
from rlframe.rollout.packing import pack
from tests import foreign
from tests.sampling import sampled

CPU = torch.device("cpu")
HOLES = Vocabulary(40, (3, 17))
FIRST = Vocabulary(40)
PADDED = 64
"""Rows of the embedding and the head."""


def batch() -> Any:
    return pack([[1, 5, 9], [1]], [[7, 8, 2], [30, 31]], device=CPU)


@pytest.fixture
def make(language_model: Any) -> Any:
    def policy(vocabulary: Vocabulary | None, **options: Any) -> Policy:
        model = language_model(vocab_size=PADDED, **options)
        return Policy(model, temperature=0.7, chunk=3, vocabulary=vocabulary)

    return policy


def expected(policy: Policy, ids: list[int]) -> torch.Tensor:
    """[n, V] over the ids alone, by hand; -inf elsewhere."""
    logits = policy.model(torch.tensor([[1, 5, 9, 7, 8, 2]])).logits[0] / 0.7
    only = torch.full_like(logits, -torch.inf)
    only[:, ids] = logits[:, ids]
    return only.log_softmax(-1)


@pytest.mark.parametrize("vocabulary", [FIRST, HOLES], ids=["first", "holes"])
@torch.no_grad()
def test_probabilities_and_entropies_are_over_the_ids_that_have_a_token(
    make: Any, vocabulary: Vocabulary
) -> None:
    policy = make(vocabulary)
    found, entropy = policy.response_logprobs(batch(), policy.trunk(batch()))
    wanted = expected(policy, vocabulary.ids(PADDED))
    for step, token in enumerate((7, 8, 2)):
        row = wanted[2 + step]
        torch.testing.assert_close(found[0, step], row[token], atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy[0, step], -(row.exp() * row).nansum(), atol=1e-5, rtol=0)
    at_one = policy.logprobs(torch.tensor([[1, 5, 9]]))
    logits = policy.model(torch.tensor([[1, 5]])).logits[0][:, vocabulary.ids(PADDED)]
    place = vocabulary.ids(PADDED).index(5)
    torch.testing.assert_close(at_one[0, 0], logits[0].log_softmax(-1)[place], atol=1e-5, rtol=0)


@pytest.mark.parametrize("vocabulary", [FIRST, HOLES], ids=["first", "holes"])
def test_an_id_without_a_token_is_never_sampled_however_likely(
    make: Any, tokenizer: Any, vocabulary: Vocabulary
) -> None:
    policy = make(vocabulary)
    gone = sorted(set(range(PADDED)) - set(vocabulary.ids(PADDED)))
    with torch.no_grad():
        head = policy.model.lm_head
        head.weight[gone] = head.weight[gone[0]] * 50  # they hold nearly all of the mass
    prompts = [(1, 5)] * 40
    for options in ({}, {"top_k": 5}, {"top_p": 0.9}):
        how = {"eos_ids": {2}, "max_new_tokens": 6, **options}
        rollout = sampled(policy, tokenizer, prompts, **how)
        assert not set(gone) & {token for row in rollout.response_ids() for token in row}
    free = Policy(policy.model, temperature=0.7, chunk=3)
    rollout = sampled(free, tokenizer, prompts, **how)
    assert set(gone) & {token for row in rollout.response_ids() for token in row}


@pytest.mark.parametrize("vocabulary", [FIRST, HOLES], ids=["first", "holes"])
def test_exact_kl_is_the_sum_over_the_ids_that_have_a_token(
    make: Any, vocabulary: Vocabulary, language_model: Any
) -> None:
    policy = make(vocabulary)
    # A reference whose embedding was padded to another multiple.
    other = Policy(
        language_model(vocab_size=2 * PADDED, seed=1),
        temperature=0.7,
        chunk=3,
        vocabulary=vocabulary,
    )
    ids = vocabulary.ids(PADDED)
    with torch.no_grad():
        p, q = (expected(x, ids)[2][ids] for x in (policy, other))
    found = exact_kl(policy, other, batch())
    torch.testing.assert_close(found[0, 0], (p.exp() * (p - q)).sum(), atol=1e-5, rtol=1e-4)


def test_where_every_row_of_the_head_has_a_token_nothing_changes_not_even_a_bit(make: Any) -> None:
    plain, restricted = make(None), make(Vocabulary(PADDED))
    found = []
    for policy in (plain, restricted):
        logps, entropy = policy.response_logprobs(batch(), policy.trunk(batch()))
        (logps.sum() + entropy.sum()).backward()
        found.append([logps, entropy, *(p.grad for p in policy.parameters())])
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("columns", [1, 40, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_of_a_linear_head_are_its_first_rows_alone(
    columns: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((5, 8), (1600, 8))]
    targets = torch.randint(columns, (5,), generator=generator)
    bias = torch.randn(1600, generator=generator, dtype=dtype)
    results = []
    for cut in (False, True):
        hidden, weight, shift = (x.clone().requires_grad_() for x in (*values, bias))
        if cut:
            logp, entropy = logprobs.from_linear(
                hidden, targets, weight, shift, temperature=0.7, columns=columns
            )
        else:
            logits = torch.nn.functional.linear(hidden, weight, shift)[:, :columns]
            logp, entropy = logprobs.from_logits(logits, targets, temperature=0.7)
        (logp.sum() + 2 * entropy.sum()).backward()
        results.append((logp, entropy, hidden.grad, weight.grad, shift.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert (results[1][3][columns:] == 0).all()


def test_the_vocabulary_of_a_tokenizer_counts_added_tokens_and_sees_holes() -> None:
    words = foreign.tokenizer("chatml")
    assert vocabulary_of(words) == Vocabulary(len(words))
    words.add_tokens(["<new>"])
    assert vocabulary_of(words) == Vocabulary(len(words))

    class Holey:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 1, "d": 3, "g": 6}

    assert vocabulary_of(Holey()) == Vocabulary(7, (2, 4, 5))  # type: ignore[arg-type]

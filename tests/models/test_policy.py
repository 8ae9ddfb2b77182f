from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from rlframe.compose.probe import check_policy
from rlframe.errors import RecipeError
from rlframe.models.cache import GrowingCache
from rlframe.models.policy import Policy, exact_kl
from rlframe.models.vocabulary import Vocabulary
from rlframe.rollout.packing import pack
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


# A function of the whole distribution

TOKENS = torch.tensor([[1, 5, 9, 4, 7], [1, 6, 6, 0, 0]])
MASK = torch.tensor([[False, True, True, True], [True, True, False, False]])
CHUNKS = [1, 2, 3, 5, 100]  # of 5 predictions: some with a rest, all, more than there are
PADDED = 310  # rows of the head, of which 300 have a token


def squares(logp: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Reads everything that a function is given."""
    chosen = logp.gather(-1, targets[:, None]).squeeze(-1)
    return weight * chosen**2 + bias.sum(-1) * (logp.exp() * logp).sum(-1)


def wide_policy(language_model: Any, chunk: int, **options: Any) -> Policy:
    model = language_model(dtype=torch.float64, vocab_size=PADDED)
    return Policy(model, temperature=0.7, chunk=chunk, **options)


def aligned(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A number and a vector for each prediction, both with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(size, generator=generator).double() for size in ((2, 4), (2, 4, 3))]
    return made[0].requires_grad_(), made[1].requires_grad_()


def dense(policy: Policy, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The same from the logits of the whole model, at once."""
    logits = policy.model(TOKENS[:, :-1]).logits
    if policy.vocabulary is not None:
        logits = logits[..., policy.vocabulary.ids(PADDED)]
    logp = logits.log_softmax(-1).flatten(0, 1)
    rows = (each.flatten(0, 1) for each in (TOKENS[:, 1:], *inputs))
    return function(logp, *rows).view(2, 4).where(MASK, 0)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("vocabulary", [None, Vocabulary(300)], ids=["all rows", "padded"])
def test_a_function_of_the_distribution_is_that_of_the_whole_logits_with_its_gradients(
    language_model: Any, chunk: int, vocabulary: Vocabulary | None
) -> None:
    policy, inputs = wide_policy(language_model, chunk, vocabulary=vocabulary), aligned()
    leaves = [*policy.parameters(), *inputs]
    found = policy.per_token(squares, TOKENS, MASK, *inputs)
    expected = dense(policy, squares, *inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found.sin().sum(), leaves),
        torch.autograd.grad(expected.sin().sum(), leaves),
        rtol=1e-12,
        atol=1e-12,
    )


def test_without_a_mask_the_function_gets_every_prediction(language_model: Any) -> None:
    policy, seen = wide_policy(language_model, 3), list[Tensor]()

    def target(logp: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return logp.gather(-1, targets[:, None]).squeeze(-1)

    found = policy.per_token(target, TOKENS)
    assert torch.equal(torch.cat(seen), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(found, policy.logprobs(TOKENS), rtol=0, atol=1e-12)


def test_gradients_of_a_function_of_the_distribution_are_those_of_finite_differences(
    language_model: Any,
) -> None:
    model = language_model(dtype=torch.float64, vocab_size=12)
    policy = Policy(model, temperature=1.0, chunk=2)
    # gradcheck moves the entries of its inputs where they are, so the model has the moved ones.
    leaves = (model.lm_head.weight, model.model.norm.weight, *aligned())
    assert torch.autograd.gradcheck(
        lambda head, norm, *inputs: policy.per_token(squares, TOKENS, MASK, *inputs), leaves
    )


@pytest.mark.parametrize("chunk", CHUNKS)
def test_gradients_reach_what_a_function_closes_over(language_model: Any, chunk: int) -> None:
    policy = wide_policy(language_model, chunk)
    scale = torch.full((PADDED,), 0.5, dtype=torch.float64, requires_grad=True)

    def scaled(logp: Tensor, _: Tensor, *__: Tensor) -> Tensor:
        return (logp * scale).tanh().sum(-1)

    (found,) = torch.autograd.grad(policy.per_token(scaled, TOKENS, MASK).sum(), [scale])
    (expected,) = torch.autograd.grad(dense(policy, scaled).sum(), [scale])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.abs().max() > 0.1


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_function_never_sees_more_than_a_chunk_and_none_of_it_waits_for_the_backward_pass(
    language_model: Any, chunk: int
) -> None:
    policy, seen, kept = wide_policy(language_model, chunk), list[int](), list[int]()

    def entropy(logp: Tensor, targets: Tensor) -> Tensor:
        assert logp.shape == (len(targets), PADDED)
        seen.append(len(targets))
        return -(logp.exp() * logp).sum(-1)

    def keep(tensor: Tensor) -> Tensor:
        if tensor.ndim and tensor.shape[-1] == PADDED:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = policy.per_token(entropy, TOKENS, MASK)
    pieces = [chunk] * (5 // chunk) + [5 % chunk] * (5 % chunk > 0)
    assert (seen, kept) == (pieces, [])
    found.sum().backward()
    assert sorted(seen) == sorted(2 * pieces)


def test_whatever_the_size_of_a_batch_nothing_as_wide_as_the_vocabulary_is_kept(
    language_model: Any,
) -> None:
    sizes = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    def entropy(logp: Tensor, _: Tensor) -> Tensor:
        return -(logp.exp() * logp).sum(-1)

    model = language_model(vocab_size=5000)
    policy = Policy(model, temperature=1.0, chunk=4)
    weights = {weight.numel() for weight in policy.parameters()}
    tokens = torch.arange(2 * 20).view(2, 20)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.per_token(entropy, tokens)
    assert max(set(sizes) - weights) < 5000


@pytest.mark.parametrize("gradient", [True, False])
def test_where_nothing_is_asked_the_numbers_are_0_with_a_gradient_of_0(
    language_model: Any, gradient: bool
) -> None:
    policy = wide_policy(language_model, 2)
    with torch.set_grad_enabled(gradient):
        found = policy.per_token(squares, TOKENS, torch.zeros_like(MASK), *aligned())
    assert torch.equal(found, torch.zeros(2, 4, dtype=torch.float64))
    if gradient:
        found.sum().backward()
        assert policy.model.lm_head.weight.grad.abs().max() == 0


@torch.no_grad()
def test_ids_without_a_token_have_no_probability_and_a_finite_logarithm(
    language_model: Any,
) -> None:
    holes = Vocabulary(300, (3, 17))
    policy = wide_policy(language_model, 2, vocabulary=holes)
    real = torch.tensor(holes.ids(PADDED))

    def check(logp: Tensor, targets: Tensor) -> Tensor:
        assert logp.shape[-1] == 300
        assert (policy.has_token(logp).nonzero().squeeze(-1) == real).all()
        assert (logp[:, [3, 17]].exp() == 0).all()
        assert logp.isfinite().all()
        torch.testing.assert_close(logp[:, real].exp().sum(-1), torch.ones(len(logp)).double())
        return (logp.exp() * logp).sum(-1)

    found = policy.per_token(check, TOKENS, MASK)
    expected = dense(policy, lambda logp, _: (logp.exp() * logp).sum(-1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert Policy(policy.model, temperature=1, chunk=2).has_token(torch.zeros(1, 4)).all()


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_a_function_gets_float32_from_a_model_in_half_precision(
    language_model: Any, kind: str
) -> None:
    policy = Policy(
        language_model(dtype=torch.bfloat16 if kind == "bfloat16" else torch.float32),
        temperature=1.0,
        chunk=2,
    )

    def target(logp: Tensor, targets: Tensor) -> Tensor:
        assert logp.dtype == torch.float32
        return logp.gather(-1, targets[:, None]).squeeze(-1)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
        found, expected = policy.per_token(target, TOKENS, MASK), policy.logprobs(TOKENS, MASK)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    weight = policy.model.lm_head.weight
    ours, theirs = (torch.autograd.grad(x.sum(), [weight])[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda logp, targets: logp.mean(), r"the shape \[\] for 2 rows"),
        (lambda logp, targets: logp, r"the shape \[2, 310\] for 2 rows"),
        (lambda logp, targets: None, "None for 2 rows"),
        (lambda logp, targets: logp.sum(-1).tolist(), r"\[-.* for 2 rows"),
    ],
)
def test_a_function_that_gives_something_else_than_a_number_per_row_is_refused(
    language_model: Any, function: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"given to `per_token` returned {message}"):
        wide_policy(language_model, 2).per_token(function, TOKENS, MASK)


def test_inputs_that_are_not_aligned_are_refused(language_model: Any) -> None:
    policy = wide_policy(language_model, 2)
    with pytest.raises(ValueError, match=r"input 1 .* \[2, 5, 3\]; .* predictions, \[2, 4\]"):
        policy.per_token(squares, TOKENS, MASK, torch.zeros(2, 4), torch.zeros(2, 5, 3))

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlframe.engine.sampling import Request
from rlframe.errors import RunError
from rlframe.models.policy import Policy
from rlframe.rollout.packing import pack
from rlframe.rollout.seeds import seed_of, uniforms
from rlframe.types import Prompt, Rollout, StopReason
from tests.sampling import response_sampler, sampled

CPU = torch.device("cpu")
PROMPTS = [(1, 5, 9, 17), (1, 30), (1, 40, 41), (1,), (1, 7, 7, 7, 7, 7, 8), (1, 99, 100)] * 3
REQUESTS = [Request(Prompt("", ids), sample, sample) for sample, ids in enumerate(PROMPTS)]


@pytest.fixture
def sample(language_model: Any, tokenizer: Any) -> Callable[..., Rollout]:
    policy = Policy(language_model(), temperature=0.8, chunk=64)

    def run(
        requests: list[Request] = REQUESTS, *, seed: int = 3, update: int = 0, **params: Any
    ) -> Rollout:
        how = {"eos_ids": {2, 50, 51, 52, 53, 54, 55}, "max_new_tokens": 12, **params}
        sampler = response_sampler(policy, tokenizer, seed=seed, **how)
        return sampler.sample(requests, update=update, purpose="rollout", version=0)

    return run


def test_the_same_tokens_come_out_whatever_the_batch(sample: Callable[..., Rollout]) -> None:
    whole = sample()
    assert {r.value for r in whole.stop_reasons} == {"eos", "length"}  # the test sees both
    for size in (1, 4, 7):
        assert sample(batch=size).response_ids() == whole.response_ids()
    backwards = sample(REQUESTS[::-1])
    assert backwards.response_ids()[::-1] == whole.response_ids()


def test_a_second_run_is_bit_identical(sample: Callable[..., Rollout]) -> None:
    assert torch.equal(sample().sequences.tokens, sample().sequences.tokens)


def test_another_seed_update_or_sample_gives_other_tokens(sample: Callable[..., Rollout]) -> None:
    ids = sample().response_ids()
    assert sample(seed=4).response_ids() != ids
    assert sample(update=1).response_ids() != ids
    assert ids[0] != ids[6]  # the same prompt, another sample


def test_responses_end_at_the_first_eos_and_say_so(sample: Callable[..., Rollout]) -> None:
    rollout = sample()
    stops = {2, 50, 51, 52, 53, 54, 55}
    for ids, reason in zip(rollout.response_ids(), rollout.stop_reasons, strict=True):
        assert not stops & set(ids[:-1])
        assert (reason is StopReason.EOS) == (ids[-1] in stops)
        assert reason is StopReason.EOS or len(ids) == 12


def test_tokens_are_the_inverse_cdf_of_the_model_at_their_uniforms(
    sample: Callable[..., Rollout], language_model: Any
) -> None:
    """The sampler's own cache, masks and positions against the model without any of them."""
    model, rollout = language_model(), sample()
    for row, ids in enumerate(rollout.response_ids()):
        prompt = list(PROMPTS[row])
        draws = uniforms(seed_of(3, "rollout", 0, row), tokens=12)
        for t, token in enumerate(ids):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids[:t]])).logits[0, -1] / 0.8
            cdf = logits.double().softmax(-1).cumsum(-1)
            below = float(cdf[token - 1]) if token else 0.0
            assert below - 1e-6 <= float(draws[t]) <= float(cdf[token]) + 1e-6


def test_a_stop_string_ends_a_response_and_is_cut_from_its_text(
    sample: Callable[..., Rollout], tokenizer: Any
) -> None:
    free = sample()
    row = max(range(len(free)), key=lambda r: len(free.texts[r]))
    stop = free.texts[row][2:4]
    stopped = sample(stop_strings=(stop,))
    at = free.texts[row].index(stop)
    assert stopped.stop_reasons[row] is StopReason.STOP_STRING
    assert stopped.texts[row] == free.texts[row][:at]
    ids = stopped.response_ids()[row]
    assert ids == free.response_ids()[row][: len(ids)]  # the tokens that were sampled stay
    assert stop in tokenizer.decode(ids)
    assert stop not in tokenizer.decode(ids[:-1])


def test_the_first_token_of_a_filter_to_one_is_the_likeliest(
    sample: Callable[..., Rollout],
) -> None:
    greedy = sample(top_k=1).response_ids()
    assert greedy == sample(top_k=1, seed=99).response_ids()
    assert greedy == sample(top_p=1e-9).response_ids() == sample(min_p=1.0).response_ids()


def test_packing_puts_prompt_and_response_side_by_side() -> None:
    batch = pack([[1, 5], [1]], [[7], [8, 9, 2]], device=CPU)
    assert batch.tokens.tolist() == [[1, 5, 7, 0], [1, 8, 9, 2]]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.response_lengths.tolist() == [1, 3]
    assert batch.rows(torch.tensor([0])).tokens.tolist() == [[1, 5, 7]]


def test_a_longer_request_for_uniforms_begins_with_the_shorter() -> None:
    assert torch.equal(uniforms(5, tokens=9)[:4], uniforms(5, tokens=4))
    assert not torch.equal(uniforms(5, tokens=4), uniforms(6, tokens=4))
    assert len({seed_of(1, "x", 2, 3), seed_of(1, "y", 2, 3), seed_of(1, "x", 2, 4)}) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_policy_with_broken_weights_samples_nothing(
    language_model: Any, tokenizer: Any, bad: float
) -> None:
    model = language_model()
    with torch.no_grad():
        model.lm_head.weight[7] = bad
    policy = Policy(model, temperature=1.0, chunk=64)
    with pytest.raises(RunError, match="logits are not finite"):
        sampled(policy, tokenizer, PROMPTS, eos_ids={2}, max_new_tokens=4)


@pytest.mark.parametrize("filters", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.1}])
def test_truncated_sampling_tells_the_log_probability_of_what_it_drew_from(
    sample: Callable[..., Rollout], language_model: Any, filters: dict[str, Any]
) -> None:
    """By one plain forward pass over each finished text."""
    rollout = sample(**filters)
    model = language_model()
    assert rollout.logprobs is not None
    for row, ids in enumerate(rollout.response_ids()):
        prompt = rollout.prompts[row].ids
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0] / 0.8
        expected = []
        for step, token in enumerate(ids):
            probs = logits[len(prompt) + step - 1].double().softmax(-1)
            ordered = probs.sort(descending=True).values
            if "top_k" in filters:
                least = ordered[filters["top_k"] - 1]
            elif "top_p" in filters:
                least = ordered[int((ordered.cumsum(-1) < filters["top_p"]).sum())]
            else:
                least = ordered[0] * filters["min_p"]
            expected.append(float((probs[token] / probs[probs >= least].sum()).log()))
        assert rollout.logprobs[row] == pytest.approx(expected, abs=1e-4)
    for size in (1, 4):
        again = sample(batch=size, **filters).logprobs
        assert again is not None
        for one, other in zip(again, rollout.logprobs, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("filters", [{}, {"top_p": 1.0}, {"min_p": 0.0}])
def test_what_is_not_truncated_is_the_policys_and_costs_nothing(
    sample: Callable[..., Rollout], filters: dict[str, Any]
) -> None:
    assert sample(**filters).logprobs is None

"""The probe of architectures: a dozen families, what is refused, and planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from rlframe.compose import probe
from rlframe.errors import RecipeError
from rlframe.models.cache import GrowingCache, OwnCache
from rlframe.models.policy import Policy
from rlframe.models.profile import Profile
from rlframe.models.reduced import reduced_model
from rlframe.rollout.writing import Writing
from tests.sampling import sampled

GROWING = Profile()
OWN = Profile(cache="own", packs=False)
ALONE = Profile(cache="own", padded=False, packs=False)
NONE = Profile(cache="none", padded=False, packs=False)

FAMILIES: dict[str, tuple[Profile, dict[str, Any]]] = {
    "llama": (GROWING, {}),
    "gpt2": (GROWING, {}),  # learned positions
    "opt": (Profile(packs=False), {}),  # learned positions, counted from 2
    "bloom": (Profile(packs=False), {}),  # ALiBi
    "gemma2": (GROWING, {}),  # windows, capped logits
    "cohere": (GROWING, {}),  # scaled logits
    "granite": (GROWING, {}),  # divided logits
    "mistral": (GROWING, {"sliding_window": 4}),
    "mixtral": (GROWING, {"num_local_experts": 4}),
    "modernbert-decoder": (Profile(whole=True), {}),  # a head with a layer of its own
    "mamba": (ALONE, {}),
    "falcon_mamba": (ALONE, {}),
    "jamba": (OWN, {"num_experts": 2}),
    "lfm2": (GROWING, {}),
    "qwen3_5_text": (OWN, {}),
    "openai-gpt": (NONE, {}),
    "rwkv": (NONE, {}),  # in a batch its state goes wrong in transformers
}


@pytest.fixture(scope="module")
def small() -> Callable[[str], Any]:
    """Makes a small model of a family, once."""
    made: dict[str, Any] = {}

    def model(kind: str) -> Any:
        if kind not in made:
            with torch.random.fork_rng(devices=[]), probe.in_silence():
                torch.manual_seed(0)
                config = AutoConfig.for_model(kind, **FAMILIES.get(kind, (None, {}))[1])
                made[kind], reasons = reduced_model(config, length=None)
            assert made[kind] is not None, reasons
        return made[kind]

    return model


def policy_of(model: Any, profile: Profile = GROWING, **options: Any) -> Policy:
    return Policy(model, temperature=1.0, chunk=64, profile=profile, **options)


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_a_family_is_run_so_that_sampler_and_log_probabilities_are_those_of_the_model(
    small: Callable[[str], Any], kind: str
) -> None:
    model = small(kind)
    with probe.in_silence():
        profile = probe.profile_by(model, name=kind, samples=True)
    assert profile == FAMILIES[kind][0]
    policy = policy_of(model, profile)
    texts = probe.texts_for(policy)
    assert probe.sampling_difference(policy, texts).nats < 2e-4
    assert probe.learning_difference(policy, texts).nats < 2e-4


@pytest.mark.parametrize("kind", ["llama", "mamba", "jamba", "openai-gpt", "gemma2"])
@torch.no_grad()
def test_the_likeliest_tokens_are_those_that_generate_writes(
    small: Callable[[str], Any], kind: str, tokenizer: Any
) -> None:
    model = small(kind)
    model.generation_config = wanted = GenerationConfig(
        do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0
    )
    prompts = [(5, 9, 17), (30,), (40, 41, 42)]
    policy = policy_of(model, FAMILIES[kind][0])
    found = sampled(policy, tokenizer, prompts, eos_ids={-1}, max_new_tokens=6, top_k=1)
    for ids, mine in zip(prompts, found.response_ids(), strict=True):
        read = torch.tensor([ids])
        with probe.in_silence():
            theirs = model.generate(
                read, attention_mask=torch.ones_like(read), generation_config=wanted
            )
        assert theirs[0, len(ids) :].tolist() == mine


@pytest.mark.parametrize("size", [1, 2, 5])
def test_without_padding_the_same_tokens_come_out_whatever_the_batch(
    small: Callable[[str], Any], tokenizer: Any, size: int
) -> None:
    policy = policy_of(small("mamba"), ALONE)
    prompts = [(5, 9, 17), (30,), (40, 41, 42), (7, 7), (30,), (8, 8)]
    ends = set(range(10, 40))  # some rows end early

    def written(batch: int | None) -> Any:
        return sampled(policy, tokenizer, prompts, eos_ids=ends, max_new_tokens=8, batch=batch)

    assert written(size).response_ids() == written(None).response_ids()
    assert written(size).stop_reasons == written(None).stop_reasons
    assert len({len(ids) for ids in written(None).response_ids()}) > 1


# What is refused


@pytest.mark.parametrize("kind", ["bert", "xlnet", "xlm", "cpmant"])
def test_a_model_that_sees_later_tokens_is_refused_with_the_numbers(kind: str) -> None:
    config = AutoConfig.for_model(kind)
    words = rf"model.policy: x \(\w+, model_type {kind!r}\) is not causal: .* by up to [0-9.]+ nats"
    with pytest.raises(RecipeError, match=words):
        probe.profile_of(config, length=None, name="model.policy: x", samples=True)


def test_a_rotation_that_changes_with_the_length_is_refused_where_texts_are_that_long() -> None:
    half = 16
    config = AutoConfig.for_model(
        "phi3",
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=64,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
            "short_factor": [1.0] * half,
            "long_factor": [8.0] * half,
        },
        original_max_position_embeddings=1000,
    )
    assert probe.profile_of(config, length=1000, name="x", samples=True) == GROWING
    with pytest.raises(RecipeError, match="is not causal: removing later tokens"):
        probe.profile_of(config, length=1001, name="x", samples=True)


def test_what_is_not_sampled_from_needs_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writing, "next_logits", None)
    config = AutoConfig.for_model("mamba")
    profile = probe.profile_of(config, length=None, name="x", samples=False)
    assert profile == Profile(packs=False)


# What it may not do


def test_it_prints_nothing_and_draws_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    probe.profile_of(AutoConfig.for_model("falcon_mamba"), length=None, name="x", samples=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


# Planted faults


@pytest.fixture
def texts(small: Callable[[str], Any]) -> list[probe.Text]:
    return probe.texts_for(policy_of(small("llama")))


def wrong_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Writing.advance

    def advance(self: Writing, chosen: Tensor) -> bool:
        more = right(self, chosen)
        self.positions[:] = self.positions.max()  # as if no row had padding
        return more

    monkeypatch.setattr(Writing, "advance", advance)


def no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Writing.__init__

    def begin(self: Writing, *args: Any) -> None:
        right(self, *args)
        self.mask = None

    monkeypatch.setattr(Writing, "__init__", begin)


def rows_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    right = GrowingCache.select
    monkeypatch.setattr(GrowingCache, "select", lambda self, rows: right(self, rows.flip(0)))


def row_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrowingCache, "select", lambda self, rows: True)


def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    right = GrowingCache.update

    def update(self: GrowingCache, keys: Tensor, values: Tensor, *rest: Any) -> Any:
        keys, values = right(self, keys, values, *rest)
        values = values.clone()
        values[:, :, 0] = 0  # the first token's
        return keys, values

    monkeypatch.setattr(GrowingCache, "update", update)


@pytest.mark.parametrize(
    "plant",
    [wrong_positions, no_mask, rows_mixed_up, row_kept, forgetful],
    ids=lambda f: f.__name__,
)
@torch.no_grad()
def test_a_fault_of_the_sampler_is_seen(
    small: Callable[[str], Any],
    texts: list[probe.Text],
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    policy = policy_of(small("llama"))
    assert probe.sampling_difference(policy, texts).small
    plant(monkeypatch)
    found = probe.sampling_difference(policy, texts)
    assert not found.small
    assert found.failure is not None or found.nats > 1e-2


@torch.no_grad()
def test_a_fault_of_the_log_probabilities_is_seen(
    small: Callable[[str], Any], texts: list[probe.Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(small("llama"))
    right = Policy.trunk
    assert probe.learning_difference(policy, texts).small
    monkeypatch.setattr(Policy, "trunk", lambda self, batch: right(self, batch) * 1.01)
    assert probe.learning_difference(policy, texts).nats > 1e-2


def test_where_no_way_is_right_the_message_has_the_number_of_each(
    small: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Policy.next_logits
    monkeypatch.setattr(Policy, "next_logits", lambda self, *args: 1.1 * right(self, *args))
    words = (
        "cannot be sampled from.*with rlframe's cache 0.*with its own cache 0.*no padding 0.*"
        "without a cache 0"
    )
    with pytest.raises(RecipeError, match=words):
        probe.profile_by(small("llama"), name="x", samples=True)


def test_memory_that_runs_out_makes_the_probe_ask_fewer_at_a_time(
    small: Callable[[str], Any], texts: list[probe.Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, sizes = Policy.next_logits, []

    def cramped(self: Policy, tokens: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return right(self, tokens, *rest)

    monkeypatch.setattr(Policy, "next_logits", cramped)
    with torch.no_grad():
        assert probe.sampling_difference(policy_of(small("llama")), texts).small
    assert 9 in sizes
    assert max(size for size in sizes if size <= 3) > 1


def test_a_model_without_a_cache_says_so() -> None:
    class Reader(torch.nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids

    with pytest.raises(ValueError, match="Reader takes no cache"):
        OwnCache(None, Reader(), drops=True)

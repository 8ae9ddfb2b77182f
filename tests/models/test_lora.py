from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rlframe.errors import RecipeError, RunError, SetupError
from rlframe.models import lora
from rlframe.models.cache import GrowingCache
from rlframe.models.loading import weights_hash
from rlframe.models.policy import Policy, exact_kl
from rlframe.rollout.packing import pack
from rlframe.types import Sequences

HEAD = ["q_proj", "lm_head"]


def batch() -> Sequences:
    return pack(
        [[1, 5, 9], [1], [1, 40]],
        [[7, 8, 2], [30, 31], [41, 42, 43, 2]],
        device=torch.device("cpu"),
    )


def with_adapters(model: Any, targets: Any = "all-linear", *, seed: int = 0) -> Any:
    lora.add(model, rank=4, alpha=8, targets=targets, base="some/base", seed=seed)
    return model


def policy_of(model: Any) -> Policy:
    return Policy(model, temperature=0.7, chunk=3)


def logprobs(policy: Policy) -> torch.Tensor:
    found: torch.Tensor = policy.response_logprobs(batch(), policy.trunk(batch()))[0]
    return found


@torch.no_grad()
def moved(model: Any) -> Any:
    """Adapters as after some training."""
    generator = torch.Generator().manual_seed(0)
    for layer in lora.adapted(model).values():
        weight = layer.lora_B["default"].weight
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def gpt2() -> Any:
    """Its layers are transposed (Conv1D), and its head is the embedding."""
    shape = GPT2Config(
        vocab_size=50,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(shape).eval()


def test_all_linear_layers_but_the_head_have_adapters_and_nothing_else_is_trained(
    language_model: Any,
) -> None:
    model = with_adapters(language_model())
    blocks = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.rpartition(".")[2] for name in lora.adapted(model)} == set(blocks)
    assert len(lora.adapted(model)) == 2 * len(blocks)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_a_seed_decides_the_adapters_and_the_global_generator_is_left_alone(
    language_model: Any,
) -> None:
    before = torch.get_rng_state()
    one, again, other = (with_adapters(language_model(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert weights_hash(one) == weights_hash(again) != weights_hash(other)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], HEAD], ids=str)
@torch.no_grad()
def test_the_policy_begins_as_its_reference_to_the_last_bit_and_then_leaves_it(
    language_model: Any, targets: Any
) -> None:
    expected = logprobs(policy_of(language_model()))
    policy = policy_of(with_adapters(language_model(), targets))
    reference = lora.WithoutAdapters(policy)
    assert torch.equal(logprobs(policy), logprobs(reference))
    assert torch.equal(exact_kl(policy, reference, batch()), torch.zeros(3, 4))
    torch.testing.assert_close(logprobs(policy), expected, atol=1e-5, rtol=0)
    moved(policy.model)
    torch.testing.assert_close(logprobs(reference), expected, atol=1e-5, rtol=0)
    assert (logprobs(policy) - expected).abs().max() > 1e-2
    tokens, positions = torch.tensor([[1, 5]]), torch.tensor([[0, 1]])
    said = policy_of(language_model()).next_logits(tokens, positions, None, GrowingCache(20))
    torch.testing.assert_close(
        reference.next_logits(tokens, positions, None, GrowingCache(20)), said
    )
    assert not torch.allclose(
        policy.next_logits(tokens, positions, None, GrowingCache(20)), said, atol=1e-2
    )


def test_an_adapter_on_the_head_alone_counts_and_is_trained(language_model: Any) -> None:
    policy = policy_of(moved(with_adapters(language_model(), ["lm_head"])))
    found = logprobs(policy)
    whole = policy.model(batch().tokens).logits / 0.7
    torch.testing.assert_close(found[0, 0], whole[0, 2].log_softmax(-1)[7], atol=1e-5, rtol=0)
    found.sum().backward()
    head = lora.adapted(policy.model)["lm_head"]
    assert head.lora_A["default"].weight.grad.abs().sum() > 0
    assert head.base_layer.weight.grad is None


def test_adapters_are_there_again_when_the_reference_raises(language_model: Any) -> None:
    policy = policy_of(moved(with_adapters(language_model())))
    before = logprobs(policy)
    with pytest.raises(IndexError):
        lora.WithoutAdapters(policy).hidden(torch.tensor([[999]]))
    assert torch.equal(logprobs(policy), before)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PeftModel's
@pytest.mark.parametrize("make", ["llama", "llama with a head", "gpt2"])
@torch.no_grad()
def test_the_merged_model_is_a_plain_one_that_says_the_same(
    language_model: Any, tmp_path: Path, make: str
) -> None:
    targets = HEAD if "head" in make else "all-linear"
    base = gpt2() if make == "gpt2" else language_model()
    base.save_pretrained(tmp_path / "base")
    model = moved(with_adapters(base, targets))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "merged", state_dict=lora.merged(model, weights))
    lora.save(model, weights, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokens = torch.tensor([[1, 5, 9, 30]])
    expected = model(tokens).logits
    torch.testing.assert_close(plain(tokens).logits, expected, atol=1e-4, rtol=1e-4)

    import peft

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    wrapped = peft.PeftModel.from_pretrained(again, tmp_path / "adapter")
    torch.testing.assert_close(wrapped(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    loaded = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert loaded["base_model_name_or_path"] == "some/base"
    assert loaded["target_modules"] == sorted(loaded["target_modules"])
    assert all("." not in name for name in loaded["target_modules"])


def test_adapters_come_back_bit_for_bit_and_only_to_the_model_they_were_made_for(
    language_model: Any, tmp_path: Path
) -> None:
    model = moved(with_adapters(language_model()))
    lora.save(model, model.state_dict(), tmp_path)
    fresh = with_adapters(language_model(), seed=5)
    fresh.load_state_dict(lora.load(fresh, tmp_path), strict=False)
    assert weights_hash(fresh) == weights_hash(model)
    with pytest.raises(RunError, match="trained on other weights than those of the policy now"):
        lora.load(with_adapters(language_model(seed=1)), tmp_path)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_poj"], "'q_poj': the policy has no such layer. Did you mean 'q_proj'"),
        (["q_proj", "embed_tokens"], "embed_tokens is a Embedding"),
        (["mlp"], "is a LlamaMLP, and adapters go on linear layers"),
        (["roj"], "linear layers are down_proj, gate_proj, k_proj, lm_head, o_proj"),
    ],
)
def test_targets_that_are_no_linear_layers_are_told_what_there_is(
    language_model: Any, targets: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        lora.check(language_model(), targets)


def test_a_head_with_the_weights_of_the_embedding_has_no_adapter() -> None:
    with pytest.raises(RecipeError, match="lm_head has the weights of the embedding"):
        lora.check(gpt2(), ["c_attn", "lm_head"])


def test_a_rank_above_the_width_and_a_whole_path_will_do(language_model: Any) -> None:
    model, path = language_model(), "model.layers.1.mlp.up_proj"
    lora.add(model, rank=40, alpha=1, targets=[path], base=None, seed=0)
    assert list(lora.adapted(model)) == [path]


def test_without_peft_the_command_to_install_it_is_told(
    language_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SetupError, match="pip install peft"):
        lora.check(language_model(), "all-linear")

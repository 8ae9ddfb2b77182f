from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlframe.errors import RecipeError
from rlframe.models import loading
from rlframe.models.actor_critic import ActorCritic, Critic, SharedCritic
from rlframe.models.policy import Policy
from rlframe.rollout.packing import pack
from tests import foreign


def test_a_new_model_takes_vocabulary_and_special_tokens_from_the_tokenizer(tokenizer: Any) -> None:
    shape = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    state = torch.get_rng_state()
    one = loading.new_language_model(shape, tokenizer, dtype=torch.float64, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert one.get_input_embeddings().weight.shape == (len(tokenizer), 16)
    assert (one.config.pad_token_id, one.config.eos_token_id) == (0, 2)
    assert one.dtype == torch.float64
    again = loading.new_language_model(shape, tokenizer, dtype=torch.float64, seed=1)
    other = loading.new_language_model(shape, tokenizer, dtype=torch.float64, seed=2)
    assert loading.weights_hash(one) == loading.weights_hash(again) != loading.weights_hash(other)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"model_type": "lama"}, "lama"),
        ({}, "model_type"),
        ({"model_type": "llama", "hiden_size": 16}, "a llama config has no hiden_size"),
        ({"model_type": "llama", "hidden_size": 15, "num_attention_heads": 2}, "15"),
        (
            {"model_type": "qwen3", "hidden_size": 16, "num_attention_heads": 2},
            "num_key_value_heads 32",
        ),
    ],
)
def test_a_config_that_makes_no_model_is_a_recipe_error(
    shape: dict[str, Any], message: str, tokenizer: Any
) -> None:
    with pytest.raises(RecipeError, match=message):
        loading.new_language_model(shape, tokenizer, dtype=torch.float32, seed=0)


def test_a_critic_from_the_policy_shares_its_trunk_by_value(language_model: Any) -> None:
    policy = language_model()
    critic = loading.scalar_model_from(policy, head="zero", seed=0)
    mine, theirs = policy.base_model.state_dict(), critic.base_model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with torch.no_grad():
        next(critic.base_model.parameters()).add_(1)
    assert not torch.equal(
        next(policy.base_model.parameters()), next(critic.base_model.parameters())
    )


def test_a_zero_head_values_everything_at_zero_and_a_normal_one_has_its_scale(
    language_model: Any,
) -> None:
    batch = pack([[1, 5]], [[7, 8, 2]], device=torch.device("cpu"))
    zero = Critic(loading.scalar_model_from(language_model(), head="zero", seed=0))
    assert torch.equal(zero.values(batch, None), torch.zeros(1, 3))
    linear = torch.nn.Linear(10_000, 1)
    loading.init_head(linear, "normal", seed=3)
    assert linear.weight.std().item() == pytest.approx(1 / math.sqrt(10_001), rel=0.03)
    assert linear.bias.item() == 0
    kept = linear.weight.clone()
    loading.init_head(linear, "keep", seed=4)
    assert torch.equal(linear.weight, kept)


def test_values_are_those_before_each_token_and_read_no_padding(language_model: Any) -> None:
    model = loading.scalar_model_from(language_model(), head="normal", seed=0)
    batch = pack([[1, 5], [1]], [[7, 8, 2], [9]], device=torch.device("cpu"))
    values = Critic(model).values(batch, None)
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([[1, 5, 7, 8, 2]])).last_hidden_state
        expected = model.score(hidden)[0, 1:4, 0]  # after the prompt, after 7, after 8
    torch.testing.assert_close(values[0], expected, atol=1e-5, rtol=0)
    assert (values[1, 1:] == 0).all()


def test_a_shared_critic_sends_its_gradient_into_the_policys_trunk(language_model: Any) -> None:
    policy = Policy(language_model(), temperature=1.0, chunk=64)
    weight = policy.model.get_input_embeddings().weight
    head = loading.value_head(16, head="normal", like=weight, seed=0)
    models = ActorCritic(policy, SharedCritic(head))
    batch = pack([[1, 5]], [[7, 2]], device=torch.device("cpu"))
    models.evaluate(batch).values.sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().sum()) > 0


def test_a_tokenizer_without_padding_or_with_eos_as_padding_leaves_none_in_the_model(
    tmp_path: Path,
) -> None:
    """A classifier whose padding token is EOS would be read before the first EOS by others."""
    for pad in (None, "<|im_end|>"):
        words = foreign.tokenizer("chatml")
        words.pad_token = pad
        path = foreign.saved(tmp_path / str(pad), "chatml", words=words)
        model = loading.load_language_model(str(path), words, dtype=torch.float32)
        assert model.config.pad_token_id is None
        assert model.get_input_embeddings().padding_idx is None
        critic = loading.scalar_model_from(model, head="normal", seed=0)
        assert critic.config.pad_token_id is None


def test_an_added_token_gets_the_same_row_in_every_model(tmp_path: Path) -> None:
    words = foreign.tokenizer("mistral")
    path = foreign.saved(tmp_path / "model", "mistral", words=words)
    words.add_special_tokens({"pad_token": "<new>"})
    models = [
        loading.load_language_model(str(path), words, dtype=torch.float32),
        loading.load_language_model(str(path), words, dtype=torch.float32),
        loading.load_scalar_model(str(path), words, head="zero", dtype=torch.float32, seed=0),
    ]
    rows = [model.get_input_embeddings().weight[len(words) - 1] for model in models]
    assert models[0].get_input_embeddings().num_embeddings == len(words)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])


def test_a_scalar_model_has_the_trunk_of_the_saved_model_and_a_head_as_asked(
    tmp_path: Path,
) -> None:
    words = foreign.tokenizer("chatml")
    causal = foreign.saved(tmp_path / "causal", "chatml")
    judge = foreign.saved(tmp_path / "judge", "chatml", head="sequence", num_labels=2)
    for path in (causal, judge):
        made = loading.load_scalar_model(
            str(path), words, head="normal", dtype=torch.float32, seed=3
        )
        assert made.score.weight.shape == (1, 16)
        trunk = {k: v for k, v in load_file(path / "model.safetensors").items() if "model." in k}
        assert all(torch.equal(made.state_dict()[name], saved) for name, saved in trunk.items())
    like = loading.load_language_model(str(causal), words, dtype=torch.float32)
    same = loading.scalar_model_from(like, head="normal", seed=3)
    assert torch.equal(made.score.weight, same.score.weight)


def test_one_changed_bit_changes_the_hash(language_model: Any) -> None:
    model = language_model()
    before = loading.weights_hash(model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nextafter(model.lm_head.weight[0, 0], torch.tensor(9.0))
    assert loading.weights_hash(model) != before

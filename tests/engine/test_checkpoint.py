"""What a checkpoint holds of the trained models: folders that load as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlframe.engine.checkpoint import load_average, load_weights, save_models
from rlframe.models.actor_critic import ActorCritic, Critic, SharedCritic
from rlframe.models.loading import scalar_model_from
from rlframe.models.policy import Policy


@pytest.fixture(params=["a critic of its own", "a shared critic"])
def models(request: pytest.FixtureRequest, language_model: Any) -> ActorCritic:
    model = language_model()
    if request.param == "a shared critic":
        return ActorCritic(
            Policy(model, temperature=1.0, chunk=64), SharedCritic(nn.Linear(16, 1, bias=False))
        )
    return ActorCritic(
        Policy(model, temperature=1.0, chunk=64),
        Critic(scalar_model_from(model, head="normal", seed=0)),
    )


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_models_come_back_as_they_were(models: ActorCritic, tokenizer: Any, tmp_path: Path) -> None:
    weights = {name: t + 1 for name, t in models.state_dict().items()}
    directory = tmp_path / "not" / "there" / "yet"
    save_models(weights, models, tokenizer, directory)
    assert same(load_weights(directory, models), weights)
    assert load_average(directory, models) is None
    assert (directory / "critic" / "value_head.safetensors").exists() == isinstance(
        models.critic, SharedCritic
    )


def test_the_policy_opens_with_transformers_alone(
    models: ActorCritic, tokenizer: Any, tmp_path: Path
) -> None:
    weights = {name: t + 1 for name, t in models.state_dict().items()}
    save_models(weights, models, tokenizer, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").state_dict()
    expected = {n.removeprefix("policy.model."): t for n, t in weights.items() if "policy" in n}
    assert same(plain, expected)
    words = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert words.get_vocab() == tokenizer.get_vocab()


def test_an_average_is_a_policy_whose_other_weights_are_as_they_are(
    models: ActorCritic, tokenizer: Any, tmp_path: Path
) -> None:
    weights = dict(models.state_dict())
    name = "policy.model.lm_head.weight"
    save_models(weights, models, tokenizer, tmp_path, average={name: weights[name] * 3})
    found = load_average(tmp_path, models)
    assert found is not None
    expected = {n: t for n, t in weights.items() if n.startswith("policy.")}
    assert same(found, {**expected, name: weights[name] * 3})
    assert same(load_weights(tmp_path, models), weights)

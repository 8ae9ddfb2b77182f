"""What a checkpoint holds: models that load as they were, and where the run stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlframe.engine.checkpoint import (
    Progress,
    load_average,
    load_progress,
    load_weights,
    save_models,
    save_progress,
)
from rlframe.models.actor_critic import ActorCritic, Critic, SharedCritic
from rlframe.models.loading import scalar_model_from
from rlframe.models.policy import Policy
from rlframe.types import KLState


def progress(**changed: Any) -> Progress:
    given: dict[str, Any] = {
        "updates": 3,
        "kl": KLState(0.25, {"integral": 1.5}),
        "learner": {"steps": 12},
        "episodes": 96,
        "last_kl": 4.5,
        "observer_errors": 0,
        "components": [{"rewards.a": {"seen": 1}}, {"rewards.a": {"seen": 2}}],
        "judge": {"a": [1.0, 2.0]},
    }
    return Progress(**{**given, **changed})


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


@pytest.mark.parametrize("memory", [None, {"step": 3, "exp_avg": torch.ones(2)}])
def test_where_a_run_stands_comes_back(memory: Any, tmp_path: Path) -> None:
    save_progress(tmp_path, progress(), memory)
    found, kept = load_progress(tmp_path)
    assert found == progress()
    assert (kept is None) == (memory is None)
    assert memory is None or torch.equal(kept["exp_avg"], memory["exp_avg"])  # type: ignore[index]


def test_a_process_that_the_run_did_not_have_takes_the_components_of_the_first() -> None:
    states = [progress().of_rank(rank)["rewards.a"]["seen"] for rank in range(4)]
    assert states == [1, 2, 1, 1]

"""Another sampler than that in the box is compared with the model before anything trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlframe.api import PluginConfig, Samples, SamplingParams
from rlframe.compose.project import Project
from rlframe.compose.sampler_probe import check_sampler, check_sampler_of_architecture
from rlframe.errors import RecipeError, RlframeError
from rlframe.models.policy import Policy
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from rlframe.rollout.builtin import Builtin
from tests.testing.sampler_defects import (
    AnyId,
    Decodes,
    ForgetsTheTemperature,
    OfAnotherTemperature,
    OtherOrder,
)

CONTINUOUS = "rollout.sampler={type: continuous, page_tokens: 16}"
MODEL = "model.policy.architecture={model_type: %s, vocab_size: 300, %s}"
SHAPES = {
    "llama": "hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2",
    "gpt2": "n_embd: 32, n_layer: 2, n_head: 2",
    "bloom": "hidden_size: 32, n_layer: 2, n_head: 2",
    "mamba": "hidden_size: 32, num_hidden_layers: 2",
}


class Upside(Decodes):
    """Says nothing of probabilities, and takes the least likely token."""

    @classmethod
    def capabilities(cls, config: PluginConfig) -> Any:
        return replace(super().capabilities(config), logprobs="none")

    def connect(self, policy: Any) -> None:
        super().connect(policy)
        self.policy = Turned(policy)


class Turned:
    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def next_logits(self, *given: Any) -> Any:
        return -self._policy.next_logits(*given)


class Fails(Decodes):
    def sample(self, requests: Any, params: SamplingParams, seed: int) -> Samples:
        raise NotImplementedError("attention of this kind")


WRONG = (Upside, Fails, OfAnotherTemperature, ForgetsTheTemperature, OtherOrder, AnyId)


@pytest.fixture
def project(tiny_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., Project]:
    registry = Registry()
    for kind in (Decodes, *WRONG):
        registry.add("samplers", kind.__name__, kind)

    def make(*overrides: str) -> Project:
        given = [*overrides, "rollout.reproducible=false"]
        return Project(load_recipe(tiny_recipe(), given, registry=registry), tmp_path, registry)

    return make


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_architecture_that_it_samples_right_passes(project: Any, kind: str) -> None:
    check_sampler_of_architecture(project(CONTINUOUS, MODEL % (kind, SHAPES[kind])))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bloom", r"'continuous' samples from another distribution than .* of 2\.. nats"),
        ("mamba", r"sampler 'sampler'.* raised ValueError in `sample`: Invalid layer type"),
    ],
)
def test_one_that_it_samples_wrong_is_refused_before_anything_trains(
    project: Any, kind: str, message: str
) -> None:
    with pytest.raises(RlframeError, match=message) as caught:
        check_sampler_of_architecture(project(CONTINUOUS, MODEL % (kind, SHAPES[kind])))
    assert str(caught.value).startswith("rollout.sampler: ")
    assert str(caught.value).endswith(
        f"ForCausalLM, model_type '{kind}'): rollout.sampler.type=builtin samples from it"
    )


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (OfAnotherTemperature, "nats from a plain forward pass"),
        (ForgetsTheTemperature, "nats from a plain forward pass"),
        (Upside, "nats from a plain forward pass"),
        (OtherOrder, "nats from a plain forward pass"),
        (Fails, "raised NotImplementedError in `sample`: attention of this kind"),
        (AnyId, r"with the id 100000, which has no token$"),
    ],
)
def test_a_wrong_sampler_is_noticed_in_a_right_architecture(
    project: Any, sampler: type[Builtin], message: str
) -> None:
    made = project(f"rollout.sampler={{type: {sampler.__name__}}}", "rollout.temperature=0.7")
    with pytest.raises(RlframeError, match=message):
        check_sampler_of_architecture(made)
    policy = Policy(made.models.policy(), temperature=0.7, chunk=64)
    with pytest.raises(RlframeError, match=message):
        check_sampler(made, policy)


def test_a_right_one_passes_and_that_in_the_box_is_not_asked(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project("rollout.sampler={type: Decodes}")
    check_sampler_of_architecture(made)
    check_sampler(made, Policy(made.models.policy(), temperature=0.7, chunk=64))
    monkeypatch.setattr(Builtin, "sample", lambda *_: pytest.fail("it was asked"))
    check_sampler_of_architecture(project())


def test_a_cache_that_is_too_small_is_found_before_anything_trains(project: Any) -> None:
    from rlframe.compose.checks import check

    with pytest.raises(RecipeError, match=r"rollout.sampler.*cache_tokens is 8; make it larger"):
        check(project("rollout.sampler={type: continuous, cache_tokens: 8}"))

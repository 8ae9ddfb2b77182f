"""The base class of every component: where its config comes from, and what a config is."""

from typing import TypeVar

import pytest
from pydantic import ValidationError

from rlframe.api import (
    AdvantageEstimator,
    AuxiliaryLoss,
    DataGenerator,
    HookPlugin,
    KLController,
    KLState,
    PluginConfig,
    RewardProvider,
    RewardSpec,
)

C = TypeVar("C", bound=PluginConfig)


class Config(PluginConfig):
    limit: int = 3


class OtherConfig(PluginConfig):
    other: int = 0


class Direct(RewardProvider[Config]):
    pass


class Heir(Direct):
    pass


class StillGeneric(RewardProvider[C]):
    pass


class Filled(StillGeneric[Config]):
    pass


class Narrowed(Direct, RewardProvider[OtherConfig]):
    pass


class Mixin:
    pass


class Mixed(Mixin, RewardProvider[Config]):
    pass


class Bare(RewardProvider):
    pass


@pytest.mark.parametrize(
    ("component", "config"),
    [
        (Direct, Config),
        (Heir, Config),
        (Filled, Config),
        (Narrowed, OtherConfig),
        (Mixed, Config),
        (Bare, PluginConfig),
        (StillGeneric, PluginConfig),
    ],
)
def test_a_components_config_is_its_type_argument_or_its_parents(component, config):
    assert component.Config is config


@pytest.mark.parametrize(
    "base",
    [DataGenerator, RewardProvider, KLController, AuxiliaryLoss, AdvantageEstimator, HookPlugin],
)
def test_every_kind_takes_its_config_from_the_type_argument(base):
    class Component(base[Config]):
        pass

    assert Component.Config is Config
    assert base.Config is PluginConfig  # and the kind itself has not changed


def test_a_config_is_frozen():
    config = Config(limit=5)
    with pytest.raises(ValidationError, match="frozen"):
        config.limit = 6
    assert config.limit == 5


def test_a_config_refuses_a_key_that_nothing_reads():
    with pytest.raises(ValidationError, match="limt"):
        Config(limt=5)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_config_refuses_a_number_that_is_not_finite(number):
    class Weighted(PluginConfig):
        factor: float

    with pytest.raises(ValidationError):
        Weighted(factor=number)


def test_a_component_is_built_from_its_config_and_a_context():
    config, context = Config(limit=5), object()
    component = Direct(config, context)
    assert component.config is config
    assert component.context is context


def test_a_component_without_memory_has_no_state_and_takes_none_back():
    component = Direct(Config(), None)
    assert component.state_dict() == {}
    component.load_state_dict({})
    with pytest.raises(ValueError, match=r"Direct keeps no state but was given \['total'\]"):
        component.load_state_dict({"total": 1})


def test_a_component_inside_a_recipe_keeps_the_keys_of_its_config_apart_from_its_type():
    spec = RewardSpec.model_validate({"type": "length", "target_tokens": 20})
    assert spec.type == "length"
    assert spec.options == {"target_tokens": 20}


def test_a_controller_measures_nats_per_response_unless_it_says_otherwise():
    class PerToken(KLController[Config]):
        unit = "nats_per_token"

    assert KLController(Config(), None).unit == "nats_per_response"
    assert PerToken(Config(), None).unit == "nats_per_token"


def test_a_kl_state_can_not_be_changed_in_place():
    state = KLState(0.1, {"integral": 2.0})
    with pytest.raises(AttributeError):
        state.coefficient = 0.2

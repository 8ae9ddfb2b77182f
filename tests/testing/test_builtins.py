"""Every component in the box keeps the contract of its kind, in each of its modes."""

from types import MappingProxyType

import pytest

from rlframe.builtin.advantages import GAE
from rlframe.builtin.eos_penalty import EosPenalty
from rlframe.builtin.kl import Adaptive
from rlframe.builtin.losses import PTX
from rlframe.builtin.policy_losses import CISPO, GSPO, Clip
from rlframe.builtin.preference_difference import PreferenceDifference
from rlframe.builtin.reward_model import RewardModel
from rlframe.builtin.reward_transforms import ClipReward
from rlframe.builtin.text_rules import Keyword
from rlframe.registry.discovery import Registry
from rlframe.registry.offers import CORE
from rlframe.testing import (
    AdvantageEstimatorSuite,
    AuxiliaryLossSuite,
    KLControllerSuite,
    PolicyLossSuite,
    RewardProviderSuite,
    RewardTransformSuite,
    Subject,
    check_component,
)
from rlframe.testing.checks import CHECKS

BUILT_IN = [
    pytest.param(offer.kind, offer.name, id=f"{offer.kind}-{offer.name}")
    for kind in CHECKS
    for offer in Registry().offers(kind)
    if offer.distribution == CORE
]


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_a_component_in_the_box_keeps_its_contract(kind, name):
    results = check_component(Subject(Registry().load(kind, name)))
    assert not [result.message for result in results if result.outcome == "failed"]
    proving_little = [r.check for r in results if r.message.startswith("proves little")]
    assert not proving_little, f"give {name} an example that tells responses apart"


class TestEosPenaltyThatReplaces(RewardProviderSuite):
    component, config = EosPenalty, {"penalty": 1.0, "mode": "replace", "reasons": ["length"]}


class TestKeywordsAtMostOne(RewardProviderSuite):
    component, config = Keyword, {"words": ["great", "broke"], "per_word": -1, "at_most": 1}


OVER = {"reward": {"type": "length", "target_tokens": 20}}


class TestPreferenceOverAColumn(RewardProviderSuite):
    component, config = PreferenceDifference, {**OVER, "against": "column", "column": "response"}


class TestPreferenceOverTheReference(RewardProviderSuite):
    component, config = PreferenceDifference, {**OVER, "against": "reference"}


class TestRewardModelOnText(RewardProviderSuite):
    component, config = RewardModel, {"input": "text", "batch_tokens": 512, "max_tokens": 512}


class TestAdaptivePerToken(KLControllerSuite):
    component, config = Adaptive, {"target": 0.2, "unit": "nats_per_token", "horizon": 300}


class TestPTXOnDataOfItsOwn(AuxiliaryLossSuite):
    component, config = PTX, {"data": "books", "gamma": 0.5}
    data = MappingProxyType({"prompt": [None], "text": ["Call me Ishmael.", "All alike."]})


class TestClipRewardThatBinds(RewardTransformSuite):
    component, config = ClipReward, {"limit": 0.5}


class TestGAEWithDiscount(AdvantageEstimatorSuite):
    component, config = GAE, {"gamma": 0.9, "lam": 0.5}


class TestClipWithAllItsBounds(PolicyLossSuite):
    component, config = Clip, {"clip": 0.1, "clip_high": 0.3, "dual_clip": 3.0}


class TestGSPOWithOneBound(PolicyLossSuite):
    component, config = GSPO, {"clip": 0.1, "clip_high": None}


class TestCISPOWithALowerBound(PolicyLossSuite):
    component, config = CISPO, {"clip_low": 0.2}

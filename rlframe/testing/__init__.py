"""The conformance kit: what a component has promised, as one list of checks for each kind.

Three entrances lead to the same checks: a test class to inherit, `rlframe plugins check NAME`, and
pytest fixtures. Importing this package imports neither torch nor pytest.

    class TestLength(RewardProviderSuite):
        component, config = LengthReward, {"target_tokens": 20}
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlframe.testing.batches import (
        credit_batch,
        policy_loss_batch,
        score_batch,
        value_loss_batch,
    )
    from rlframe.testing.check import Check, CheckFailed, Result
    from rlframe.testing.run import check_component
    from rlframe.testing.subject import Subject
    from rlframe.testing.suites import (
        AdvantageEstimatorSuite,
        AuxiliaryLossSuite,
        DataGeneratorSuite,
        HookPluginSuite,
        KLControllerSuite,
        PolicyLossSuite,
        RewardProviderSuite,
        RewardTransformSuite,
        SamplerSuite,
        ValueLossSuite,
    )
    from rlframe.testing.world import reward_batch, tiny_context, tiny_policy

_HOMES = {
    "Check": "check",
    "CheckFailed": "check",
    "Result": "check",
    "check_component": "run",
    "Subject": "subject",
    "AdvantageEstimatorSuite": "suites",
    "AuxiliaryLossSuite": "suites",
    "DataGeneratorSuite": "suites",
    "HookPluginSuite": "suites",
    "KLControllerSuite": "suites",
    "PolicyLossSuite": "suites",
    "RewardProviderSuite": "suites",
    "RewardTransformSuite": "suites",
    "SamplerSuite": "suites",
    "ValueLossSuite": "suites",
    "credit_batch": "batches",
    "policy_loss_batch": "batches",
    "reward_batch": "world",
    "score_batch": "batches",
    "tiny_context": "world",
    "tiny_policy": "world",
    "value_loss_batch": "batches",
}

__all__ = [
    "AdvantageEstimatorSuite",
    "AuxiliaryLossSuite",
    "Check",
    "CheckFailed",
    "DataGeneratorSuite",
    "HookPluginSuite",
    "KLControllerSuite",
    "PolicyLossSuite",
    "Result",
    "RewardProviderSuite",
    "RewardTransformSuite",
    "SamplerSuite",
    "Subject",
    "ValueLossSuite",
    "check_component",
    "credit_batch",
    "policy_loss_batch",
    "reward_batch",
    "score_batch",
    "tiny_context",
    "tiny_policy",
    "value_loss_batch",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: pytest loads this package at every start."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

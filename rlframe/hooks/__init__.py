"""The contract with plugins. A plugin author needs the names below and nothing else of rlframe."""

from rlframe.hooks.component import (
    AdvantageEstimator,
    AuxiliaryLoss,
    Component,
    ComponentSpec,
    Context,
    DataGenerator,
    HookPlugin,
    KLController,
    PluginConfig,
    RewardProvider,
    RewardSpec,
)
from rlframe.hooks.spec import hookimpl
from rlframe.types import (
    KLMeasurement,
    KLState,
    LossTerm,
    PolicyView,
    Prompt,
    RewardBatch,
    Row,
    StopReason,
    TokenBatch,
    TokenExample,
)

__all__ = [
    "AdvantageEstimator",
    "AuxiliaryLoss",
    "Component",
    "ComponentSpec",
    "Context",
    "DataGenerator",
    "HookPlugin",
    "KLController",
    "KLMeasurement",
    "KLState",
    "LossTerm",
    "PluginConfig",
    "PolicyView",
    "Prompt",
    "RewardBatch",
    "RewardProvider",
    "RewardSpec",
    "Row",
    "StopReason",
    "TokenBatch",
    "TokenExample",
    "hookimpl",
]

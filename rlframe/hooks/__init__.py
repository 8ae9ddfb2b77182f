"""The contract with plugins. A plugin author needs the names below and nothing else of rlframe."""

from rlframe.hooks.answers import ContractError, raw_scores, token_scores
from rlframe.hooks.component import (
    AdvantageEstimator,
    AuxiliaryLoss,
    Component,
    ComponentSpec,
    Context,
    DataGenerator,
    HookPlugin,
    KLController,
    Needs,
    PluginConfig,
    RewardProvider,
    RewardSpec,
)
from rlframe.hooks.lengths import context_tokens
from rlframe.hooks.pretrained import PretrainedModel
from rlframe.hooks.references import ColumnName, DataName, ModelName, RewardName
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
    "ColumnName",
    "Component",
    "ComponentSpec",
    "Context",
    "ContractError",
    "DataGenerator",
    "DataName",
    "HookPlugin",
    "KLController",
    "KLMeasurement",
    "KLState",
    "LossTerm",
    "ModelName",
    "Needs",
    "PluginConfig",
    "PolicyView",
    "PretrainedModel",
    "Prompt",
    "RewardBatch",
    "RewardName",
    "RewardProvider",
    "RewardSpec",
    "Row",
    "StopReason",
    "TokenBatch",
    "TokenExample",
    "context_tokens",
    "hookimpl",
    "raw_scores",
    "token_scores",
]

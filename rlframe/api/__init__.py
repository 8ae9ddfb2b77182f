"""The contract with plugins. A plugin author needs the names below and nothing else of rlframe."""

from rlframe.api.answers import ContractError, raw_scores, token_scores
from rlframe.api.component import (
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
from rlframe.api.lengths import context_tokens
from rlframe.api.pretrained import PretrainedModel
from rlframe.api.references import ColumnName, DataName, ModelName, RewardName
from rlframe.api.spec import hookimpl
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

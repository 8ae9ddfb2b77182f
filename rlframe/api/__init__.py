"""The contract with plugins. A plugin author needs the names below and nothing else of rlframe."""

from rlframe.api.algorithm import (
    AdvantageEstimator,
    EstimatorNeeds,
    PolicyLoss,
    RewardTransform,
    ValueLoss,
)
from rlframe.api.answers import ContractError, raw_scores, token_scores
from rlframe.api.component import (
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
from rlframe.api.functions import reward_from_function
from rlframe.api.lengths import context_tokens
from rlframe.api.pretrained import PretrainedModel
from rlframe.api.references import ColumnName, DataName, ModelName, RewardName
from rlframe.api.sampling import (
    SampledPolicy,
    Sampler,
    SamplerCapabilities,
    SampleRequest,
    Samples,
    SamplingParams,
)
from rlframe.api.spec import hookimpl
from rlframe.api.streams import ExampleStream
from rlframe.batches import (
    Credit,
    CreditBatch,
    PolicyLossBatch,
    ScoreBatch,
    ScoreMoments,
    TokenLoss,
    ValueLossBatch,
)
from rlframe.errors import StopTraining
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
    "Credit",
    "CreditBatch",
    "DataGenerator",
    "DataName",
    "EstimatorNeeds",
    "ExampleStream",
    "HookPlugin",
    "KLController",
    "KLMeasurement",
    "KLState",
    "LossTerm",
    "ModelName",
    "Needs",
    "PluginConfig",
    "PolicyLoss",
    "PolicyLossBatch",
    "PolicyView",
    "PretrainedModel",
    "Prompt",
    "RewardBatch",
    "RewardName",
    "RewardProvider",
    "RewardSpec",
    "RewardTransform",
    "Row",
    "SampleRequest",
    "SampledPolicy",
    "Sampler",
    "SamplerCapabilities",
    "Samples",
    "SamplingParams",
    "ScoreBatch",
    "ScoreMoments",
    "StopReason",
    "StopTraining",
    "TokenBatch",
    "TokenExample",
    "TokenLoss",
    "ValueLoss",
    "ValueLossBatch",
    "context_tokens",
    "hookimpl",
    "raw_scores",
    "reward_from_function",
    "token_scores",
]

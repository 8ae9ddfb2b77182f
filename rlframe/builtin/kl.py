"""KL controllers: beta stays, or follows a target."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from rlframe.api import KLController, KLMeasurement, KLState, PluginConfig


class FixedConfig(PluginConfig):
    coefficient: NonNegativeFloat = Field(description="beta, score units per nat")


class Fixed(KLController[FixedConfig]):
    """beta never changes."""

    @classmethod
    def initial_coefficient(cls, config: FixedConfig) -> float:
        return config.coefficient

    def initial(self) -> KLState:
        return KLState(self.config.coefficient)

    def update(self, state: KLState, measured: KLMeasurement) -> KLState:
        return state


class AdaptiveConfig(PluginConfig):
    target: PositiveFloat = Field(description="KL to settle at, in `unit`")
    unit: Literal["nats_per_response", "nats_per_token"] = "nats_per_response"
    horizon: PositiveInt = Field(10_000, description="responses; shorter reacts faster")
    initial: PositiveFloat = Field(0.05, description="beta before the first rollout")


class Adaptive(KLController[AdaptiveConfig]):
    """Steer beta so that KL(policy || reference) settles at the target.

        e  = clamp(KL / target - 1, -0.2, 0.2)
        β' = β (1 + e n / horizon)              n: responses of this rollout on all ranks

    Ziegler et al. 2019, section 2.2 (https://arxiv.org/abs/1909.08593). Beyond the paper, the factor
    is kept within [1/2, 2]: with n >= 5 horizons the formula alone would make beta negative.
    """

    @classmethod
    def initial_coefficient(cls, config: AdaptiveConfig) -> float:
        return config.initial

    @property
    def unit(self) -> str:
        return self.config.unit

    def initial(self) -> KLState:
        return KLState(self.config.initial)

    def update(self, state: KLState, measured: KLMeasurement) -> KLState:
        error = min(max(measured.kl / self.config.target - 1, -0.2), 0.2)
        factor = 1 + error * measured.responses / self.config.horizon
        return replace(state, coefficient=state.coefficient * min(max(factor, 0.5), 2.0))

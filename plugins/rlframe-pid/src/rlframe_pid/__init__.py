"""A KL controller with proportional, integral and derivative action on the logarithm of beta."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from rlframe.api import KLController, KLMeasurement, KLState, PluginConfig

_LARGEST_LOG = 700.0  # exp overflows a little above; the engine's bound is far below


class PIDConfig(PluginConfig):
    target: PositiveFloat = Field(description="KL to settle at, in `unit`")
    unit: Literal["nats_per_response", "nats_per_token"] = "nats_per_response"
    initial: PositiveFloat = Field(0.05, description="beta before the first rollout")
    proportional: NonNegativeFloat = Field(0.3, description="gain on the error")
    integral: PositiveFloat = Field(0.1, description="gain on its sum; 0 would leave an error")
    derivative: NonNegativeFloat = Field(0.0, description="gain on its change; damps overshoot")
    max_error: PositiveFloat = Field(1.0, description="|log(KL / target)| counts up to this")
    floor: PositiveFloat = Field(1e-6, description="beta stays above: its logarithm has no 0")


class PID(KLController[PIDConfig]):
    """Steer beta so that KL(policy || reference) settles at the target, whatever the size of beta.

        e_n       = clamp(log(KL_n / target), ±max_error)
        log β_n+1 = log β_0 + P e_n + I Σ_{i<=n} e_i + D (e_n - e_n-1),        e_n - e_n-1 = 0 for n = 0

    It is computed as the change of log β from one rollout to the next (the velocity form, Åström and
    Hägglund 1995, PID Controllers, section 3.5), so that beta itself is the integral: at a bound of
    the recipe nothing winds up, and beta leaves it as soon as the error turns.

    Gains are for one rollout each: with I = 0.1, a KL of twice the target raises beta by 7 % a rollout.
    A KL of 0 or below, which k1 may measure, counts as the largest error; NaN changes nothing.
    """

    example: ClassVar[dict[str, Any]] = {"target": 6.0}

    @classmethod
    def initial_coefficient(cls, config: PIDConfig) -> float:
        return max(config.initial, config.floor)

    @property
    def unit(self) -> str:
        return self.config.unit

    def initial(self) -> KLState:
        return KLState(max(self.config.initial, self.config.floor))

    def update(self, state: KLState, measured: KLMeasurement) -> KLState:
        if math.isnan(measured.kl):
            return state
        gains, error = self.config, self._error(measured.kl)
        last, last_slope = state.memory.get("error"), state.memory.get("slope", 0.0)
        slope = 0.0 if last is None else error - last
        step = (
            gains.proportional * (error - (last or 0.0))
            + gains.integral * error
            + gains.derivative * (slope - last_slope)
        )
        log_beta = math.log(max(state.coefficient, gains.floor)) + step
        beta = max(math.exp(min(log_beta, _LARGEST_LOG)), gains.floor)
        return KLState(beta, {"error": error, "slope": slope})

    def _error(self, kl: float) -> float:
        limit = self.config.max_error
        # The quotient of a tiny and a huge number may be 0 or infinite; logarithms do not care.
        ratio = math.log(kl) - math.log(self.config.target) if kl > 0 else -math.inf
        return min(max(ratio, -limit), limit)

"""Advantage estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rlframe.api import AdvantageEstimator, PluginConfig

if TYPE_CHECKING:
    from torch import Tensor


class GAEConfig(PluginConfig):
    gamma: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="discount a token")
    lam: Annotated[float, Field(ge=0, le=1)] = Field(
        0.95, description="1: Monte-Carlo returns, 0: one-step errors"
    )


class GAE(AdvantageEstimator[GAEConfig]):
    """Generalised advantage estimation (Schulman et al. 2016, https://arxiv.org/abs/1506.02438)."""

    def estimate(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        from rlframe.functional.advantages import gae  # torch: only when training

        return gae(rewards, values, mask, gamma=self.config.gamma, lam=self.config.lam)

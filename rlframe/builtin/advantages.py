"""Advantage estimators."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlframe.api import AdvantageEstimator, Credit, CreditBatch, EstimatorNeeds, PluginConfig

Discount = Annotated[float, Field(ge=0, le=1)]


class GAEConfig(PluginConfig):
    gamma: Discount = Field(1.0, description="discount per token")
    lam: Discount = Field(0.95, description="1: Monte-Carlo returns, 0: one-step errors")
    bootstrap: bool = Field(
        False, description="the critic's estimate continues a response that was cut"
    )


class GAE(AdvantageEstimator[GAEConfig]):
    """Generalised advantage estimation (Schulman et al. 2016, https://arxiv.org/abs/1506.02438)."""

    @classmethod
    def needs(cls, config: GAEConfig) -> EstimatorNeeds:
        return EstimatorNeeds(last_values=config.bootstrap)

    def estimate(self, batch: CreditBatch) -> Credit:
        from rlframe.functional.advantages import gae  # torch: only when training

        assert batch.values is not None
        advantages, returns = gae(
            batch.rewards,
            batch.values,
            batch.mask,
            gamma=self.config.gamma,
            lam=self.config.lam,
            last_values=batch.last_values,
        )
        return Credit(advantages, returns)


class RLOO(AdvantageEstimator[PluginConfig]):
    """A response's total reward minus the mean of the others of its group, which is no part of it.

    Ahmadian et al. 2024, section 2.3 (https://arxiv.org/abs/2402.14740). Unbiased, without a critic.
    """

    whiten = False

    @classmethod
    def needs(cls, config: PluginConfig) -> EstimatorNeeds:
        return EstimatorNeeds(samples_per_prompt=2, critic=False)

    def estimate(self, batch: CreditBatch) -> Credit:
        from rlframe.functional.advantages import leave_one_out, per_token

        found = leave_one_out(batch.totals, batch.group_ids, batch.valid)
        return Credit(per_token(found, batch.mask))


class GroupRelativeConfig(PluginConfig):
    divide_by_std: bool = Field(
        True, description="in units of the group's standard deviation, as in GRPO; biased"
    )


class GroupRelative(AdvantageEstimator[GroupRelativeConfig]):
    """A response's total reward relative to the mean, and the standard deviation, of its group.

    GRPO: Shao et al. 2024, section 4.1.2 (https://arxiv.org/abs/2402.03300). Without the division it is
    that of Dr. GRPO: Liu et al. 2025, section 3.2 (https://arxiv.org/abs/2503.20783).
    """

    whiten = False

    @classmethod
    def needs(cls, config: GroupRelativeConfig) -> EstimatorNeeds:
        return EstimatorNeeds(samples_per_prompt=2, critic=False)

    def estimate(self, batch: CreditBatch) -> Credit:
        from rlframe.functional.advantages import group_relative, per_token

        given = batch.totals, batch.group_ids, batch.valid
        found = group_relative(*given, divide_by_std=self.config.divide_by_std)
        return Credit(per_token(found, batch.mask))


class ReinforcePlusPlusConfig(PluginConfig):
    gamma: Discount = Field(1.0, description="discount per token")


class ReinforcePlusPlus(AdvantageEstimator[ReinforcePlusPlusConfig]):
    """The rewards from each token on, whitened by the engine over all tokens of all responses.

    Hu et al. 2025, eq. 4 and 5 (https://arxiv.org/abs/2501.03262). No critic and no groups.
    """

    @classmethod
    def needs(cls, config: ReinforcePlusPlusConfig) -> EstimatorNeeds:
        return EstimatorNeeds(critic=False)

    def estimate(self, batch: CreditBatch) -> Credit:
        from rlframe.functional.advantages import discounted_returns

        return Credit(discounted_returns(batch.rewards, batch.mask, gamma=self.config.gamma))

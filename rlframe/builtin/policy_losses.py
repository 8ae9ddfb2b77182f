"""Policy losses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat

from rlframe.api import PluginConfig, PolicyLoss, PolicyLossBatch, TokenLoss


class ClipConfig(PluginConfig):
    clip: PositiveFloat = Field(0.2, description="the ratio is bounded by 1 - clip")
    clip_high: PositiveFloat | None = Field(
        None, description="the ratio is bounded by 1 + clip_high; by 1 + clip if left out"
    )
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(
        None, description="bounds the ratio of tokens with a negative advantage, such as 3.0"
    )


class Clip(PolicyLoss[ClipConfig]):
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7, https://arxiv.org/abs/1707.06347).

    With an upper bound of its own as in DAPO, and the dual clip of Ye et al. 2020.
    """

    def loss(self, batch: PolicyLossBatch) -> TokenLoss:
        from rlframe.functional.losses import clipped_policy_loss, policy_ratio

        ratio = policy_ratio(batch.logprobs, batch.old_logprobs)
        return TokenLoss(*clipped_policy_loss(ratio, batch.advantages, **dict(self.config)))


class Reinforce(PolicyLoss[PluginConfig]):
    """The score-function estimate (Williams 1992), exact for the policy that sampled the tokens."""

    def loss(self, batch: PolicyLossBatch) -> TokenLoss:
        from rlframe.functional.losses import reinforce_loss

        return TokenLoss(reinforce_loss(batch.logprobs, batch.advantages))


class GSPOConfig(PluginConfig):
    clip: PositiveFloat = Field(3e-4, description="the response's ratio is bounded by 1 - clip")
    clip_high: PositiveFloat | None = Field(
        4e-4, description="the response's ratio is bounded by 1 + clip_high; by 1 + clip if null"
    )


class GSPO(PolicyLoss[GSPOConfig]):
    """PPO's clip of one ratio for the whole response, the geometric mean of its tokens' ratios.

    Zheng et al. 2025, eq. 5 to 7 (https://arxiv.org/abs/2507.18071).
    """

    def loss(self, batch: PolicyLossBatch) -> TokenLoss:
        from rlframe.functional.losses import clipped_policy_loss, sequence_ratio

        ratio = sequence_ratio(batch.logprobs, batch.old_logprobs, batch.mask)
        return TokenLoss(*clipped_policy_loss(ratio, batch.advantages, **dict(self.config)))


class CISPOConfig(PluginConfig):
    clip_low: PositiveFloat = Field(
        1.0, description="the weight is bounded by 1 - clip_low; 1 or more is no lower bound"
    )
    clip_high: PositiveFloat = Field(0.28, description="the weight is bounded by 1 + clip_high")


class CISPO(PolicyLoss[CISPOConfig]):
    """REINFORCE with a bounded importance weight, which silences no token.

    MiniMax 2025, "MiniMax-M1", eq. 4 and 5 (https://arxiv.org/abs/2506.13585).
    """

    def loss(self, batch: PolicyLossBatch) -> TokenLoss:
        from rlframe.functional.losses import cispo_loss, policy_ratio

        ratio = policy_ratio(batch.logprobs, batch.old_logprobs)
        given = batch.logprobs, ratio, batch.advantages
        return TokenLoss(*cispo_loss(*given, **dict(self.config)))

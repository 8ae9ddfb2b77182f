"""Losses of the critic."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from rlframe.api import PluginConfig, TokenLoss, ValueLoss, ValueLossBatch


class ClippedConfig(PluginConfig):
    clip: PositiveFloat = Field(0.2, description="of the value prediction, in score units")


class Clipped(ValueLoss[ClippedConfig]):
    """Squared error, no smaller than that of the prediction clipped around the one at sampling.

    Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325).
    """

    def loss(self, batch: ValueLossBatch) -> TokenLoss:
        from rlframe.functional.losses import clipped_value_loss

        given = batch.values, batch.old_values, batch.returns
        return TokenLoss(*clipped_value_loss(*given, clip=self.config.clip))


class Plain(ValueLoss[PluginConfig]):
    """Squared error of the critic."""

    def loss(self, batch: ValueLossBatch) -> TokenLoss:
        from rlframe.functional.losses import plain_value_loss

        return TokenLoss(plain_value_loss(batch.values, batch.returns))

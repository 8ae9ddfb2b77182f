"""A reward for responses of a wanted length."""

from __future__ import annotations

from pydantic import PositiveInt

from rlframe.api import PluginConfig, RewardBatch, RewardProvider


class LengthConfig(PluginConfig):
    target_tokens: PositiveInt


class Length(RewardProvider[LengthConfig]):
    """0 at the target length, minus 1 for every `target_tokens` tokens away from it."""

    cheap_to_repeat = True

    def score(self, batch: RewardBatch) -> list[float]:
        target = self.config.target_tokens
        return [-abs(length - target) / target for length in batch.response_lengths]

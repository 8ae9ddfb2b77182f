"""The sentiment of a response as a reward."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from vaderSentiment.vaderSentiment import (  # type: ignore[import-untyped]
    SentimentIntensityAnalyzer,
)

from rlframe.api import Context, PluginConfig, RewardBatch, RewardProvider


class VaderConfig(PluginConfig):
    of: Literal["response", "prompt_and_response"] = Field(
        "response", description="the text that is judged"
    )


class Vader(RewardProvider[VaderConfig]):
    """VADER's compound score: -1 the most negative, 1 the most positive, 0 for a text without tone.

        compound = s / √(s² + 15)        s: sum of the words' valences, rules of grammar applied

    Hutto and Gilbert 2014, a lexicon and rules for English. It saturates (three kind words give 0.9)
    and rewards capitals and exclamation marks, so that a policy learns to repeat itself and to shout:
    keep a KL controller beside it.
    """

    cheap_to_repeat = True

    def __init__(self, config: VaderConfig, context: Context) -> None:
        super().__init__(config, context)
        self._analyzer = SentimentIntensityAnalyzer()

    def score(self, batch: RewardBatch) -> list[float]:
        texts = batch.response_texts
        if self.config.of == "prompt_and_response":  # a response follows its prompt directly
            texts = [p + r for p, r in zip(batch.prompt_texts, texts, strict=True)]
        return [float(self._analyzer.polarity_scores(text)["compound"]) for text in texts]

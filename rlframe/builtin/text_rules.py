"""Rewards by rule: a regular expression, or words that should or should not occur."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, PositiveInt, field_validator

from rlframe.hooks import Context, PluginConfig, RewardBatch, RewardProvider


class RegexConfig(PluginConfig):
    pattern: str = Field(description="Python regular expression, searched for anywhere")
    ignore_case: bool = False
    match: float = Field(1.0, description="score of a response that matches")
    no_match: float = Field(0.0, description="score of one that does not")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class Regex(RewardProvider[RegexConfig]):
    """One score for responses in which the pattern is found, another for the rest."""

    def __init__(self, config: RegexConfig, context: Context) -> None:
        super().__init__(config, context)
        self._pattern = re.compile(config.pattern, re.IGNORECASE if config.ignore_case else 0)

    def score(self, batch: RewardBatch) -> list[float]:
        hit, miss = self.config.match, self.config.no_match
        return [hit if self._pattern.search(text) else miss for text in batch.response_texts]


class KeywordConfig(PluginConfig):
    words: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = Field(
        description="whole words or phrases, whatever their case"
    )
    per_word: float = Field(1.0, description="score of each different word that occurs; may be < 0")
    at_most: PositiveInt | None = Field(
        None, description="different words that count; all if left out"
    )


class Keyword(RewardProvider[KeywordConfig]):
    """`per_word` for each different word of the list that a response contains.

    A word counts once however often it is repeated, so that repeating it is not rewarded.
    """

    def __init__(self, config: KeywordConfig, context: Context) -> None:
        super().__init__(config, context)
        self._patterns = [
            re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
            for word in dict.fromkeys(word.lower() for word in config.words)
        ]

    def score(self, batch: RewardBatch) -> list[float]:
        return [self.config.per_word * self._found(text) for text in batch.response_texts]

    def _found(self, text: str) -> int:
        found = sum(pattern.search(text) is not None for pattern in self._patterns)
        return min(found, self.config.at_most or found)

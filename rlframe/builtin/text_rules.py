"""Rewards by rule: a regular expression, or words that should or should not occur.

Both take time linear in the length of a response, whatever the policy writes. Python's `re` would not:
`(a+)+b` takes 2^n steps on n letters, and no other thread runs meanwhile.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import re2
from pydantic import Field, PositiveInt, field_validator, model_validator

from rlframe.api import Context, PluginConfig, RewardBatch, RewardProvider


class RegexConfig(PluginConfig):
    pattern: str = Field(
        description="regular expression in RE2's syntax, searched for anywhere: no lookaround and no "
        "backreferences; \\d, \\w, \\s and \\b know ASCII alone, \\p{L} is any letter; $ is the end "
        "of the text"
    )
    ignore_case: bool = False
    match: float = Field(1.0, description="score of a response that matches")
    no_match: float = Field(0.0, description="score of one that does not")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            _compiled(pattern, ignore_case=False)
        except re2.error as error:
            raise ValueError(_explained(pattern, error)) from error
        return pattern

    @model_validator(mode="after")
    def _tells_responses_apart(self) -> RegexConfig:
        if self.match == self.no_match:
            raise ValueError(
                f"match and no_match are both {self.match:g}, so nothing would be learned"
            )
        return self


def _compiled(pattern: str, *, ignore_case: bool) -> Any:
    options = re2.Options()
    options.log_errors = False  # on stderr; they are reported as mistakes of the recipe
    options.case_sensitive = not ignore_case
    return re2.compile(pattern, options)


def _explained(pattern: str, error: re2.error) -> str:
    """What RE2 says of a pattern, and what to write instead where Python's `re` would take it."""
    reason = error.args[0]
    said = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
    try:
        re.compile(pattern)
    except re.error as also:
        return f"not a regular expression: {also}"
    instead = next((hint for sign, hint in _INSTEAD.items() if re.search(sign, pattern)), "")
    return (
        f"{said}: patterns are in RE2's syntax (https://github.com/google/re2/wiki/Syntax), in "
        f"which no search can take longer than its text is long{instead}"
    )


_INSTEAD = {
    r"\(\?<?[=!]": ". It has no lookaround: match the text around as well, or use two rewards, one "
    r"of them "
    "with a negative weight",
    r"\(\?P=|\\[1-9]": ". It has no backreferences: write the alternatives out, or write a reward "
    r"in Python",
    r"\(\?>|[*+?}]\+": ". It has no atomic groups and possessive quantifiers, and needs none",
    r"\\Z": r". Write \z for the end of the text",
    r"\\[uUN]": ". Write the character itself",
    r"\(\?#|\(\?\w*x": ". It has no comments",
}
"""What only `re` understands -> what to do."""


class Regex(RewardProvider[RegexConfig]):
    """One score for responses in which the pattern is found, another for the rest."""

    cheap_to_repeat = True

    def __init__(self, config: RegexConfig, context: Context) -> None:
        super().__init__(config, context)
        self._pattern = _compiled(config.pattern, ignore_case=config.ignore_case)

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

    @field_validator("per_word")
    @classmethod
    def _tells_responses_apart(cls, per_word: float) -> float:
        if per_word == 0:
            raise ValueError("every response would score 0, so nothing would be learned")
        return per_word


class Keyword(RewardProvider[KeywordConfig]):
    """`per_word` for each different word of the list that a response contains.

    A word counts once however often it is repeated, so that repeating it is not rewarded.
    """

    cheap_to_repeat = True

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

"""The EOS trick: make responses that never end worth less."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from rlframe.api import PluginConfig, RewardBatch, RewardProvider, StopReason


class EosPenaltyConfig(PluginConfig):
    penalty: NonNegativeFloat | None = Field(
        None, description="taken off, in score units; 0 with `replace` alone, none with `mask`"
    )
    mode: Literal["subtract", "replace", "mask"] = Field(
        "subtract",
        description="lower the score of the other rewards, take their place, or learn nothing",
    )
    reasons: Annotated[tuple[StopReason, ...], Field(min_length=1)] = Field(
        (StopReason.LENGTH,), description="stop reasons that are penalised"
    )

    @model_validator(mode="after")
    def _penalises(self) -> EosPenaltyConfig:
        if (self.penalty is None) != (self.mode == "mask"):
            raise ValueError(
                "`penalty` is missing, what is taken off in score units, such as 1.0; or write "
                "`mode: mask`, which takes off nothing and learns nothing from the response"
                if self.penalty is None
                else "nothing reads `penalty` with `mode: mask`, which learns nothing from the response"
            )
        if self.penalty == 0 and self.mode == "subtract":
            raise ValueError(
                "a penalty of 0 changes nothing; with `mode: replace` a cut response scores 0"
            )
        return self


class EosPenalty(RewardProvider[EosPenaltyConfig]):
    """-penalty for a response that was cut, 0 for one that ended.

    What counts is the reason for which sampling stopped, not which tokens are there: a stop string or
    a second EOS token ends a response as well (TRL #3750 penalised those). With `replace` the penalty
    takes the place of the other rewards, or of those that `gates` names (Huang et al. 2024, arXiv
    2403.17031, use -1), so that no quality makes up for not ending. With `mask` nothing is learned from
    the response, which is neither good nor bad then, as DAPO filters overlong ones (Yu et al. 2025,
    section 3.4, https://arxiv.org/abs/2503.14476).
    """

    cheap_to_repeat = True

    @classmethod
    def invalidates(cls, config: EosPenaltyConfig) -> bool:
        return config.mode == "mask"

    def score(self, batch: RewardBatch) -> list[float | None]:
        penalty = self.config.penalty
        return [(None if penalty is None else -penalty) if cut else 0.0 for cut in self._cut(batch)]

    @classmethod
    def has_gate(cls, config: EosPenaltyConfig) -> bool:
        return config.mode == "replace"

    def gate(self, batch: RewardBatch) -> list[float]:
        return [0.0 if cut else 1.0 for cut in self._cut(batch)]

    def _cut(self, batch: RewardBatch) -> list[bool]:
        return [reason in self.config.reasons for reason in batch.stop_reasons]

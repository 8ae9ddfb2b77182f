"""Evaluation on held-out prompts: the same prompts and the same random numbers, before and after.

Loss curves mislead; what a person believes is the responses themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlframe.engine.evaluation import Models
from rlframe.engine.generation import RolloutGenerator
from rlframe.engine.scoring import RewardScorer, Scores
from rlframe.runs.directory import RunDirectory
from rlframe.types import Prompt, Rollout, StopReason


@dataclass(frozen=True)
class Answer:
    """One response to a held-out prompt, and what the rewards say about it."""

    sample: int
    """Number of the response among all; its order."""
    group: int
    """Number of the prompt."""
    prompt: str
    response: str
    stop_reason: StopReason
    score: float | None
    """The mix; None for an invalid response."""
    rewards: dict[str, float | None]
    """Name -> score before its weight; None where the reward returned None."""
    question: str | None = None
    """The last turn of the chat that the prompt was rendered from; None where there was no chat."""
    logged: Mapping[str, float | str] = field(default_factory=dict)
    """REWARD/NAME -> what a reward logged for this response."""

    def row(self) -> dict[str, Any]:
        """What a samples file keeps."""
        found = {**vars(self), "stop_reason": self.stop_reason.value}
        left_out = [name for name in ("question", "logged") if not found[name]]
        return {name: value for name, value in found.items() if name not in left_out}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Answer:
        """Back from a samples file."""
        return cls(**{**row, "stop_reason": StopReason(row["stop_reason"])})

    @property
    def finished(self) -> bool:
        """Whether it ended by itself."""
        return self.stop_reason is not StopReason.LENGTH


@dataclass(frozen=True)
class HeldOut:
    """What a policy answers to the held-out prompts, on all ranks together."""

    answers: tuple[Answer, ...]

    @property
    def mean(self) -> float:
        """Mean score of the mix over valid responses; NaN if there are none."""
        return _mean(a.score for a in self.answers)

    @property
    def rewards(self) -> dict[str, float]:
        """Name -> mean score before its weight, over the responses that the reward judged."""
        return {n: _mean(a.rewards[n] for a in self.answers) for n in self.answers[0].rewards}

    @property
    def finished(self) -> float:
        """Fraction of responses that ended by themselves."""
        return _mean(a.finished for a in self.answers)

    def metrics(self) -> dict[str, float]:
        """What goes beside the metrics of training."""
        means = {f"heldout/{name}/raw": value for name, value in self.rewards.items()}
        return {"heldout/scores": self.mean, **means, "heldout/finished_share": self.finished}


class HeldoutEvaluator:
    """Asks the policy about the same held-out prompts with the same random numbers, each time.

    Args:
      models: the policy, gathered while it answers.
      generator: samples this rank's shard of the responses; may have none.
      scorer: of training, whose statistics stay unchanged here.
      gather: every rank's value, on every rank.
      directory: keeps the answers.
      every: updates between two evaluations; None for none between the first and the last.
      updates: in the whole run.
    """

    def __init__(
        self,
        models: Models,
        generator: RolloutGenerator,
        scorer: RewardScorer,
        gather: Callable[[list[Answer]], list[list[Answer]]],
        directory: RunDirectory,
        *,
        every: int | None,
        updates: int,
    ) -> None:
        self._models = models
        self._generator = generator
        self._scorer = scorer
        self._gather = gather
        self._directory = directory
        self._every = every
        self._updates = updates

    def after(self, updates: int) -> HeldOut | None:
        """The evaluation after an update, if one is due; that after the last update has its own name.

        Collective: call on all ranks.

        Args:
          updates: done so far.
        """
        if not self._every or updates % self._every or updates == self._updates:
            return None
        return self.evaluate(f"update_{updates:06d}")

    def evaluate(self, name: str) -> HeldOut:
        """Sample and score the held-out responses, and keep them. Collective: call on all ranks.

        Args:
          name: of the samples file.
        """
        with self._models.gathered():
            rollout = self._generator.heldout()
            mine = [] if rollout is None else _answers(rollout, self._scorer.heldout(rollout))
            found = [answer for shard in self._gather(mine) for answer in shard]
        seen = HeldOut(tuple(sorted(found, key=lambda answer: answer.sample)))
        self._directory.samples(name, (answer.row() for answer in seen.answers))
        return seen


def _answers(rollout: Rollout, scores: Scores) -> list[Answer]:
    mix = scores.mix.masked_fill(~scores.valid, math.nan).tolist()
    rewards = {name: values.tolist() for name, values in scores.raw.items()}
    return [
        Answer(
            sample=rollout.samples[i],
            group=rollout.group_ids[i],
            prompt=rollout.prompts[i].text,
            response=rollout.texts[i],
            stop_reason=rollout.stop_reasons[i],
            score=_judged(mix[i]),
            rewards={name: _judged(values[i]) for name, values in rewards.items()},
            question=_question(rollout.prompts[i]),
            logged=scores.entries[i],
        )
        for i in range(len(rollout))
    ]


def _question(prompt: Prompt) -> str | None:
    return prompt.messages[-1]["content"] if prompt.messages else None


def _judged(score: float) -> float | None:
    return None if math.isnan(score) else score


def _mean(values: Iterable[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else math.nan

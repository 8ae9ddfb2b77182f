"""Evaluation on held-out prompts: the same prompts and the same random numbers, before and after.

Loss curves mislead; what a person believes is the responses themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlframe.api.events import HeldoutEvaluated, ScoredResponse
from rlframe.engine.evaluation import Models
from rlframe.engine.generation import RolloutGenerator
from rlframe.engine.scoring import RewardScorer, Scores
from rlframe.registry.relay import Relay
from rlframe.runs.directory import RunDirectory
from rlframe.types import Prompt, Rollout, StopReason


@dataclass(frozen=True)
class Answer(ScoredResponse):
    """One response to a held-out prompt, and what the rewards say about it."""

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
      observers: are notified of every evaluation.
      every: updates between two evaluations; None for none between the first and the last.
    """

    def __init__(
        self,
        models: Models,
        generator: RolloutGenerator,
        scorer: RewardScorer,
        gather: Callable[[list[Answer]], list[list[Answer]]],
        directory: RunDirectory,
        observers: Relay,
        *,
        every: int | None,
    ) -> None:
        self._models = models
        self._generator = generator
        self._scorer = scorer
        self._gather = gather
        self._directory = directory
        self._observers = observers
        self._every = every

    def after(self, updates: int, *, of: int) -> HeldOut | None:
        """The evaluation after an update, if one is due; that after the last update has its own name.

        Collective: call on all ranks.

        Args:
          updates: done so far.
          of: updates of the whole run.
        """
        if not self._every or updates % self._every or updates == of:
            return None
        return self.evaluate(f"update_{updates:06d}", updates)

    def evaluate(self, name: str, updates: int) -> HeldOut:
        """Sample and score the held-out responses, and keep them. Collective: call on all ranks.

        Args:
          name: of the samples file.
          updates: done so far.
        """
        with self._models.gathered():
            rollout = self._generator.heldout(updates)
            mine = [] if rollout is None else _answers(rollout, self._scorer.heldout(rollout))
            found = [answer for shard in self._gather(mine) for answer in shard]
        seen = HeldOut(tuple(sorted(found, key=lambda answer: answer.sample)))
        self._directory.samples(name, (answer.row() for answer in seen.answers))
        self._observers.tell("heldout_evaluated", HeldoutEvaluated(name, updates, seen.answers))
        return seen


def _answers(rollout: Rollout, scores: Scores) -> list[Answer]:
    responses = scores.responses(rollout)
    return [
        Answer(**vars(response), question=_question(prompt), logged=logged)
        for response, prompt, logged in zip(responses, rollout.prompts, scores.entries, strict=True)
    ]


def _question(prompt: Prompt) -> str | None:
    return prompt.messages[-1]["content"] if prompt.messages else None


def _mean(values: Iterable[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else math.nan

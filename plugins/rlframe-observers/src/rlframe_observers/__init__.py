"""Hook plugins that only observe: they read the events of a run, and change nothing in it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveInt

from rlframe.api import Context, HookPlugin, PluginConfig, RewardName, StopTraining, hookimpl
from rlframe.api.events import (
    CheckpointSaved,
    HeldoutEvaluated,
    RolloutScored,
    RunFinished,
    RunStarted,
    ScoredResponse,
)


class EarlyStoppingConfig(PluginConfig):
    patience: PositiveInt = Field(
        3, description="evaluations in a row without a better score after which PPO ends"
    )
    least_gain: NonNegativeFloat = Field(0.0, description="what counts as better, in score units")
    reward: RewardName | None = Field(
        None, description="the reward whose held-out scores count; the mix of all if left out"
    )


class EarlyStopping(HookPlugin[EarlyStoppingConfig]):
    """Ends PPO when the mean held-out score has not risen for `patience` evaluations.

    Beside the run's own result it leaves `early_stopping.json`, which says after how many updates the
    score was best, and which checkpoint has those weights if one was saved.
    """

    example: ClassVar[dict[str, Any]] = {"patience": 2}
    """What `rlframe plugins check early_stopping` tries."""

    def __init__(self, config: EarlyStoppingConfig, context: Context) -> None:
        super().__init__(config, context)
        self._directory = Path()
        self._best: float | None = None
        self._updates = self._waited = 0
        self._checkpoint: str | None = None

    @hookimpl
    def rlframe_run_started(self, event: RunStarted) -> None:
        self._directory = event.directory
        if event.resolved["evaluation"]["every"] is None and self.context.rank == 0:
            warnings.warn(
                f"hooks.{self.name}: evaluation.every is not set, so nothing is evaluated during PPO, "
                "and nothing ends it early",
                stacklevel=2,
            )

    @hookimpl
    def rlframe_heldout_evaluated(self, event: HeldoutEvaluated) -> None:
        score = self._mean(event.responses)
        if score is None:
            return
        if self._best is None or score > self._best + self.config.least_gain:
            self._best, self._updates, self._waited = score, event.updates, 0
            self._checkpoint = None
            return
        self._waited += 1
        if self._waited >= self.config.patience:
            what = "score" if self.config.reward is None else f"score of {self.config.reward}"
            raise StopTraining(
                f"the held-out {what} has not risen above {self._best:.4g}, that of update "
                f"{self._updates}, in {self._waited} evaluations"
            )

    @hookimpl
    def rlframe_checkpoint_saved(self, event: CheckpointSaved) -> None:
        if event.update + 1 == self._updates and self._checkpoint is None:
            self._checkpoint = str(event.directory)

    @hookimpl
    def rlframe_run_finished(self, event: RunFinished) -> None:
        if event.error is None and self.context.rank == 0:
            kept = self._checkpoint is not None and Path(self._checkpoint).exists()
            best = {
                "updates": self._updates,
                "score": self._best,
                "checkpoint": self._checkpoint if kept else None,
            }
            path = self._directory / "early_stopping.json"
            path.write_text(json.dumps(best, indent=2) + "\n", encoding="utf-8")

    def _mean(self, responses: Sequence[ScoredResponse]) -> float | None:
        """The mean over the responses that were judged; None if none was."""
        name = self.config.reward
        scores = [one.score if name is None else one.rewards[name] for one in responses]
        judged = [score for score in scores if score is not None]
        return sum(judged) / len(judged) if judged else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self._best,
            "updates": self._updates,
            "waited": self._waited,
            "checkpoint": self._checkpoint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._updates = state["best"], state["updates"]
        self._waited, self._checkpoint = state["waited"], state["checkpoint"]


class RolloutLogConfig(PluginConfig):
    every: PositiveInt = Field(1, description="updates from one that is kept to the next")


class RolloutLog(HookPlugin[RolloutLogConfig]):
    """Keeps the responses that PPO learns from, with the score of each reward.

    Of the first update and of every `every`-th one, each process writes a file of its own into the run
    directory, `rollouts/update_000010_rank_0.jsonl`, with a line for each response. An update that a
    resumed run makes again replaces its file.
    """

    example: ClassVar[dict[str, Any]] = {"every": 1}
    """What `rlframe plugins check rollout_log` tries."""

    def __init__(self, config: RolloutLogConfig, context: Context) -> None:
        super().__init__(config, context)
        self._folder = Path()

    @hookimpl
    def rlframe_run_started(self, event: RunStarted) -> None:
        self._folder = event.directory / "rollouts"
        self._folder.mkdir(exist_ok=True)

    @hookimpl
    def rlframe_rollout_scored(self, event: RolloutScored) -> None:
        number = event.update + 1  # as in metrics.jsonl
        if event.update and number % self.config.every:
            return
        path = self._folder / f"update_{number:06d}_rank_{self.context.rank}.jsonl"
        lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in event.responses]
        # A lone surrogate, which a tokenizer may decode to, is no UTF-8.
        path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")

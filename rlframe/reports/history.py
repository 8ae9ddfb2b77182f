"""The metrics, recipe and samples of a run, as the checks of `rlframe doctor` read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any, TypeGuard

from rlframe.reports.finding import Span

EDGE = 5
"""Updates at either end of a run over which a trend averages: one update of 64 responses is noisy (in
recipes/quickstart.yaml, KL per response varies by 20 % from one update to the next)."""

TREND = 2 * EDGE
"""Updates from which on a trend can be judged: the two ends no longer overlap."""

CLEAR = 2.0
"""Standard errors by which two means have to differ: about 95 % if nothing has changed."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Heldout:
    """One evaluation on the held-out prompts."""

    update: int
    mean: float
    """Score of the mix."""
    error: float
    """Standard error of the mean."""


@dataclass(frozen=True)
class History:
    """What is known of a run. Nothing here is copied, so that it is cheap to make after each update.

    Args:
      rows: of metrics.jsonl, those of PPO updates alone, in order.
      recipe: resolved.
      samples: update -> the rows of its evaluation; 0 is before the first update.
      inputs: data set or model -> its fingerprint, as the manifest has them.
      window: updates at the end in which single events are looked for; None for all.
    """

    rows: Sequence[Row]
    recipe: Mapping[str, Any]
    samples: Mapping[int, Sequence[Row]] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    window: int | None = None

    @property
    def long_enough(self) -> bool:
        """Whether trends can be judged."""
        return len(self.rows) >= TREND

    @property
    def responses(self) -> int:
        """Responses per update."""
        prompts = self.option("rollout.prompts_per_update", 1)
        return int(prompts * self.option("rollout.samples_per_prompt", 1))

    @property
    def learning_rate(self) -> float:
        """Of the policy, at its highest."""
        return float(self.option("ppo.learning_rate", 3e-6))

    def option(self, path: str, default: Any = None) -> Any:
        """The value of a key of the recipe, as in `kl.controller.type`; null counts as missing."""
        found: Any = self.recipe
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return default if found is None else found

    def events(self, metric: str, wrong: Callable[[float], bool] = lambda _: True) -> list[Span]:
        """The updates in the window at which a metric has a value that is `wrong`."""
        begin = 0 if self.window is None else max(len(self.rows) - self.window, 0)
        return [s for s in _spans(self.rows, metric, begin, len(self.rows)) if wrong(s.value)]

    def first(self, metric: str) -> Span | None:
        """The mean of a metric over the first `EDGE` updates; None if it was not logged."""
        return _mean(_spans(self.rows, metric, 0, EDGE))

    def last(self, metric: str, updates: int = EDGE) -> Span | None:
        """The mean of a metric over the last updates; None if it was not logged."""
        return _mean(_spans(self.rows, metric, max(len(self.rows) - updates, 0), len(self.rows)))

    def settled(self, metric: str) -> Span | None:
        """The mean of a metric over `EDGE` updates from a third of the run on."""
        begin = len(self.rows) // 3
        return _mean(_spans(self.rows, metric, begin, begin + EDGE))

    def trend(self, metric: str) -> tuple[Span, Span] | None:
        """(`first`, `last`) of a metric; None if the run is too short or it was not logged."""
        first, last = self.first(metric), self.last(metric)
        return None if not self.long_enough or first is None or last is None else (first, last)

    def score_rise(self) -> float:
        """Rise of the training score from `first` to `last`, in standard errors; 0 if unknown."""
        trend, spread = self.trend("objective/scores"), self.trend("objective/scores_std")
        if trend is None or spread is None:
            return 0.0
        error = math.hypot(*(s.value for s in spread)) / math.sqrt(EDGE * self.responses)
        return (trend[1].value - trend[0].value) / max(error, 1e-9)

    def heldout(self) -> list[Heldout]:
        """The evaluations, in order, without those in which nothing was judged."""
        found = []
        for update, rows in sorted(self.samples.items()):
            scores = [row["score"] for row in rows if row.get("score") is not None]
            if scores:
                error = pstdev(scores) / math.sqrt(len(scores))
                found.append(Heldout(update, fmean(scores), error))
        return found


def _spans(rows: Sequence[Row], metric: str, begin: int, end: int) -> list[Span]:
    found = ((row.get("update", 0), row.get(metric)) for row in rows[begin:end])
    return [Span(update, update, value) for update, value in found if is_number(value)]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a metric has a value: null stands for what is undefined."""
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(spans: Sequence[Span]) -> Span | None:
    if not spans:
        return None
    return Span(spans[0].first, spans[-1].last, fmean(s.value for s in spans))

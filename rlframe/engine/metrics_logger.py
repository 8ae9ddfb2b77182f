"""The metrics of each update: computed over all ranks, for the file, the observers and the display."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rlframe.api.events import Metrics
from rlframe.distributed.runtime import Runtime
from rlframe.distributed.training import Training
from rlframe.engine.heldout import HeldOut
from rlframe.engine.metrics import Clock
from rlframe.engine.update_metrics import Update, update_metrics
from rlframe.registry.relay import Relay
from rlframe.runs.directory import RunDirectory
from rlframe.runs.display import Display


class MetricsLogger:
    """Writes one row per update.

    Args:
      directory: has the file.
      display: shows the progress.
      observers: are notified of every row.
      runtime: sums over ranks, and knows memory and waiting.
      training: knows how long ranks waited for each other's gradients.
      clock: the phases of each update.
      updates: in the whole run.
      penalty: whether KL is subtracted from the rewards.
    """

    def __init__(
        self,
        directory: RunDirectory,
        display: Display,
        observers: Relay,
        *,
        runtime: Runtime,
        training: Training,
        clock: Clock,
        updates: int,
        penalty: bool,
    ) -> None:
        self._directory = directory
        self._display = display
        self._observers = observers
        self._runtime = runtime
        self._training = training
        self._clock = clock
        self._updates = updates
        self._penalty = penalty
        self._episodes = 0
        self.last_kl = 0.0
        """Of the last rollout, nats per response."""

    def state_dict(self) -> dict[str, float]:
        """Responses since the start of the run, and the KL of the last rollout."""
        return {"episodes": self._episodes, "last_kl": self.last_kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._episodes, self.last_kl = state["episodes"], state["last_kl"]

    def log(self, update: Update, heldout: HeldOut | None) -> None:
        """Write the metrics of an update. Collective: call on all ranks.

        Args:
          update: what it produced.
          heldout: the evaluation after it, if there was one.
        """
        done = update.number + 1
        self._episodes += update.measured.responses
        self.last_kl = update.measured.nats_per_response
        metrics = update_metrics(
            update,
            self._clock,
            penalty=self._penalty,
            episodes=self._episodes,
            reduce=self._runtime.sum,
        )
        metrics["memory/peak_mib"] = self._runtime.peak_memory_mib()
        metrics["time/collectives_seconds"] = self._runtime.waited() + self._training.waited()
        metrics |= {} if heldout is None else heldout.metrics()
        metrics["hooks/observer_errors"] = self._observers.errors
        self._directory.metrics({"stage": "ppo", "update": done, **metrics})
        self._observers.tell("metrics", Metrics(update.number, MappingProxyType(metrics)))
        self._display.step(done, self._updates, metrics)

"""The metrics of each update: computed over all ranks, for the file, the observers and the display."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass
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

    directory: RunDirectory
    display: Display
    observers: Relay
    runtime: Runtime
    training: Training
    clock: Clock
    updates: int
    penalty: bool
    last_kl: float = field(default=0.0, init=False)
    """Of the last rollout, nats per response."""
    _episodes: int = field(default=0, init=False)

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
            self.clock,
            penalty=self.penalty,
            episodes=self._episodes,
            reduce=self.runtime.sum,
        )
        metrics["memory/peak_mib"] = self.runtime.peak_memory_mib()
        metrics["time/collectives_seconds"] = self.runtime.waited() + self.training.waited()
        metrics |= {} if heldout is None else heldout.metrics()
        metrics["hooks/observer_errors"] = self.observers.errors
        self.directory.metrics({"stage": "ppo", "update": done, **metrics})
        self.observers.tell("metrics", Metrics(update.number, MappingProxyType(metrics)))
        self.display.step(done, self.updates, metrics)

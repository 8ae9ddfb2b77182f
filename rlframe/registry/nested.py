"""A reward inside another one, called through its hook as every other reward is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlframe.api.component import RewardProvider
from rlframe.registry.relay import Relay
from rlframe.types import RewardBatch


class NestedReward(RewardProvider[Any]):
    """Stands in for a reward that another one has built, so that hook plugins wrap it too.

    A cache or a timer around `rlframe_score` then sees the reward model inside of a
    `preference_difference`, and not only the difference.

    Args:
      inner: the reward.
      relay: of the run; None as long as there is none, and outside of PPO.
    """

    def __init__(self, inner: RewardProvider[Any], relay: Callable[[], Relay | None]) -> None:
        super().__init__(inner.config, inner.context)
        self.inner = inner
        self.name = inner.name
        self.cheap_to_repeat = inner.cheap_to_repeat
        self._relay = relay

    def score(self, batch: RewardBatch) -> Any:
        relay = self._relay()
        if relay is None:
            return self.inner.score(batch)
        return relay.hook.rlframe_score(provider=self.inner, batch=batch)

    def notes(self) -> Sequence[str]:
        return self.inner.notes()

    def state_dict(self) -> Mapping[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)

    def __getattr__(self, name: str) -> Any:
        """What the reward has beside its contract, for an outer one that knows it."""
        if name == "inner":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

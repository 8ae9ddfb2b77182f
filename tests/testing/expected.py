"""What a run makes of a planted defect: declared beside it, and compared with what happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from rlframe.api import Component, PluginConfig, RewardProvider


class Unseen(StrEnum):
    """Why a run finishes with a component that the kit refuses."""

    PARTITION = (
        "it depends on who shares a batch, a rank or a micro-batch, and a run has one partition"
    )
    CHANCE = "another process or another run would see something else, and a run is one of them"
    GLOBAL_RANDOMNESS = "rlframe draws nothing from the global random states, so that nothing shows"
    RESUMED = "only an instance that takes over from another one shows what was forgotten"
    MASKED = "it reads what the mask leaves out, where a run happens to have finite numbers"
    MEANING = "what it returns is well formed, and what that means is for its author to say"
    INPUT = "it fails for numbers to which a short run does not come"
    TOLERATED = "the engine goes on with the last finite state, ten times in a row"
    ASKED_BY_OTHERS = (
        "only another component asks in this way: for no response, or again after an error"
    )
    TIME = "it takes long, which a run does not limit unless the recipe says so"
    NOT_IN_A_RECIPE = "no recipe can write such a config"
    NOBODY_READS = "what it changes is read by nobody else in this run"
    UNIFORM = "the policy of these runs gives each token the same probability; another one shows it"


@dataclass(frozen=True)
class Refused:
    """The run ends with an error that names the component, and says the same as the kit."""

    also: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys of the recipe with which the run comes to it."""
    says: str = ""
    """What both messages have, where they do not come from one place."""


@dataclass(frozen=True)
class Warned:
    """The run goes on, and says that the observer raised."""

    also: Mapping[str, Any] = field(default_factory=dict)


Expected = Unseen | Refused | Warned


class Planted(NamedTuple):
    """A component that breaks one promise."""

    component: type[Component[Any]]
    check: str
    """Of the kit, which must fail."""
    run: Expected


class JudgesNothing(RewardProvider[PluginConfig]):
    """None for every response."""

    def score(self, batch: Any) -> Any:
        return [None for _ in batch.response_texts]


class JudgesSome(RewardProvider[PluginConfig]):
    """None for every second response."""

    def score(self, batch: Any) -> Any:
        return [None if k % 2 else 1.0 for k in range(len(batch))]


class JudgesAlike(RewardProvider[PluginConfig]):
    """0 for every response."""

    def score(self, batch: Any) -> Any:
        return [0.0 for _ in batch.response_texts]


class Fails(RewardProvider[PluginConfig]):
    """Always."""

    def score(self, batch: Any) -> Any:
        raise ConnectionError("the judge is gone")


OTHERS: dict[tuple[str, str], type[Component[Any]]] = {
    ("reward_providers", "judges_nothing"): JudgesNothing,
    ("reward_providers", "judges_some"): JudgesSome,
    ("reward_providers", "judges_alike"): JudgesAlike,
    ("reward_providers", "fails"): Fails,
}
"""What the recipes below name."""

NOTHING_VALID = {"rewards.reward": {"type": "judges_nothing"}}
SOME_JUDGED = {"rewards.reward": {"type": "judges_some"}}
ALL_ALIKE = {"rewards.reward": {"type": "judges_alike"}}
A_REWARD_FAILS = {"rewards.reward": {"type": "fails"}}
IN_DOUBLE = {"runtime.precision": "float64"}
WITHOUT_CRITIC = {"model.critic": None, "algorithm.advantages": {"type": "rloo"}}
UNBOUNDED = {"algorithm.policy_loss": {"type": "reinforce"}}
GATED = {"rewards.gate": {"type": "eos_penalty", "penalty": 1.0, "mode": "replace"}}
TRANSFORMED = {"rewards.reward.transforms": [{"type": "running_standardize"}]}
WITH_A_LOSS = {"losses.sft": {"type": "sft", "data": "reviews"}}

REFUSED = Refused()
PARTITION, CHANCE, GLOBAL = Unseen.PARTITION, Unseen.CHANCE, Unseen.GLOBAL_RANDOMNESS
RESUMED, MASKED, MEANING = Unseen.RESUMED, Unseen.MASKED, Unseen.MEANING
INPUT, TOLERATED, TIME = Unseen.INPUT, Unseen.TOLERATED, Unseen.TIME
NOT_IN_A_RECIPE, ASKED_BY_OTHERS = Unseen.NOT_IN_A_RECIPE, Unseen.ASKED_BY_OTHERS
NOBODY_READS = Unseen.NOBODY_READS

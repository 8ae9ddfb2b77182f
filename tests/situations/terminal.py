"""Plugins that end the process, hostile text, output that nobody takes, numbers beyond all bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.situations import Situation, recipe

HEADER = """\
import sys, torch
from rlframe.hooks import *
from rlframe.types import *
from rlframe.hooks import hookimpl

class Config(PluginConfig):
    at: str = ""

def leave():
    sys.exit(0)

"""
COMPONENTS = {
    "reward": """
class Part(RewardProvider[Config]):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.config.at == "constructor" and leave()
    @classmethod
    def check(cls, config, context):
        config.at == "check" and leave()
    def score(self, batch):
        self.config.at == "call" and leave()
        return [0.0] * len(batch)
    def state_dict(self):
        self.config.at == "state" and leave()
        return {"memory": {1, 2}} if self.config.at == "set" else {}
""",
    "controller": """
class Part(KLController[Config]):
    def initial(self):
        self.config.at == "first" and leave()
        return KLState(0.1)
    def update(self, state, measured):
        leave()
""",
    "loss": """
class Part(AuxiliaryLoss[Config]):
    @property
    def coefficient(self):
        return 0.1
    @property
    def examples_per_step(self):
        return 2
    def examples(self):
        self.config.at == "examples" and leave()
        return None
    def loss(self, policy, batch):
        leave()
""",
    "estimator": """
class Part(AdvantageEstimator[Config]):
    def estimate(self, rewards, values, mask):
        leave()
""",
    "observer": """
class Part(HookPlugin[Config]):
    @hookimpl
    def rlframe_metrics(self, event):
        leave()
""",
    "wrapper": """
class Part(HookPlugin[Config]):
    @hookimpl(wrapper=True)
    def rlframe_score(self, provider, batch):
        leave()
        return (yield)
""",
    "generator": """
class Part(DataGenerator[Config]):
    @classmethod
    def rows(cls, config):
        leave()
""",
    "import": "leave()\n",
}


def leaving(component: str, at: str = "call", **sections: Any) -> Callable[[Path], list[str]]:
    """A recipe with a component in a file whose code calls sys.exit(0)."""

    def make(folder: Path) -> list[str]:
        (folder / "part.py").write_text(HEADER + COMPONENTS[component])
        spec = {"type": "./part.py:Part", "at": at}
        places: dict[str, dict[str, Any]] = {
            "reward": {"rewards": {"mine": spec}},
            "import": {"rewards": {"mine": spec}},
            "controller": {"kl": {"controller": spec}},
            "loss": {"losses": {"mine": spec}},
            "estimator": {"advantages": spec},
            "observer": {"hooks": {"mine": spec}},
            "wrapper": {"hooks": {"mine": spec}},
            "generator": {"data": {"reviews": {"generator": spec}}},
        }
        path = recipe(folder, **places[component], **sections)
        return ["train", path, "--output", "run", "--allow-local-code"]

    return make


def exits(
    name: str, component: str, at: str = "call", *, code: int = 1, says: str = ""
) -> Situation:
    return Situation(
        f"sys.exit(0) {name}",
        leaving(component, at),
        code,
        ("called sys.exit(0)", "part.py:10", *([says] if says else [])),
    )


SITUATIONS = [
    exits("in a reward", "reward", says="reward 'mine' of type"),
    exits("in a reward's constructor", "reward", "constructor", says="reward (class Part)"),
    exits("in a reward's check", "reward", "check", says="reward (class Part)"),
    exits("in a reward's state", "reward", "state", says="rewards.mine: "),
    exits("in a KL controller", "controller", says="'controller' of type"),
    exits(
        "in a KL controller's first state",
        "controller",
        "first",
        says="KL controller 'controller' (class Part)",
    ),
    exits("in an auxiliary loss", "loss", says="'mine' of type"),
    exits("in the data of an auxiliary loss", "loss", "examples", says="auxiliary loss 'mine'"),
    exits("in an advantage estimator", "estimator", says="advantage estimator"),
    exits("in an observer", "observer", says="hooks.mine"),
    exits("in a wrapper of a reward", "wrapper", says="hook plugin"),
    exits("in a data generator", "generator", says="data generator"),
    Situation(
        "a reward whose state is a set, which no checkpoint could keep",
        leaving("reward", "set"),
        1,
        ("rewards.mine: its state cannot be saved", "/memory: a set can not be saved", "of Part"),
    ),
    Situation(
        "sys.exit(0) while a file is imported",
        leaving("import"),
        4,
        ("SystemExit: 0", "part.py:10"),
    ),
]

"""Plugins that end the process, hostile text, output that nobody takes, numbers beyond all bounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import TINY
from tests.situations import Situation, recipe

HEADER = """\
import sys, torch
from rlframe.api import *
from rlframe.types import *
from rlframe.api import hookimpl

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
    def needs(cls, config):
        config.at == "needs" and leave()
        return Needs()
    def notes(self):
        self.config.at == "notes" and leave()
        return []
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
    @classmethod
    def initial_coefficient(cls, config):
        config.at == "bounds" and leave()
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
    def estimate(self, batch):
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
            "estimator": {"algorithm": {"advantages": spec}},
            "observer": {"hooks": {"mine": spec}},
            "wrapper": {"hooks": {"mine": spec}},
            "generator": {"data": {"reviews": {"generator": spec}}},
        }
        path = recipe(folder, **places[component], **sections)
        return ["train", path, "--output", "run", "--allow-local-code"]

    return make


def big(folder: Path) -> str:
    path = folder / "big.yaml"
    path.write_text("version: 1\n" + "".join(f"key_{n}: 1\n" for n in range(150_000)))
    return str(path)


def exits(
    name: str, component: str, at: str = "call", *, code: int = 1, says: str = ""
) -> Situation:
    return Situation(
        f"sys.exit(0) {name}",
        leaving(component, at),
        code,
        ("called sys.exit(0)", "part.py:10", *([says] if says else [])),
    )


HOSTILE = "[/INST] [bold]b[/bold] :smile: \x1b[31mred\x1b]0;title\x07 a\u2028b\x85c\u202egpj d\x00e"


def hostile(folder: Path) -> list[str]:
    """Prompts that hold markup, separators and control characters, held out and trained on."""
    with (folder / "asked.jsonl").open("w", encoding="utf-8") as file:
        for number in range(60):
            row = {"prompt": f"{number} {HOSTILE}", "text": f"{number} {HOSTILE} yes"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    path = recipe(
        folder,
        data={"reviews": {"path": "asked.jsonl", "heldout": 0.3}},
        prompts={"data": "reviews"},
        model={"policy": {**TINY["model"]["policy"], "architecture": WIDE}},
    )
    return ["train", path, "--output", "run"]


WIDE = {**TINY["model"]["policy"]["architecture"], "max_position_embeddings": 256}


def validated(*overrides: str, **sections: Any) -> Callable[[Path], list[str]]:
    return lambda folder: ["validate", recipe(folder, **sections), *overrides]


def trained(*options: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["train", recipe(folder), *options]


SITUATIONS = [
    Situation(
        "held-out prompts with markup, separators and escapes",
        hostile,
        0,
        (
            "[/INST] [bold]b[/bold]",
            "\\u001b[31mred",
            "\\u202egpj",
            ":smile:",
            "On 4 held-out prompts",
        ),
        ("Traceback", "\x1b", "\u202e", "\x85", "\u2028"),
    ),
    Situation(
        "a key with an escape sequence",
        validated(**{"\x1b[2Jcolour": 1}),
        3,
        ("unknown key", "[2Jcolour"),
        ("Traceback", "\x1b"),
    ),
    Situation(
        "a WORLD_SIZE that is no number",
        trained(),
        5,
        ("WORLD_SIZE is 'abc'", "unset WORLD_SIZE"),
        environment=(("WORLD_SIZE", "abc"),),
    ),
    Situation(
        "a RANK without a WORLD_SIZE",
        trained(),
        5,
        ("RANK is 1, but WORLD_SIZE is not set",),
        environment=(("RANK", "1"),),
    ),
    Situation(
        "an OMP_NUM_THREADS that is no number",
        trained(),
        5,
        ("OMP_NUM_THREADS is 'many'",),
        environment=(("OMP_NUM_THREADS", "many"),),
    ),
    Situation("a million processes", trained("--processes", "1000000"), 2, ("1024",)),
    Situation(
        "more prompts than any memory holds",
        validated("rollout.prompts_per_update=100000000000000000000000"),
        3,
        ("rollout.prompts_per_update: input should be less than or equal to 1000000",),
    ),
    Situation(
        "more reviews than anybody reads",
        validated("data.reviews.generator.rows=1000000000000"),
        3,
        ("data.reviews.generator.rows: input should be less than or equal to 1000000",),
    ),
    Situation(
        "a recipe of 2 MB",
        lambda folder: ["validate", big(folder)],
        3,
        ("a recipe has at most 256 KiB",),
    ),
    Situation(
        "brackets without end",
        validated(f"seed={'[' * 5000}"),
        3,
        ("nested more than 40 deep",),
    ),
    exits("in a reward", "reward", says="reward 'mine'"),
    exits(
        "in a reward's constructor", "reward", "constructor", code=4, says="rewards.mine: reward "
    ),
    exits("in a reward's check", "reward", "check", code=4, says="rewards.mine: reward "),
    exits("in a reward's needs", "reward", "needs", code=4, says="rewards.mine: reward "),
    exits("in a reward's notes", "reward", "notes", code=4, says="rewards.mine: reward 'mine'"),
    exits("in a reward's state", "reward", "state", says="rewards.mine: "),
    exits("in a KL controller", "controller", says="'controller' of type"),
    exits("in a KL controller's bounds", "controller", "bounds", code=4, says="kl.controller: KL "),
    exits(
        "in a KL controller's first state",
        "controller",
        "first",
        code=4,
        says="KL controller 'controller' of type",
    ),
    exits("in an auxiliary loss", "loss", says="'mine' of type"),
    exits(
        "in the data of an auxiliary loss", "loss", "examples", code=4, says="auxiliary loss 'mine'"
    ),
    exits("in an advantage estimator", "estimator", says="advantage estimator"),
    exits("in an observer", "observer", says="hooks.mine"),
    exits("in a wrapper of a reward", "wrapper", says="hook plugin"),
    exits("in a data generator", "generator", code=3, says="data generator"),
    Situation(
        "a reward whose state is a set, which no checkpoint could keep",
        leaving("reward", "set"),
        1,
        ("rewards.mine: its state cannot be saved", "/memory: a set cannot be saved", "of Part"),
    ),
    Situation(
        "sys.exit(0) while a file is imported",
        leaving("import"),
        4,
        ("SystemExit: 0", "part.py:10"),
    ),
]

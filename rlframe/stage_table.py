"""The stages of a recipe, in the order in which they run. Nothing else lists their names.

A new stage is three places: its section in `recipe/schema.py`, its file in `stages/`, its line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

REFERENCE = "stage:"
"""What stands before the name of a stage where a recipe names the model that the stage leaves."""


@dataclass(frozen=True)
class Stage:
    """One line of the table. It names modules as text, so that reading the table imports none of them.

    Args:
      name: of its section in the recipe, its folder in a run and, as `stage:NAME`, what it leaves.
      check: `module:function` that looks at the rows of `data` in its section without torch, for
        `rlframe validate`; see `data/stage_rows.py`. None where another section names its data.
      run: `module:class` that prepares and runs it; see `stages/stage.py`.
      result: what it leaves for the stages after it, which is kept once it is finished: "policy", the
        policy after more training; "scorer", a model with one output that began as `initial` of its
        section. None for the last stage, whose end is the end of the run.
    """

    name: str
    check: str | None
    run: str
    result: Literal["policy", "scorer"] | None

    @property
    def reference(self) -> str:
        """`stage:NAME`."""
        return REFERENCE + self.name


STAGES = (
    Stage(
        "sft",
        check="rlframe.data.stage_rows:check_examples",
        run="rlframe.stages.sft:SFTRun",
        result="policy",
    ),
    Stage(
        "reward_model",
        check="rlframe.data.stage_rows:check_pairs",
        run="rlframe.stages.reward_model:RewardModelRun",
        result="scorer",
    ),
    Stage("ppo", check=None, run="rlframe.compose.alignment:PPORun", result=None),
)


def running(recipe: object) -> list[Stage]:
    """The stages that a recipe has a section of, in order."""
    return [stage for stage in STAGES if getattr(recipe, stage.name, None) is not None]


def referred(name: object) -> Stage | None:
    """The stage that `stage:NAME` means; None for any other name of a model, and any other value."""
    return next((stage for stage in STAGES if stage.reference == name), None)


def imported(text: str) -> Any:
    """What `module:name` means."""
    module, _, name = text.partition(":")
    return getattr(import_module(module), name)

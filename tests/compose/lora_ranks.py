"""A rank of tests/compose/test_lora.py: the same recipe by one strategy after the other.

RECIPE OUTPUT NAME=OVERRIDE,OVERRIDE ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from rlframe.compose import run_recipe
from rlframe.distributed.child import finished, take_reports
from rlframe.errors import Stopped
from rlframe.recipe import load_recipe
from rlframe.runs.display import SilentDisplay
from rlframe.runs.resuming import Allowance
from tests.rounding import smooth_adam


def main(recipe: str, output: str, *strategies: str) -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    for strategy in strategies:
        name, _, overrides = strategy.partition("=")
        keys = overrides.split(",") if overrides else []
        directory = Path(output) / name
        try:
            stop = load_recipe(Path(recipe), [*keys, "checkpoints.stop_after_minutes=1e-6"])
            run_recipe(stop, directory, SilentDisplay())
        except Stopped:
            go_on = load_recipe(Path(recipe), keys)
            run_recipe(go_on, directory, SilentDisplay(), resume=Allowance())


if __name__ == "__main__":
    reports = take_reports()
    with smooth_adam():
        main(*sys.argv[1:])
    finished(reports)

"""What the tables of several programs have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlframe.convert.option import Given, NoCounterpartError, Value, truth
from rlframe.convert.source import Facts

PLACEHOLDER = "fill-in/"
"""Begins the name of a model or data set that the file does not tell."""

UPDATES = 100
"""Stands for a number of updates that depends on the size of a data set."""

TO_FILL_IN: Facts = {
    "model.policy": (f"{PLACEHOLDER}policy", "a path or hub id of the model to train"),
    "data.prompts.hub.id": (
        f"{PLACEHOLDER}prompts",
        "the data set of prompts, or `path:` of a file",
    ),
    "prompts.data": ("prompts", "the data set of prompts"),
    "rewards.score.model": (
        f"{PLACEHOLDER}reward-model",
        "a path or hub id of a reward model; a reward in Python is {type: ./file.py:function}",
    ),
}
"""What a recipe needs and a file may leave open; a source says on its own what makes the updates."""

NO_ADAPTERS = (
    "rlframe opens whole models alone: merge the adapter into its base model (peft's "
    "`merge_and_unload`) and give the path of the result"
)
NO_QUANTISATION = "rlframe trains whole weights: no quantised model is opened"
NO_REMOTE_CODE = (
    "rlframe runs no code of a model's folder; the architecture must be one of transformers'"
)
CHECKPOINTING = (
    "rlframe has no activation checkpointing: a lower ppo.microbatch_tokens saves memory, and "
    "`rlframe plan` says how much is needed"
)
MICROBATCHES = (
    "it changes memory and not the result: micro-batches are cut by padded tokens, "
    "ppo.microbatch_tokens"
)
TRACKING = (
    "the metrics of every update are in metrics.jsonl of the run directory; a tracker is a hook "
    "plugin"
)
OUTPUT = "the run directory is given to the command: rlframe train RECIPE --output DIR"
CHECKPOINT_CONTENT = (
    "checkpoints always hold all that a run needs to be resumed: rlframe resume RUN"
)
LAUNCHER = "of the program that starts the processes: rlframe train RECIPE --processes N"
ENGINE = "of an engine or kernel that rlframe does not have; leave it out"


def dataset(name: str, value: str) -> dict[str, Any]:
    """The keys of a data set: a file or folder by its path, or one of the hub.

    Args:
      name: of the data set in the recipe.
      value: a path or hub id.
    """
    suffix = Path(value).suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
    local = suffix or value.startswith((".", "/", "~")) or Path(value).exists()
    key = "path" if local or value.count("/") > 1 else "hub.id"
    return {f"data.{name}.{key}": value}


def of_load_dataset(name: str, value: str) -> dict[str, Any]:
    """The same of NAME or NAME@FOLDER, where NAME may be a kind of file, such as json.

    Raises:
      NoCounterpartError: a folder of a data set of the hub.
    """
    first, at, folder = value.partition("@")
    if not at:
        return dataset(name, value)
    if first in ("json", "csv", "parquet", "text", "arrow"):
        return {f"data.{name}.path": folder}
    raise NoCounterpartError(
        f"{folder!r} is a folder of the data set: download it, and give its path as data.{name}.path"
    )


def word(text: str) -> str:
    """A text as the name of a data set."""
    return re.sub(r"\W+", "_", text).strip("_") or "data"


def above_zero(name: str, *, nothing: Any = None) -> Value:
    """A number, where 0 or less and the program's own word for "off" mean that there is none."""

    def value(given: Given) -> Any:
        if given[name] is nothing:
            return None
        found = given.number(name)
        return found if found > 0 else None

    return value


def filter_below_one(name: str) -> Value:
    """A share of the probability, where 1 filters nothing."""

    def value(given: Given) -> Any:
        found = given.number(name)
        return None if found >= 1 or found <= 0 else found

    return value


def precision(name: str, low: str) -> Value:
    """bfloat16 if the option is true."""
    return lambda given: low if truth(given[name]) else None


def quotient(total: float, part: int) -> int:
    """How many times the part goes into the total, at least once; the rest counts as another time."""
    return max(1, math.ceil(total / part))


def warmup_share(name: str, updates: Callable[[Given], int]) -> Value:
    """Updates of a warm-up that is given as a share of all.

    Args:
      name: of the option.
      updates: the number of all; raises NoCounterpartError if the file does not say it.
    """

    def value(given: Given) -> Any:
        share = given.number(name)
        if share == 0:
            return 0
        try:
            return math.ceil(share * updates(given))
        except NoCounterpartError as error:
            raise NoCounterpartError(
                "write ppo.warmup_updates as soon as ppo.updates is known"
            ) from error

    return value

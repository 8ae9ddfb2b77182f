"""Whether PPO will ask this recipe's reward model for what it was trained on, token for token."""

from __future__ import annotations

import copy
from itertools import islice
from typing import TYPE_CHECKING

from rlframe.builtin.reward_input import Reader
from rlframe.builtin.reward_model import RewardModelConfig, check_input
from rlframe.compose.lengths import start_of
from rlframe.data.encode import RowEncoder
from rlframe.errors import RecipeError
from rlframe.models.loading import rows_needed
from rlframe.stage_table import STAGES, Stage, referred
from rlframe.types import Prompt, Row

if TYPE_CHECKING:
    from rlframe.compose.project import Project

_PAIRS = 8  # that are compared: a difference is one of format, and shows in the first


def check_read_as_trained(project: Project, config: RewardModelConfig) -> None:
    """Compare what the reward model reads in training and in PPO, for the same prompts and answers.

    Equal tokens have equal scores, so nothing has to be trained to know.

    Raises:
      RecipeError: they differ; shows both. Or the stage leaves no reward model.
    """
    stage = referred(config.model)
    if stage is None:
        return
    if stage.result != "scorer":
        fitting = " or ".join(repr(line.reference) for line in STAGES if line.result == "scorer")
        raise RecipeError(f"{config.model!r} is no reward model; use {fitting}")
    tokenizer, data = project.models.tokenizer_of(stage), getattr(project.recipe, stage.name).data
    given = check_input(_reader(project, stage), config, project.context)
    own, policy = RowEncoder(tokenizer), RowEncoder(project.tokenizer)
    rows, _ = project.data.rows(data, tokenizer)
    for row in islice((row for row in rows if isinstance(row.get("chosen"), str)), _PAIRS):
        prompt, answer = _split(policy, row)
        trained = list(own.pair(row)[0].ids)
        asked = given.encode(prompt, str(row["chosen"]), answer)["input_ids"]
        if asked != trained:
            raise RecipeError(
                f"PPO would ask the reward model for something else than it is trained on.\n"
                f"  in training: {tokenizer.decode(trained)!r}\n"
                f"  in PPO:      {tokenizer.decode(asked)!r}\n"
                "Leave out `input`, or give the pairs their prompts in the form in which PPO has them "
                f"(data.{data}.format)"
            )


def _reader(project: Project, stage: Stage) -> Reader:
    """The reward model that a stage of this recipe will have trained."""
    tokenizer = copy.deepcopy(project.models.tokenizer_of(stage))
    tokenizer.truncation_side = "left"
    return Reader(
        name=stage.reference,
        tokenizer=tokenizer,
        embedding=rows_needed(tokenizer),
        limit=project.lengths.tokens(start_of(stage)),
        ids=True,
        per_token=False,
        ends_with_turn=True,
    )


def _split(encoder: RowEncoder, row: Row) -> tuple[Prompt, tuple[int, ...]]:
    """The chosen answer of a pair as PPO knows it: its prompt, and the tokens behind it."""
    whole = encoder.pair(row)[0].ids
    if row.get("messages") or row.get("prompt") is not None:
        prompt = encoder.prompt(row)
        return prompt, whole[len(prompt.ids) :]
    return Prompt("", whole[:1]), whole[1:]  # a text that nothing was asked for

"""Tasks whose answers can be verified: reasoning_gym's data sets, and its scorers as a reward."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import reasoning_gym  # type: ignore[import-untyped]
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from reasoning_gym.factory import DATASETS  # type: ignore[import-untyped]
from reasoning_gym.utils import extract_answer  # type: ignore[import-untyped]

from rlframe.api import Context, DataGenerator, PluginConfig, RewardBatch, RewardProvider, Row
from rlframe.errors import RecipeError, did_you_mean

COLUMN = "reasoning_gym"
"""The column with the arguments of `_question`, by which the scorer makes the question again: its
metadata hold tuples and other objects that no row can keep."""

HELDOUT_SEED = 10**9
"""Item i of a data set with seed s is item 0 of seed s + i, so two seeds must lie farther apart than
sizes. Training uses seeds below this number and held-out rows those from it on, whatever the recipe."""


class TasksConfig(PluginConfig):
    task: str = Field(description="name of a reasoning_gym data set, such as chain_sum")
    rows: PositiveInt = Field(
        description="questions to train on, before those held out are left out"
    )
    heldout_rows: PositiveInt = Field(100, description="questions that are never trained on")
    seed: NonNegativeInt = 0
    config: dict[str, Any] = Field(
        default_factory=dict, description="keys of that task's own config"
    )

    @model_validator(mode="after")
    def _can_be_made(self) -> TasksConfig:
        if self.task not in DATASETS:
            raise ValueError(
                f"reasoning_gym has no task {self.task!r}.{did_you_mean(self.task, DATASETS)} See "
                "`python -c 'import reasoning_gym.factory as f; print(*f.DATASETS)'`"
            )
        if self.seed + max(self.rows, self.heldout_rows) > HELDOUT_SEED:
            raise ValueError(f"seed + rows must not exceed {HELDOUT_SEED}")
        if {"seed", "size"} & set(self.config):
            raise ValueError(
                "seed and size are set by `seed`, `rows` and `heldout_rows`, not in `config`"
            )
        known = DATASETS[self.task][1].__dataclass_fields__
        for key in self.config:
            if key not in known:
                raise ValueError(f"{self.task} has no key {key!r}.{did_you_mean(key, known)}")
        try:
            _data_set(self.task, json.dumps(self.config, sort_keys=True), 1, 0)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"{self.task} refuses this config: {error}") from error
        return self


class Tasks(DataGenerator[TasksConfig]):
    """Questions of a reasoning_gym task: `prompt`, and `response` where the task has one right answer.

    The seeds of held-out questions never occur in training. Small tasks repeat a question under
    another seed all the same (chain_sum knows 16,200 pairs of numbers of two digits): rlframe then
    leaves it out of training.
    """

    @classmethod
    def rows(cls, config: TasksConfig) -> list[Row]:
        return _questions(config, size=config.rows, seed=config.seed)

    @classmethod
    def heldout_rows(cls, config: TasksConfig) -> list[Row]:
        return _questions(config, size=config.heldout_rows, seed=HELDOUT_SEED + config.seed)


def _questions(config: TasksConfig, *, size: int, seed: int) -> list[Row]:
    asked = {"task": config.task, "config": json.dumps(config.config, sort_keys=True)}
    rows: list[Row] = []
    for index in range(size):
        named = {**asked, "size": size, "seed": seed, "index": index}
        _, entry = _question(**named)
        row = {"prompt": entry["question"], COLUMN: named}
        rows.append(row if entry["answer"] is None else {**row, "response": entry["answer"]})
    return rows


class ScorerConfig(PluginConfig):
    answer_tag: str | None = Field(
        None,
        description="judge what stands between <tag> and </tag>; the whole response if left out",
    )


class Scorer(RewardProvider[ScorerConfig]):
    """The task's own score of a response, mostly 1 for right and 0 for wrong.

    An answer that the scorer cannot even read ("zzz" as a list of prime factors raises ValueError) is
    a wrong answer and scores 0. Whether the scorer is broken instead shows when it judges the right
    answer: if that raises as well, the run stops. A response without the tag scores what the
    scorer gives no answer, which is 0.
    """

    cheap_to_repeat = True

    @classmethod
    def check(cls, config: ScorerConfig, context: Context) -> None:
        if COLUMN not in context.columns:
            raise RecipeError(
                f"the prompts have no column {COLUMN!r}, which says how to score them. Make them with "
                "`generator: {type: reasoning_gym, task: chain_sum, rows: 1000}`"
            )

    def score(self, batch: RewardBatch) -> list[float]:
        judged = zip(batch.column(COLUMN), batch.response_texts, strict=True)
        return [self._score(row, response) for row, response in judged]

    def _score(self, row: dict[str, Any], response: str) -> float:
        data, entry = _question(**row)
        tag = self.config.answer_tag
        answer = response.strip() if tag is None else extract_answer(response, tag_name=tag)
        try:
            return float(data.score_answer(answer, entry))
        except Exception:
            data.score_answer(entry["answer"], entry)  # raises if it is not the response's fault
            return 0.0


@lru_cache(maxsize=16_384)  # some tasks take a second for a question
def _question(*, task: str, config: str, size: int, seed: int, index: int) -> tuple[Any, Any]:
    """A question, and the data set whose method scores it: some read the config that made it."""
    data = _data_set(task, config, size, seed)
    return data, data[index]


@lru_cache(maxsize=64)
def _data_set(task: str, config: str, size: int, seed: int) -> Any:
    """A data set of reasoning_gym, which makes equal questions of equal arguments."""
    return reasoning_gym.create_dataset(task, size=size, seed=seed, **json.loads(config))

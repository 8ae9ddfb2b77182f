"""A rank of tests/compose/test_frozen.py: one recipe, every strategy and placement.

RECIPE OUTPUT NAME=OVERRIDE,OVERRIDE ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.utils.logging import disable_progress_bar

from rlframe.api import AuxiliaryLoss, Context, LossTerm, PluginConfig
from rlframe.api.component import RewardSpec
from rlframe.builtin.reward_model import RewardModel
from rlframe.compose import run_recipe
from rlframe.compose.ppo import PPOParts
from rlframe.distributed.child import finished, take_reports
from rlframe.engine.updater import PolicyUpdater
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from rlframe.runs.display import SilentDisplay
from tests.rounding import smooth_adam

Parts = tuple[float, float]
"""Shares of the weights of the reference and of the reward model that this rank holds."""


def held(model: nn.Module) -> float:
    weights = list(model.parameters())
    mine = sum((x.to_local() if isinstance(x, DTensor) else x).numel() for x in weights)
    return mine / sum(x.numel() for x in weights)


class Taught(AuxiliaryLoss[PluginConfig]):
    """Asks frozen models of its own while others learn, one of them inside a reward."""

    coefficient = 0.1

    def __init__(self, config: PluginConfig, context: Context) -> None:
        super().__init__(config, context)
        teacher = nn.Linear(8, 1)
        nn.init.constant_(teacher.weight, 0.125)
        self._teacher = context.prepare(teacher)
        judge: Any = context.build_reward(RewardSpec.model_validate({"type": "reward_model"}))
        assert isinstance(judge.inner, RewardModel)
        self._judge: RewardModel = judge.inner

    def loss(self, policy: Any, batch: Any) -> LossTerm:
        scale = (self._teacher(torch.ones(8)) - self._teacher.bias).sum()
        scale = scale + self._judge._scores([{"input_ids": [1, 2, 3]}])[0]
        return LossTerm(
            -(policy.logprobs(batch.tokens) * batch.mask).sum() * scale, batch.mask.sum()
        )


def registry() -> Registry:
    known = Registry()
    known.add("auxiliary_losses", "taught", Taught)
    return known


@contextmanager
def watched(seen: dict[str, list[Parts]]) -> Iterator[None]:
    """Notes what of the frozen models is there when rewards are asked, and when others learn."""
    built: list[PPOParts] = []
    make, judge, learn = PPOParts.__init__, RewardModel.score, PolicyUpdater._step

    def note(moment: str) -> None:
        parts = built[-1]
        (reward,) = (r.component for r in parts.scorer.instances)
        seen.setdefault(moment, []).append((held(parts.models.reference), held(reward.model)))

    def making(self: PPOParts, *args: Any) -> None:
        make(self, *args)
        built.append(self)

    def judging(self: RewardModel, batch: Any) -> Any:
        note("judge")
        return judge(self, batch)

    def learning(self: PolicyUpdater, *args: Any) -> Any:
        note("learn")
        return learn(self, *args)

    with (
        patch.object(PPOParts, "__init__", making),
        patch.object(RewardModel, "score", judging),
        patch.object(PolicyUpdater, "_step", learning),
    ):
        yield


def scores(seen: list[Parts]) -> tuple[float, float]:
    """The smallest and the largest share that was held."""
    return min(min(pair) for pair in seen), max(max(pair) for pair in seen)


def main(recipe: str, output: str, *arguments: str) -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    for argument in arguments:
        name, _, overrides = argument.partition("=")
        keys = overrides.split(",") if overrides else []
        seen: dict[str, list[Parts]] = {}
        known, directory = registry(), Path(output) / name
        with watched(seen), smooth_adam():
            loaded = load_recipe(Path(recipe), keys, registry=known)
            run_recipe(loaded, directory, SilentDisplay(), registry=known)
        assert scores(seen["judge"]) == (1, 1), name
        least, most = scores(seen["learn"])
        assert most < 0.55 if "runtime.frozen=shard" in keys else least == 1, (name, least, most)


if __name__ == "__main__":
    reports = take_reports()
    main(*sys.argv[1:])
    finished(reports)

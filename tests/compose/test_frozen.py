"""Where reference and reward models wait, in whole runs: there when they are asked, gone meanwhile."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rlframe.builtin.reward_model import RewardModel
from rlframe.compose import run_recipe
from rlframe.compose.ppo import PPOParts
from rlframe.distributed.launch import launch
from rlframe.distributed.runtime import Runtime
from rlframe.engine.updater import PolicyUpdater
from rlframe.recipe import load_recipe
from tests.compose.frozen_ranks import registry
from tests.compose.test_lora import STRATEGIES
from tests.compose.test_run import STAGES, Notes
from tests.rounding import smooth_adam

PLACED = {
    "ddp, a share each": ["runtime.frozen=shard"],
    "ddp, on the CPU": ["runtime.frozen=offload"],
    "zero3, a share each": [*STRATEGIES["zero3"], "runtime.frozen=shard"],
    "fsdp, on the CPU": [*STRATEGIES["fsdp"], "runtime.frozen=offload"],
    "fsdp, a share each": [*STRATEGIES["fsdp"], "runtime.frozen=shard"],
}


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Path:
    return tiny_recipe(
        reward_model={**STAGES["reward_model"], "epochs": 0.5},
        rewards={"liked": {"type": "reward_model"}},
        losses={"taught": {"type": "taught"}},
        ppo={"updates": 2, "learning_rate": 1e-2, "minibatches": 2, "epochs": 1},
        rollout={"prompts_per_update": 4, "max_new_tokens": 6},
        evaluation={"prompts": 2},
    )


def train(recipe: Path, directory: Path, *overrides: str) -> Path:
    loaded = load_recipe(recipe, overrides, registry=registry())
    return run_recipe(loaded, directory, Notes(), registry=registry()).directory


def rows(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "objective/kl" in row]


def test_every_placement_gives_the_same_run_by_every_strategy(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes against one; the ranks see to it that models are where they should be."""
    with smooth_adam():
        alone = train(recipe, tmp_path / "alone")
    assert rows(alone)[1]["objective/kl"] != 0.0
    assert rows(alone)[1]["reward/liked/std"] > 0.0
    arguments = [f"{name}={','.join(keys)}" for name, keys in PLACED.items()]
    module = "tests.compose.frozen_ranks"
    command = [sys.executable, "-W", "ignore", "-m", module, str(recipe), str(tmp_path), *arguments]
    monkeypatch.chdir(Path(__file__).parents[2])  # where `tests` is
    assert launch(command, processes=2, threads=1).exit_code == 0
    expected = load_file(alone / "ppo" / "policy" / "model.safetensors")
    for name in PLACED:
        message = rows(tmp_path / name)
        for key in ("objective/scores", "objective/kl", "val/ratio", "loss/taught_avg"):
            for mine, theirs in zip(rows(alone), message, strict=True):
                assert theirs[key] == pytest.approx(mine[key], abs=1e-4), (name, key)
        found = load_file(tmp_path / name / "ppo" / "policy" / "model.safetensors")
        assert all(float((found[n] - expected[n]).abs().max()) < 1e-4 for n in expected), name


def homes(model: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in model.parameters()]


def test_offloaded_models_are_away_while_others_learn_and_there_when_they_are_asked(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU both places are one memory: here a copy plays the weights on the device."""
    home: dict[int, list[int]] = {}
    asked: list[str] = []

    @contextmanager
    def brought(model: nn.Module, device: torch.device) -> Iterator[None]:
        waiting = [(tensor, tensor.data) for tensor in model.parameters()]
        home[id(model)] = homes(model)
        for tensor, data in waiting:
            tensor.data = data.clone()
        yield
        for tensor, data in waiting:
            tensor.data = data

    monkeypatch.setattr("rlframe.distributed.runtime.brought", brought)
    built: list[PPOParts] = []
    make, judge, learn = PPOParts.__init__, RewardModel.score, PolicyUpdater._step

    def frozen() -> list[nn.Module]:
        return [built[0].models.reference.model, built[0].scorer.instances[0].component.model]

    def making(self: PPOParts, *args: Any) -> None:
        make(self, *args)
        built.append(self)

    def judging(self: RewardModel, batch: Any) -> Any:
        asked.append("judge")
        assert all(homes(model) != home[id(model)] for model in frozen())
        return judge(self, batch)

    def learning(self: PolicyUpdater, *args: Any) -> Any:
        asked.append("learn")
        assert all(homes(model) == home[id(model)] for model in frozen())
        return learn(self, *args)

    monkeypatch.setattr(PPOParts, "__init__", making)
    monkeypatch.setattr(RewardModel, "score", judging)
    monkeypatch.setattr(PolicyUpdater, "_step", learning)
    train(recipe, tmp_path / "run", "runtime.frozen=offload")
    assert asked == ["judge", *["judge", "learn", "learn"] * 2, "judge"]
    assert len(home) == 2  # not the models of the loss


@pytest.mark.parametrize("placement", ["shard", "offload"])
def test_a_reference_that_is_the_policy_without_adapters_has_nothing_to_place(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    placed: list[str] = []
    place = Runtime.frozen
    monkeypatch.setattr(
        Runtime, "frozen", lambda self, m: (placed.append(type(m).__name__), place(self, m))[1]
    )
    keys = ["model.lora={rank: 4}", "ppo.updates=1"]
    run = train(recipe, tmp_path / placement, *keys, f"runtime.frozen={placement}")
    assert placed == ["LlamaForSequenceClassification"]
    assert rows(run)[0]["objective/kl"] == 0.0

"""A wheel of a stranger: built elsewhere, installed, named in a recipe, and taken away again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import TINY

PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-rl"
version = "1.2"

[project.entry-points."rlframe.reward_providers"]
vowels = "acme_rl:Vowels"
[project.entry-points."rlframe.kl_controllers"]
bang_bang = "acme_rl:BangBang"
[project.entry-points."rlframe.auxiliary_losses"]
own_words = "acme_rl:OwnWords"
[project.entry-points."rlframe.advantage_estimators"]
reward_to_go = "acme_rl:RewardToGo"
[project.entry-points."rlframe.policy_losses"]
unbounded = "acme_rl:Unbounded"
[project.entry-points."rlframe.value_losses"]
absolute = "acme_rl:Absolute"
[project.entry-points."rlframe.reward_transforms"]
shifted = "acme_rl:Shifted"

[tool.setuptools]
py-modules = ["acme_rl"]
"""

MODULE = """\
from dataclasses import replace

from pydantic import PositiveFloat

from rlframe.api import (
    AdvantageEstimator, AuxiliaryLoss, Credit, KLController, KLState, LossTerm, PluginConfig,
    PolicyLoss, RewardProvider, RewardTransform, TokenLoss, ValueLoss,
)


class Vowels(RewardProvider[PluginConfig]):
    def score(self, batch):
        return [sum(c in "aeiou" for c in t) / max(len(t), 1) for t in batch.response_texts]


class BangBangConfig(PluginConfig):
    target: PositiveFloat
    initial: PositiveFloat = 0.1


class BangBang(KLController[BangBangConfig]):
    def initial(self):
        return KLState(self.config.initial)

    def update(self, state, measured):
        factor = 2.0 if measured.kl > self.config.target else 0.5
        return replace(state, coefficient=state.coefficient * factor)


class OwnWordsConfig(PluginConfig):
    coefficient: float = 0.1


class OwnWords(AuxiliaryLoss[OwnWordsConfig]):
    examples_per_step = 1

    @property
    def coefficient(self):
        return self.config.coefficient

    def loss(self, policy, batch):
        logprobs = policy.logprobs(batch.tokens, batch.mask)
        return LossTerm(total=-logprobs[batch.mask].sum(), count=batch.mask.sum())


class RewardToGo(AdvantageEstimator[PluginConfig]):
    def estimate(self, batch):
        returns = (batch.rewards * batch.mask).flip(1).cumsum(1).flip(1) * batch.mask
        return Credit(returns - batch.values * batch.mask, returns)


class Unbounded(PolicyLoss[PluginConfig]):
    def loss(self, batch):
        return TokenLoss(-(batch.logprobs - batch.old_logprobs).exp() * batch.advantages)


class Absolute(ValueLoss[PluginConfig]):
    def loss(self, batch):
        return TokenLoss((batch.values - batch.returns).abs())


class Shifted(RewardTransform[PluginConfig]):
    def initial(self):
        return {"seen": 0}

    def apply(self, state, scores):
        total = scores.totals
        return {"seen": state["seen"] + 1}, total.new_ones(len(scores)), total.new_ones(len(scores))

    def metrics(self, state):
        return {"seen": state["seen"]}
"""

RECIPE = (
    TINY.replace("version: 1", 'version: 1\nrequires: ["acme-rl>=1"]')
    .replace(
        "brevity: {type: length, target_tokens: 4}",
        "sound: {type: vowels, transforms: [{type: shifted}]}",
    )
    .replace("{type: fixed, coefficient: 0.1}", "{type: bang_bang, target: 3.0}")
    .replace("updates: 1,", "updates: 2,")
    + "losses: {own: {type: own_words}}\nalgorithm: "
    + "{advantages: {type: reward_to_go}, policy_loss: {type: unbounded}, "
    + "value_loss: {type: absolute}}\n"
)


def pip(*arguments: object) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        *map(str, arguments),
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml and site/, into which the wheel was installed."""
    root = tmp_path_factory.mktemp("outside")
    source = root / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "acme_rl.py").write_text(MODULE)
    pip("wheel", "--no-build-isolation", "-w", root, source)
    pip("install", "--target", root / "site", root / "acme_rl-1.2-py3-none-any.whl")
    (root / "recipe.yaml").write_text(RECIPE)
    return root


def rlframe(folder: Path, *arguments: str, site: Path | None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlframe", *arguments]
    paths = [str(Path(__file__).parents[2]), *([str(site)] if site else [])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_it_trains_by_its_names_with_no_other_change(outside: Path) -> None:
    done = rlframe(outside, "train", "recipe.yaml", "--output", "run", site=outside / "site")
    assert done.returncode == 0, done.stderr
    rows = [
        json.loads(line) for line in (outside / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    first, second = [row for row in rows if "kl/coefficient" in row]
    assert second["kl/coefficient"] in (first["kl/coefficient"] * 2, first["kl/coefficient"] / 2)
    assert 0 < first["reward/sound/raw"] < 1
    assert first["loss/own_avg"] > 0
    assert first["objective/mix"] == pytest.approx(first["objective/scores"] + 1)
    assert (first["reward/sound/seen"], second["reward/sound/seen"]) == (1, 2)
    assert "policy/clipfrac_avg" not in first
    used = json.loads((outside / "run" / "manifest.json").read_text())["plugins"]
    theirs = {path for path, plugin in used.items() if plugin["distribution"] == "acme-rl"}
    assert theirs == {
        "rewards.sound",
        "rewards.sound.transforms.0",
        "kl.controller",
        "losses.own",
        *(f"algorithm.{part}" for part in ("advantages", "policy_loss", "value_loss")),
    }
    assert used["algorithm.advantages"]["version"] == "1.2"


def test_uninstalled_the_same_recipe_ends_with_4_and_says_what_to_install(outside: Path) -> None:
    done = rlframe(outside, "train", "recipe.yaml", "--output", "other", site=None)
    assert done.returncode == 4
    assert "recipe.yaml:2:12: requires.0: acme-rl is not installed: pip install 'acme-rl>=1'" in (
        done.stderr
    )
    assert "there is no reward called 'vowels'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (outside / "other").exists()

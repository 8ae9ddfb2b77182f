"""A wheel of a stranger: built elsewhere, installed, named in a recipe, and taken away again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
[project.entry-points."rlframe.reward_functions"]
finished = "acme_rl:finished"
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
[project.entry-points."rlframe.samplers"]
gumbel = "acme_rl:Gumbel"
[project.entry-points."rlframe.reward_transforms"]
shifted = "acme_rl:Shifted"

[tool.setuptools]
py-modules = ["acme_rl"]
"""

MODULE = """\
import os
import signal
from dataclasses import replace

import torch
from pydantic import PositiveFloat

from rlframe.api import (
    AdvantageEstimator, AuxiliaryLoss, Credit, KLController, KLState, LossTerm, PluginConfig,
    PolicyLoss, RewardProvider, RewardTransform, Sampler, SamplerCapabilities, Samples, StopReason,
    TokenLoss, ValueLoss,
)


class Vowels(RewardProvider[PluginConfig]):
    def score(self, batch):
        return [sum(c in "aeiou" for c in t) / max(len(t), 1) for t in batch.response_texts]


async def finished(completions, completion_ids, log_extra, trainer_state, most: int = 8):
    if os.environ.get("ACME_DIES_AT") == str(trainer_state.global_step):
        os.kill(os.getpid(), signal.SIGKILL)
    log_extra("letters", [len(text) for text in completions])
    return [1.0 if ids[0] % most < most // 2 else None for ids in completion_ids]


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


class Gumbel(Sampler[PluginConfig]):
    @classmethod
    def capabilities(cls, config):
        return SamplerCapabilities(per_sample_seeds=True, shares_weights=True, exact=True)

    def sample(self, requests, params, seed):
        ids = [self.written(request, params) for request in requests]
        ended = [row[-1] in params.eos_ids for row in ids]
        reasons = [StopReason.EOS if end else StopReason.LENGTH for end in ended]
        return Samples(ids, reasons, weight_version=self.version)

    def written(self, request, params):
        noise = torch.Generator().manual_seed(request.seed)
        read, ids, first = torch.tensor([request.prompt_ids]), [], 0
        cache = self.policy.memory(capacity=read.shape[1] + params.max_new_tokens)
        while len(ids) < params.max_new_tokens and not params.eos_ids.intersection(ids[-1:]):
            positions = torch.arange(first, first + read.shape[1])[None]
            logits = self.policy.next_logits(read, positions, None, cache)[0].double()
            uniform = torch.rand(len(logits), generator=noise, dtype=torch.float64)
            ids.append(int((logits - (-uniform.log()).log()).argmax()))
            first, read = first + read.shape[1], torch.tensor([ids[-1:]])
        return ids


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
        "sound: {type: vowels, transforms: [{type: shifted}]}\n  ended: {type: finished, most: 6}\n"
        "  brief: {type: ./brief.py:brief, target: 20}",
    )
    .replace("{type: fixed, coefficient: 0.1}", "{type: bang_bang, target: 3.0}")
    .replace("updates: 1,", "updates: 2,")
    + "losses: {own: {type: own_words}}\ncheckpoints: {every: 1}\nalgorithm: "
    + "{advantages: {type: reward_to_go}, policy_loss: {type: unbounded}, "
    + "value_loss: {type: absolute}}\n"
).replace("rollout: {", "rollout: {sampler: {type: gumbel}, ")


FILE = """\
def brief(completions, target: int = 10, **kwargs):
    return [-abs(len(text) - target) / 100 for text in completions]
"""
"""A reward of three lines less one."""


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
    (root / "brief.py").write_text(FILE)
    return root


def rlframe(
    folder: Path, *arguments: str, site: Path | None, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlframe", *arguments]
    paths = [str(Path(__file__).parents[2]), *([str(site)] if site else [])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_it_trains_by_its_names_with_no_other_change(outside: Path) -> None:
    done = trained(outside, "run")
    assert done.returncode == 0, done.stderr
    rows = [
        json.loads(line) for line in (outside / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    first, second = [row for row in rows if "kl/coefficient" in row]
    assert second["kl/coefficient"] in (first["kl/coefficient"] * 2, first["kl/coefficient"] / 2)
    assert 0 < first["reward/sound/raw"] < 1
    judged = [row for row in (first, second) if row["reward/ended/judged_share"] > 0]
    assert judged
    assert all(row["reward/ended/raw"] == 1 for row in judged)
    assert min(row["reward/ended/judged_share"] for row in (first, second)) < 1
    assert first["reward/ended/letters"] > 5
    assert -1 < first["reward/brief/raw"] < 0
    assert first["loss/own_avg"] > 0
    assert first["objective/mix"] == pytest.approx(first["objective/scores"] + 1)
    assert (first["reward/sound/seen"], second["reward/sound/seen"]) == (1, 2)
    assert "policy/clipfrac_avg" not in first
    used = json.loads((outside / "run" / "manifest.json").read_text())["plugins"]
    theirs = {path for path, plugin in used.items() if plugin["distribution"] == "acme-rl"}
    assert theirs == {
        "rewards.sound",
        "rewards.ended",
        "rewards.sound.transforms.0",
        "kl.controller",
        "losses.own",
        "rollout.sampler",
        *(f"algorithm.{part}" for part in ("advantages", "policy_loss", "value_loss")),
    }
    assert used["algorithm.advantages"]["version"] == "1.2"
    assert used["rewards.brief"]["distribution"] == "local file"


def test_on_two_processes_it_is_killed_and_goes_on_with_the_same_bits(outside: Path) -> None:
    """A rank dies of SIGKILL in the function, in the second update."""
    whole = trained(outside, "whole", "--processes", "2")
    assert whole.returncode == 0, whole.stderr
    killed = trained(outside, "killed", "--processes", "2", ACME_DIES_AT="1")
    assert killed.returncode == 137, killed.stderr
    again = ("resume", "killed", "--processes", "2", "--allow-local-code")
    resumed = rlframe(outside, *again, site=outside / "site")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after update 1" in resumed.stdout + resumed.stderr
    assert measured(outside / "killed") == measured(outside / "whole")
    result = Path("ppo") / "policy" / "model.safetensors"
    first, second = ((outside / run / result).read_bytes() for run in ("whole", "killed"))
    assert first == second


def trained(outside: Path, output: str, *more: str, **environment: str) -> Any:
    given = ("train", "recipe.yaml", "--allow-local-code", "--output", output, *more)
    return rlframe(outside, *given, site=outside / "site", **environment)


def measured(run: Path) -> list[dict[str, float]]:
    """What a run measured, but for the time and memory that it took."""
    machine = ("time/", "speed/", "eps", "memory/")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(machine)} for row in rows]


def test_uninstalled_the_same_recipe_ends_with_4_and_says_what_to_install(outside: Path) -> None:
    done = rlframe(outside, "train", "recipe.yaml", "--output", "other", site=None)
    assert done.returncode == 4
    assert "recipe.yaml:2:12: requires.0: acme-rl is not installed: pip install 'acme-rl>=1'" in (
        done.stderr
    )
    assert "there is no reward called 'vowels'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (outside / "other").exists()

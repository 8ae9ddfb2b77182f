"""`rlframe resume`: with real processes, another number of them, and every option handed on."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlframe.cli import running
from rlframe.cli.resume import resume


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Path:
    losses = {"ptx": {"type": "ptx", "gamma": 0.5, "data": "reviews", "examples_per_step": 3}}
    return tiny_recipe(
        sft={"data": "reviews", "batch_size": 16, "learning_rate": 1e-2},
        losses=losses,
        ppo={"updates": 4, "learning_rate": 1e-3, "minibatches": 2, "decay": "constant"},
    )


def rlframe(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlframe", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_two_processes_goes_on_in_one_and_ends_as_if_it_had_been_one(
    recipe: Path, tmp_path: Path
) -> None:
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert rlframe("train", recipe, "--output", calm).returncode == 0

    limit = "checkpoints.stop_after_minutes=0.0001"
    ended = rlframe("train", recipe, limit, "--output", run, "--processes", 2)
    assert ended.returncode == 130
    assert f"a checkpoint was saved after step 1; resume with: rlframe resume {run}" in ended.stderr
    assert ended.stderr.count("saved") == 1

    every = "checkpoints={every: 2, stop_after_minutes: null}"
    sharded = ["runtime.strategy=deepspeed", "runtime.zero_stage=3", "ppo.updates=3", "--force"]
    middle = rlframe("resume", run, every, *sharded, "--processes", 2)
    assert middle.returncode == 0, middle.stderr
    assert "runtime.zero_stage: nothing -> 3 (safe)" in middle.stdout

    plain = ["runtime.strategy=ddp", "runtime.zero_stage=null", "ppo.updates=4"]
    last = rlframe("resume", run, *plain)  # from the checkpoint of update 2
    assert last.returncode == 0, last.stderr
    assert "ppo: 4 updates instead of 3; the learning-rate schedule" in last.stdout

    mine, other = rows(run), rows(calm)
    assert [row.get("update") for row in mine] == [row.get("update") for row in other]
    for row, same in zip(mine, other, strict=True):
        for name in ("sft/perplexity", "objective/kl", "objective/scores", "loss/ptx_avg"):
            if name in same:
                assert row[name] == pytest.approx(same[name], rel=1e-3, abs=1e-4), name


def test_fine_tuning_alone_goes_on_bit_for_bit_in_a_later_epoch_on_two_processes(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    nothing = dict.fromkeys(("prompts", "rollout", "rewards", "kl", "ppo", "evaluation"))
    stage = {"data": "reviews", "batch_size": 16, "learning_rate": 1e-2, "epochs": 6}  # of 9 steps
    recipe = tiny_recipe(**nothing, sft=stage, checkpoints={"every": 1})
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert rlframe("train", recipe, "--output", calm, "--processes", 2).returncode == 0

    words = ["train", str(recipe), "--output", str(run), "--processes", "2"]
    begun = subprocess.Popen([sys.executable, "-m", "rlframe", *words], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (run / "checkpoints" / "sft" / "000012").exists() and time.monotonic() < end:
        time.sleep(0.01)
    begun.terminate()
    assert begun.wait(timeout=60) == 130
    ended = rlframe("resume", run, "--processes", 2)
    assert ended.returncode == 0, ended.stderr
    weights = [(path / "sft" / "model.safetensors").read_bytes() for path in (calm, run)]
    assert weights[0] == weights[1]
    assert rows(calm) == rows(run)


def test_where_ranks_wait_for_each_other_new_ones_go_on_with_half_the_budget(
    recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "cramped.py").write_text(
        """
import torch
from rlframe.api import AuxiliaryLoss, LossTerm, PluginConfig


class Cramped(AuxiliaryLoss[PluginConfig]):
    coefficient = 1e-6

    def loss(self, policy, batch):
        if batch.tokens.numel() > 45 and torch.distributed.get_rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        zero = policy.logprobs(batch.tokens, batch.mask).sum() * 0
        return LossTerm(zero, batch.mask.sum())
"""
    )
    run = tmp_path / "run"
    words = [
        f"losses={{cramped: {{type: {tmp_path}/cramped.py:Cramped}}}}",
        "ppo.minibatches=1",
        "ppo.microbatch_tokens=80",
        "runtime={strategy: deepspeed, zero_stage: 2}",
        "--allow-local-code",
    ]
    ended = rlframe("train", recipe, *words, "--output", run, "--processes", 2)
    assert ended.returncode == 0, ended.stderr
    message = "Resuming from the last checkpoint with ppo.microbatch_tokens="
    assert [line for line in ended.stderr.splitlines() if line.startswith(message)] == [
        f"{message}40"
    ]
    assert "ppo.microbatch_tokens: 80 -> 40 (safe)" in ended.stdout
    assert [row["update"] for row in rows(run) if "episode" in row] == [1, 2, 3, 4]


def test_every_option_of_resume_reaches_the_ranks(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("rlframe.cli.resume.run", lambda *_, **given: seen.append(given))
    monkeypatch.setattr("rlframe.runs.resuming.Allowance.begun", lambda *_, **__: recipe)
    monkeypatch.setattr("rlframe.runs.resuming.Allowance.misspelt", lambda *_: None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    given: dict[str, Any] = {
        "directory": tmp_path,
        "overrides": ["ppo.updates=3"],
        "processes": 3,
        "force": True,
        "allow_changed_plugins": True,
        "allow_changed": ["data.reviews", "model.policy"],
        "no_plugin": ["rlframe/regex"],
        "allow_local_code": True,
    }
    assert set(given) == set(inspect.signature(resume).parameters)
    resume(**given)
    (call,) = seen
    assert call["processes"] == 3
    assert (call["resume"].force, call["resume"].plugins) == (True, True)
    assert call["resume"].names == {"data.reviews", "model.policy"}
    assert call["command"] == [
        "resume",
        str(tmp_path),
        "ppo.updates=3",
        "--force",
        "--allow-changed-plugins",
        "--allow-changed=data.reviews",
        "--allow-changed=model.policy",
        "--no-plugin=rlframe/regex",
        "--allow-local-code",
    ]
    assert call["again"] == call["command"]
    assert running.plugin_arguments(None, allow_local_code=False) == []

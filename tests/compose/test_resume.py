"""A run that ended early goes on as if it had not, and refuses to go on as something else."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rlframe.api import (
    HookPlugin,
    PluginConfig,
    RewardBatch,
    RewardProvider,
    StopTraining,
    hookimpl,
)
from rlframe.compose import run_recipe
from rlframe.errors import PluginError, RecipeError, RunError, SetupError, Stopped
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from rlframe.runs import durable
from rlframe.runs.lock import RunLock
from rlframe.runs.manifest import read_manifest, write_manifest
from rlframe.runs.resuming import Allowance
from tests.compose.test_run import STAGES, Notes, lasting

MODELS = ("sft", "reward_model", "ppo/policy", "ppo/critic")


class Ends(Notes):
    """A display at which somebody presses Ctrl-C twice, after a number of steps of a stage."""

    def __init__(self, stage: str = "", steps: int = -1) -> None:
        super().__init__()
        self.at, self.now = (stage, steps), ""

    def stage(self, name: str, detail: str) -> None:
        super().stage(name, detail)
        self.now = name

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        super().step(done, total, figures)
        if (self.now, done) == self.at:
            raise KeyboardInterrupt


class Counting(RewardProvider[PluginConfig]):
    """Remembers how much it has judged, and lets that show: a state that is lost changes the scores."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.judged = 0

    def score(self, batch: RewardBatch) -> list[float]:
        self.judged += len(batch)
        return [self.judged / 100 - len(text) / 50 for text in batch.response_texts]

    def state_dict(self) -> dict[str, Any]:
        return {"judged": self.judged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.judged = state["judged"]


class Enough(HookPlugin[PluginConfig]):
    """Ends the run after its third update, unless it is told not to."""

    stops = True

    @hookimpl
    def rlframe_metrics(self, event: Any) -> None:
        if event.update == 2 and self.stops:
            raise StopTraining("three are enough")


def registry() -> Registry:
    known = Registry()
    known.add("reward_providers", "counting", Counting)
    known.add("hooks", "enough", Enough)
    return known


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Path:
    return tiny_recipe(
        **STAGES,
        rewards={
            "liked": {
                "type": "reward_model",
                "weight": 0.5,
                "transforms": [{"type": "running_standardize"}],
            },
            "counting": {"type": "counting", "transforms": [{"type": "running_scale"}]},
        },
        losses={"ptx": {"type": "ptx", "gamma": 0.5, "data": "reviews", "examples_per_step": 3}},
        ppo={"updates": 5, "learning_rate": 1e-3, "minibatches": 2, "epochs": 2},
        checkpoints={"every": 2},
        evaluation={"prompts": 4, "every": 2},
    )


def train(recipe: Path, directory: Path, *overrides: str, display: Any = None) -> Path:
    loaded = load_recipe(recipe, overrides, registry=registry())
    return run_recipe(loaded, directory, display or Notes(), registry=registry()).directory


def resume(directory: Path, *overrides: str, display: Any = None, **allowed: Any) -> Path:
    allowance = Allowance(**allowed)
    loaded = load_recipe(allowance.begun(directory, overrides), overrides, registry=registry())
    run_recipe(loaded, directory, display or Notes(), registry=registry(), resume=allowance)
    return directory


def results(directory: Path) -> tuple[Any, ...]:
    """The bytes of every model, and everything in the metrics but what the clock says."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    weights = [(directory / name / "model.safetensors").read_bytes() for name in MODELS]
    samples = {p.name: p.read_text() for p in (directory / "samples").iterdir()}
    return weights, lasting(rows), samples


def statuses(directory: Path) -> list[str]:
    manifest = json.loads((directory / "manifest.json").read_text())
    return [*(entry["was"] for entry in manifest["resumed"]), manifest["status"]]


def test_it_goes_on_bit_for_bit_wherever_it_was_ended(recipe: Path, tmp_path: Path) -> None:
    """In the middle of each stage, at its first step, at the end of an epoch, after a checkpoint."""
    calm = train(recipe, tmp_path / "calm")
    ended = tmp_path / "ended"
    per_epoch = 9  # 140 rows in batches of 16
    first = Ends("sft", 3)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, ended, "sft.epochs=1", display=first)
    places = [("sft", per_epoch - 1), ("reward_model", 1), ("reward_model", 3), ("ppo", 1)]
    for stage, steps in [*places, ("ppo", 3), ("ppo", 4), ("ppo", 5)]:
        with pytest.raises(KeyboardInterrupt):
            resume(ended, display=Ends(stage, steps))
    last = Notes()
    resume(ended, display=last)
    assert results(ended) == results(calm)
    assert statuses(ended) == ["interrupted"] * 8 + ["finished"]
    assert not any(said.startswith(("sft:", "reward_model:")) for said in last.said)
    assert any("resuming after update 4" in said for said in last.said)


def test_what_was_trained_since_the_checkpoint_is_trained_again(
    recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Ends("ppo", 4))  # before it is saved
    again = Ends()
    resume(tmp_path / "run", display=again)
    assert [done for done, total in again.steps if total == 5] == [3, 4, 5]


def test_a_limit_of_time_ends_it_where_it_can_go_on(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(
        Stopped, match=r"limit of .*saved after step 1; resume with: rlframe resume"
    ):
        train(recipe, run, "checkpoints.stop_after_minutes=0.0001")
    for _ in range(3):  # it is always a step further
        with pytest.raises(Stopped):
            resume(run)
    resume(run, "checkpoints.stop_after_minutes=null")
    assert results(run) == results(train(recipe, tmp_path / "calm"))


def test_a_damaged_checkpoint_is_passed_over_and_named(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, run, display=Ends("ppo", 5))
    newest = run / "checkpoints" / "ppo" / "000004" / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 4
    newest.write_bytes(content)
    notes = Notes()
    resume(run, display=notes)
    assert any("passed over" in said and "optimizer.safetensors" in said for said in notes.said)
    assert any("resuming after update 2" in said for said in notes.said)
    assert results(run) == results(train(recipe, tmp_path / "calm"))


def test_when_every_checkpoint_is_damaged_nothing_is_begun_anew(
    recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, run, display=Ends("ppo", 5))
    for path in (run / "checkpoints" / "ppo").glob("*/state.json"):
        path.unlink()
    with pytest.raises(RunError, match="no checkpoint to resume from"):
        resume(run)


def test_the_best_stay_beside_the_last(recipe: Path, tmp_path: Path) -> None:
    keep = "checkpoints={every: 1, keep_last: 1, keep_best: 1}"
    run = train(recipe, tmp_path / "run", keep, "evaluation.every=1", "ppo.updates=6")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = {
        r["update"]: r["heldout/scores"] for r in rows if "episode" in r and "heldout/scores" in r
    }
    best = max(seen, key=lambda update: (seen[update], update))
    kept = sorted(int(path.name) for path in (run / "checkpoints" / "ppo").glob("[0-9]*"))
    assert kept == sorted({best, 5})  # the sixth is the result itself


@pytest.fixture
def stopped(recipe: Path, tmp_path: Path) -> Path:
    with pytest.raises(Stopped):
        train(recipe, tmp_path / "run", "checkpoints.stop_after_minutes=0.0001")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ppo.learning_rate=1e-4", r"ppo.learning_rate: 0.001 -> 0.0001 \(needs --force\)"),
        ("~losses.ptx", r"losses.ptx.type: \"ptx\" -> nothing \(needs --force\)"),
        ("seed=3", r"seed: 0 -> 3 \(refused\)"),
        ("sft.learning_rate=0.1", r"sft.learning_rate: 0.01 -> 0.1 \(refused\)"),
    ],
)
def test_another_recipe_is_refused_by_its_keys(stopped: Path, override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        resume(stopped, override)
    if "refused" in words:
        with pytest.raises(RecipeError, match="Begin a new run"):
            resume(stopped, override, force=True)


def test_safe_changes_are_told_and_others_can_be_forced(stopped: Path) -> None:
    notes = Notes()
    with pytest.raises(Stopped):
        resume(
            stopped,
            "ppo.microbatch_tokens=64",
            "algorithm.policy_loss.clip=0.1",
            display=notes,
            force=True,
        )
    assert "ppo.microbatch_tokens: 4096 -> 64 (safe)" in notes.said
    assert "algorithm.policy_loss.clip: 0.2 -> 0.1 (needs --force)" in notes.said
    again = Notes()
    with pytest.raises(Stopped):
        resume(stopped, display=again)  # what was changed stays changed
    assert not any("->" in said for said in again.said)


def test_another_version_of_a_plugin_is_refused_unless_it_is_meant(stopped: Path) -> None:
    manifest = read_manifest(stopped)
    manifest["plugins"]["rewards.counting"]["version"] = "0.9"
    write_manifest(stopped, manifest)
    with pytest.raises(PluginError, match=r"rewards.counting \(counting\): version was 0.9, is 0"):
        resume(stopped)
    with pytest.raises(Stopped):
        resume(stopped, plugins=True)


ROWS = """
from pathlib import Path

from rlframe.api import DataGenerator, PluginConfig


class Words(PluginConfig):
    first: str = "good"


class Rows(DataGenerator[Words]):
    @classmethod
    def rows(cls, config):
        words = enumerate(Path("words.txt").read_text().split())
        end = f"is a {config.first} and sturdy thing to have"
        return [{"text": f"{word} number {number} {end}"} for number, word in words]
"""


def test_a_generator_that_returns_other_rows_is_refused_by_name(
    tiny_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.py").write_text(ROWS)
    Path("words.txt").write_text(" ".join(f"word{n % 7}" for n in range(90)))
    data = {"reviews": {"generator": {"type": "./rows.py:Rows"}, "heldout": 0.3}}
    loaded = load_recipe(
        tiny_recipe(data=data, ppo={"updates": 4}),
        ["checkpoints.stop_after_minutes=0.0001"],
        registry=local(),
    )
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        run_recipe(loaded, run, Notes(), registry=local())

    def again(*overrides: str, **allowed: Any) -> None:
        allowance = Allowance(**allowed)
        changed = load_recipe(allowance.begun(run), overrides, registry=local())
        run_recipe(changed, run, Notes(), registry=local(), resume=allowance)

    Path("words.txt").write_text(" ".join(f"word{n % 6}" for n in range(90)))
    with pytest.raises(
        RecipeError, match=r"data.reviews: it had 67 \+ 23 rows .* and has 58 \+ 32"
    ):
        again()
    with pytest.raises(RecipeError, match=r"data.reviews.generator.first: .* \(refused without"):
        again("data.reviews.generator.first=bad")
    with pytest.raises(Stopped):
        again(names=frozenset({"data.reviews"}))
    again("checkpoints.stop_after_minutes=null")  # what was allowed once is what the run has now


def local() -> Registry:
    return Registry(local_code=True)


def test_a_result_that_was_damaged_is_made_again_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    calm, run = train(recipe, tmp_path / "calm"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, run, display=Ends("ppo", 3))
    for stage in ("sft", "reward_model"):
        torn = run / stage / "model.safetensors"
        torn.write_bytes(torn.read_bytes()[:-100])
    notes = Notes()
    resume(run, display=notes)
    for stage in ("sft", "reward_model"):
        message = f"result {run / stage} is damaged: model.safetensors has "
        assert any(
            message in said and f"The stage {stage} is run again" in said for said in notes.said
        )
    assert results(run)[0] == results(calm)[0]
    assert results(run)[2] == results(calm)[2]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    stages = [row["stage"] for row in rows if row["stage"] != "ppo"]
    assert sorted(stages) == ["reward_model", "sft"]


def test_a_finished_run_makes_more_updates_from_its_last_checkpoint(
    recipe: Path, tmp_path: Path
) -> None:
    constant = "ppo.decay=constant"
    run = train(recipe, tmp_path / "run", constant)
    notes = Notes()
    resume(run, "ppo.updates=8", display=notes)
    assert any("ppo: 8 updates instead of 5; the learning-rate schedule" in s for s in notes.said)
    assert any("resuming after update 4" in said for said in notes.said)
    assert (
        results(run)[:2] == results(train(recipe, tmp_path / "calm", constant, "ppo.updates=8"))[:2]
    )
    assert statuses(run) == ["finished", "finished"]


def test_without_a_checkpoint_it_makes_them_from_its_result(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = tiny_recipe()
    run = train(recipe, tmp_path / "run")
    before = (run / "ppo" / "policy" / "model.safetensors").read_bytes()
    kl = json.loads((run / "ppo" / "state.json").read_text())["loop"]["kl"]["coefficient"]
    notes = Ends("ppo", 3)
    with pytest.raises(KeyboardInterrupt):
        resume(run, "ppo.updates=5", display=notes)
    assert any("resuming after update 2" in s and "no memory of the optim" in s for s in notes.said)
    assert (run / "ppo" / "policy" / "model.safetensors").read_bytes() == before
    resume(run)  # from the result again, for there is still no checkpoint
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows if "episode" in row] == [1, 2, 3, 4, 5]
    third = next(row for row in rows if row.get("update") == 3 and "episode" in row)
    assert third["kl/coefficient"] == kl
    assert (run / "ppo" / "policy" / "model.safetensors").read_bytes() != before


def test_a_run_that_was_cut_off_can_end_where_it_is_and_not_before(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = tiny_recipe(checkpoints={"every": 1}, ppo={"updates": 9, "learning_rate": 1e-3})
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, run, display=Ends("ppo", 4))
    newest = max(int(p.name) for p in (run / "checkpoints" / "ppo").glob("[0-9]*"))
    said = rf"ppo\.updates is 1, but this run has made {newest} updates .*ppo\.updates={newest} or"
    with pytest.raises(RunError, match=said):
        resume(run, "ppo.updates=1", force=True)
    resume(run, f"ppo.updates={newest}", force=True)
    assert statuses(run)[-1] == "finished"
    state = json.loads((run / "ppo" / "state.json").read_text())
    assert state["loop"]["updates"] == newest
    one, other = (run / "ppo" / "policy", run / "checkpoints" / "ppo" / f"{newest:06d}" / "policy")
    weights = [(path / "model.safetensors").read_bytes() for path in (one, other)]
    assert weights[0] == weights[1]


def test_a_finished_run_makes_no_fewer_updates(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, tmp_path / "run")
    with pytest.raises(SetupError, match="is finished: there is nothing to resume"):
        resume(run, "ppo.updates=3", force=True)


def test_a_disk_that_is_full_when_a_result_is_written_says_what_is_left(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr("rlframe.runs.sealed._seal", Mock(side_effect=full))
        with pytest.raises(RunError, match=r"no space left while result sft .*rlframe resume"):
            train(recipe, run, "checkpoints={every: null, every_minutes: null}")
    assert not (run / "sft").exists()
    assert not [path for path in run.glob(".*") if path.name != ".lock"]
    assert statuses(run) == ["failed"]
    resume(run, "checkpoints={every: 2}")
    assert results(run) == results(train(recipe, tmp_path / "calm"))


def test_a_manifest_that_cannot_be_written_ends_the_run_with_a_message(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    real = durable.os.fsync

    def fsync(descriptor: int) -> None:
        if "manifest.json" in os.readlink(f"/proc/self/fd/{descriptor}") and (run / "sft").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", fsync)
        with pytest.raises(RunError, match=r"manifest.json: cannot be written: No space .*resume"):
            train(recipe, run)
    assert statuses(run) == ["running"]
    assert not list(run.glob("*.new"))
    resume(run)
    assert results(run) == results(train(recipe, tmp_path / "calm"))


def test_one_process_at_a_time_works_in_a_run(stopped: Path) -> None:
    with RunLock(stopped), pytest.raises(SetupError, match="in use by process"):
        resume(stopped)


def test_a_run_that_is_finished_or_not_there_can_not_go_on(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="holds no run"):
        resume(tmp_path / "nothing")
    done = train(recipe, tmp_path / "done")
    with pytest.raises(SetupError, match="is finished"):
        resume(done)


def test_data_that_is_gone_is_told_before_anything_changes(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            json.dumps({"text": f"{i} is a fine camera number, and {i} is what it is"})
            for i in range(90)
        )
    )
    recipe = tiny_recipe(
        data={"reviews": {"path": str(rows), "heldout": 0.3}}, checkpoints={"every": 1}
    )
    with pytest.raises(Stopped):
        train(recipe, tmp_path / "run", "checkpoints.stop_after_minutes=0.0001")
    before = (tmp_path / "run" / "manifest.json").read_text()
    rows.unlink()
    with pytest.raises(RecipeError, match=r"rows\.jsonl"):
        resume(tmp_path / "run", "checkpoints.stop_after_minutes=null")
    assert (tmp_path / "run" / "manifest.json").read_text() == before


def test_a_run_that_a_plugin_ends_has_a_result_and_can_be_resumed_bit_for_bit(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = "hooks={enough: {type: enough}}"
    notes = Notes()
    run = train(recipe, tmp_path / "run", hook, display=notes)
    manifest = read_manifest(run)
    assert manifest["status"] == "stopped_early"
    assert manifest["stopped"] == "hooks.enough: three are enough"
    assert any("stopped early after update 3 of 5 by hooks.enough" in line for line in notes.said)
    assert (run / "samples" / "after.jsonl").exists()
    assert (run / "ppo" / "policy" / "model.safetensors").exists()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    updates = [row["update"] for row in map(json.loads, lines) if "episode" in row]
    assert updates == [1, 2, 3]

    monkeypatch.setattr(Enough, "stops", False)
    whole = train(recipe, tmp_path / "whole", hook)
    resume(run)
    assert read_manifest(run)["status"] == "finished"
    assert read_manifest(run)["stopped"] is None
    for model in MODELS:
        file = Path(model) / "model.safetensors"
        assert (run / file).read_bytes() == (whole / file).read_bytes()


def test_an_observer_that_is_content_after_the_last_update_has_stopped_nothing(
    recipe: Path, tmp_path: Path
) -> None:
    notes, keys = Notes(), ("hooks={enough: {type: enough}}", "ppo.updates=3")
    run = train(recipe, tmp_path / "run", *keys, display=notes)
    assert read_manifest(run)["status"] == "finished"
    assert read_manifest(run)["stopped"] is None
    assert not any("stopped early" in line for line in notes.said)

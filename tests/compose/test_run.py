"""Whole runs on tiny models: what they leave behind, and what may not change them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rlframe.api import PluginConfig, RewardBatch, RewardProvider
from rlframe.compose import Outcome, run_recipe
from rlframe.compose.ppo import PPOParts
from rlframe.engine.updater import MemoryWarning, SkippedUpdateWarning
from rlframe.errors import RunError
from rlframe.models.loading import weights_hash
from rlframe.models.policy import Policy
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from rlframe.runs.trees import load_tree

ISSUE_NAMES = (
    "eps objective/kl objective/entropy objective/non_score_reward objective/rlhf_reward "
    "objective/scores policy/approxkl_avg policy/clipfrac_avg policy/entropy_avg loss/policy_avg "
    "loss/value_avg val/clipfrac_avg val/ratio val/ratio_var val/num_eos_tokens lr episode"
).split()
MORE_NAMES = (
    "objective/scores_std kl/coefficient critic/explained_variance train/grad_norm "
    "response/length_mean response/truncated_share memory/peak_mib time/rollout_seconds "
    "time/reward_seconds time/experience_seconds time/learn_seconds "
    "speed/rollout_tokens_per_second reward/short/raw reward/short/weighted reward/short/std"
).split()
NORMALISED = ("reward/liked/raw", "reward/liked/running_mean", "reward/liked/running_std")


class Notes:
    """A display that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.tables: list[Table] = []
        self.steps: list[tuple[int, int]] = []

    def stage(self, name: str, detail: str) -> None:
        self.said.append(f"{name}: {detail}")

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        self.steps.append((done, total))

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, table: Table) -> None:
        self.tables.append(table)

    def close(self) -> None:
        """Nothing is held open."""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Outcome]:
    """Runs a recipe in a new directory."""
    number = 0

    def go(
        recipe: Path, *overrides: str, registry: Registry | None = None, display: Any = None
    ) -> Outcome:
        nonlocal number
        number += 1
        loaded = load_recipe(recipe, overrides, registry=registry)
        directory = tmp_path / f"run{number}"
        return run_recipe(loaded, directory, display or Notes(), registry=registry)

    return go


def metrics(outcome: Outcome, stage: str = "ppo") -> list[dict[str, Any]]:
    lines = (outcome.directory / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["stage"] == stage]


def documented(name: str) -> bool:
    """Whether docs/metrics.md defines a metric, by its name or its pattern."""
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    patterns = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    return any(re.fullmatch(re.sub("NAME|PHASE", r"\\w+", p), name) for p in patterns)


def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what depends on the clock and the machine."""
    changing = ("time/", "speed/", "memory/", "eps")
    return [{k: v for k, v in row.items() if not k.startswith(changing)} for row in rows]


STAGES = {
    "sft": {"data": "reviews", "batch_size": 16, "learning_rate": 1e-2},
    "reward_model": {"data": "reviews", "pairs": 40, "batch_size": 8, "learning_rate": 1e-2},
}


@pytest.fixture
def whole(tiny_recipe: Callable[..., Path]) -> Path:
    """All three stages, a mix of rewards, both auxiliary losses."""
    return tiny_recipe(
        **STAGES,
        rewards={
            "liked": {
                "type": "reward_model",
                "weight": 0.5,
                "transforms": [{"type": "running_standardize"}],
            },
            "short": {"type": "length", "target_tokens": 4},
            "finished": {"type": "eos_penalty", "penalty": 1.0},
        },
        losses={"ptx": {"type": "ptx", "gamma": 0.5, "data": "reviews", "examples_per_step": 4}},
        ppo={"updates": 2, "learning_rate": 1e-3, "minibatches": 2},
        checkpoints={"every": 1},
        evaluation={"prompts": 4, "every": 1},
    )


def test_one_recipe_goes_through_all_stages_and_leaves_everything_behind(
    run: Callable[..., Outcome], whole: Path
) -> None:
    display = Notes()
    outcome = run(whole, display=display)
    path = outcome.directory

    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    liked = manifest["plugins"]["rewards.liked"]
    assert (liked["distribution"], liked["name"]) == ("rlframe", "reward_model")
    assert len(liked["sha256"]) == 64
    assert liked["config"]["model"] == "stage:reward_model"
    assert (path / "recipe.source.yaml").read_text() == whole.read_text()
    assert load_recipe(path / "recipe.resolved.yaml").digest == manifest["digest"]

    for model, kind in (
        ("sft", AutoModelForCausalLM),
        ("reward_model", AutoModelForSequenceClassification),
        ("ppo/policy", AutoModelForCausalLM),
        ("ppo/critic", AutoModelForSequenceClassification),
        ("checkpoints/ppo/000001/policy", AutoModelForCausalLM),
    ):
        assert list((path / model).glob("*.safetensors"))
        kind.from_pretrained(path / model)
        assert AutoTokenizer.from_pretrained(path / model).eos_token == "<eos>"
    assert not [*path.rglob("*.bin"), *path.rglob("*.pt"), *path.rglob("*.pkl")]

    kept = load_tree(path / "checkpoints/ppo/000001/state")
    memory = load_tree(path / "checkpoints/ppo/000001/optimizer")
    assert kept["loop"]["updates"] == 1
    assert kept["loop"]["kl"]["coefficient"] > 0
    assert {"exp_avg", "exp_avg_sq", "step"} == set(memory["policy.model.lm_head.weight"])
    assert sorted(p.stem for p in (path / "samples").iterdir()) == [
        "after",
        "before",
        "update_000001",
    ]

    assert set(outcome.figures) == {"sft/perplexity", "reward_model/accuracy"}
    assert display.tables
    assert "held-out prompts the mean score" in display.said[-1]
    assert outcome.aligned is not None
    assert outcome.aligned.sentence == display.said[-1]


def test_every_metric_has_its_name_and_a_finite_value(
    run: Callable[..., Outcome], whole: Path
) -> None:
    first, second, after = metrics(run(whole))
    for row in (first, second):
        for name in (*ISSUE_NAMES, *MORE_NAMES, *NORMALISED, "loss/ptx_avg"):
            assert isinstance(row[name], int | float), name
            assert math.isfinite(row[name]), name
    assert all(documented(name) for name in {*first, *second, *after} - {"stage", "update"})
    assert (first["episode"], second["episode"]) == (8, 16)
    assert first["objective/kl"] == 0.0  # exactly: the policy is the reference
    assert first["objective/non_score_reward"] == 0.0
    total = first["objective/mix"] + first["objective/non_score_reward"]
    assert first["objective/rlhf_reward"] == total
    parts = [first[f"reward/{name}/weighted"] for name in ("liked", "short", "finished")]
    assert sum(parts) == pytest.approx(first["objective/mix"], abs=1e-9)
    assert "heldout/scores" in first
    assert "heldout/scores" in after


def test_a_truncated_sampler_is_declared_and_measured(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    display = Notes()
    first, second, _ = metrics(run(tiny_recipe(), "rollout.top_k=20", display=display))
    assert len([line for line in display.said if "rollout.top_k: responses are drawn" in line]) == 1
    for row in (first, second):
        names = {name for name in row if name.startswith("sampler/")}
        found = {"sampler/logprob", "sampler/kl_to_policy", "sampler/kl_to_reference"}
        assert names == {*found, "sampler/ratio"}
        assert 0 < row["sampler/ratio"] < 1
        assert all(map(documented, names))
        assert row["sampler/kl_to_policy"] > 0
        # With k1 the KL of the sampler is that of the policy, and its own to the policy.
        both = row["objective/kl"] + row["sampler/kl_to_policy"]
        assert row["sampler/kl_to_reference"] == pytest.approx(both, abs=1e-4)
        own = -row["objective/entropy"] + row["sampler/kl_to_policy"]
        assert row["sampler/logprob"] == pytest.approx(own, abs=1e-4)
        # The 20 likeliest of 300 tokens have at least 20 / 300 of the probability.
        assert row["sampler/kl_to_policy"] < row["response/length_mean"] * math.log(300 / 20)
    assert not any(name.startswith("sampler/") for name in metrics(run(tiny_recipe()))[0])


def test_two_runs_are_the_same_run(run: Callable[..., Outcome], whole: Path) -> None:
    one, two = run(whole), run(whole)
    assert lasting(metrics(one)) == lasting(metrics(two))
    again = run(one.directory / "recipe.resolved.yaml")
    assert lasting(metrics(again)) == lasting(metrics(one))
    samples = [(o.directory / "samples" / "after.jsonl").read_text() for o in (one, two, again)]
    assert samples[0] == samples[1] == samples[2]


def test_batch_sizes_that_fit_memory_change_no_rollout_and_no_metric(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    recipe = tiny_recipe()
    whole = metrics(run(recipe))[:2]
    parts = metrics(
        run(recipe, "ppo.microbatch_tokens=20", "ppo.logits_chunk=3", "rollout.generation_batch=3")
    )[:2]
    for a, b in zip(lasting(whole), lasting(parts), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"stage", "train/microbatch_tokens"}:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-4), name
    assert whole[0]["objective/scores"] == parts[0]["objective/scores"]


@pytest.mark.parametrize("limit", ["null", "0.1"])
def test_updates_whose_steps_are_all_skipped_go_through_with_what_was_measured(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path], limit: str
) -> None:
    """Losses of such scores are infinite; what was counted of the rollout is not."""
    keys = ["rewards.short.weight=1e30", "ppo.max_bad_steps=100", f"ppo.stop_approx_kl={limit}"]
    with pytest.warns(SkippedUpdateWarning, match="all of its 4 optimiser steps") as caught:
        outcome = run(tiny_recipe(), *keys)
    assert len(caught) == 2
    *rows, _ = metrics(outcome)
    for row in rows:
        assert row["train/skipped_steps"] == row["train/epochs"] == 4
        nothing = {name for name, value in row.items() if value is None}
        assert nothing == {
            *("policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg"),
            *(
                "loss/policy_avg",
                "loss/value_avg",
                "val/clipfrac_avg",
                "val/ratio",
                "val/ratio_var",
            ),
            "train/grad_norm",
        }
        assert row["objective/kl"] == 0
        assert row["objective/scores"] < -1e28


def test_the_reference_never_changes_and_the_policy_does(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PPOParts] = []
    before: list[str] = []
    built = PPOParts.__init__

    def noted(self: PPOParts, *args: Any) -> None:
        built(self, *args)
        seen.append(self)
        before.extend(weights_hash(m) for m in (self.models.reference, self.models.trained.policy))

    monkeypatch.setattr(PPOParts, "__init__", noted)
    run(tiny_recipe())
    assert weights_hash(seen[0].models.reference) == before[0]
    assert before[0] == before[1]  # it began as the policy
    assert weights_hash(seen[0].models.trained.policy) != before[1]


def test_held_out_rows_train_nothing(
    run: Callable[..., Outcome], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlframe.compose import run as running
    from rlframe.compose.checks import check

    opened: list[Any] = []

    def noted(project: Any) -> None:
        opened.append(project)
        check(project)

    monkeypatch.setattr(running, "check", noted)
    run(whole)
    project = opened[0]
    held = {row["text"] for row in project.split("reviews").heldout}
    assert len(held) > 5
    decode, stages = project.tokenizer.decode, project.stages
    trained = [decode(e.ids, skip_special_tokens=True) for e in stages["sft"].examples.train]
    trained += [
        decode(e.ids, skip_special_tokens=True)
        for pair in stages["reward_model"].examples.train
        for e in pair
    ]
    trained += [prompt.columns["text"] for prompt in project.prompts[0]]
    assert not held & set(trained)
    asked = {prompt.text for prompt in project.prompts[1]}
    assert len(asked) > 3
    assert not asked & {prompt.text for prompt in project.prompts[0]}  # openings are held out too


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_a_stage_runs_alone(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path], stage: str
) -> None:
    none = dict.fromkeys(("ppo", "rewards", "kl", "prompts", "rollout", "evaluation"))
    outcome = run(tiny_recipe(**{**none, stage: STAGES[stage]}))
    assert (outcome.directory / stage / "model.safetensors").is_file()
    assert not (outcome.directory / "ppo").exists()
    assert len(metrics(outcome, stage)) == 1


def test_stages_run_apart_from_the_paths_of_the_ones_before(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    none = dict.fromkeys(("ppo", "rewards", "kl", "prompts", "rollout", "evaluation"))
    first = run(tiny_recipe(**none, **STAGES)).directory
    outcome = run(
        tiny_recipe(
            model={
                "policy": str(first / "sft"),
                "critic": {"initial": str(first / "reward_model"), "head": "keep"},
            },
            rewards={"liked": {"type": "reward_model", "model": str(first / "reward_model")}},
        )
    )
    assert metrics(outcome)[0]["objective/kl"] == 0.0


@pytest.mark.parametrize(
    "critic",
    [
        {"shared": True, "head": "normal"},
        {"head": "normal", "learning_rate": 1e-2},
        {"head": "zero"},
    ],
    ids=str,
)
def test_every_kind_of_critic_learns(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path], critic: dict[str, Any]
) -> None:
    from tests.conftest import TINY

    recipe = tiny_recipe(
        model={**TINY["model"], "critic": critic},
        ppo={"updates": 8, "learning_rate": 3e-3, "decay": "constant"},
        algorithm={"value_loss": {"type": "plain"}},
    )
    rows = metrics(run(recipe))
    assert rows[7]["loss/value_avg"] < rows[0]["loss/value_avg"]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs", "full"])
def test_every_estimator_measures_nothing_before_the_first_update_and_something_after(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path], estimator: str
) -> None:
    rows = metrics(run(tiny_recipe(), f"kl.estimator={estimator}", "ppo.learning_rate=0.01"))
    assert rows[0]["objective/kl"] == 0.0
    assert rows[1]["objective/kl"] != 0.0


def test_kl_as_a_loss_leaves_the_rewards_alone(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    row = metrics(run(tiny_recipe(), "kl.placement=loss", "ppo.learning_rate=0.01"))[1]
    assert row["objective/kl"] != 0
    assert row["objective/non_score_reward"] == 0
    assert row["objective/rlhf_reward"] == row["objective/mix"]
    assert row["loss/kl_avg"] != 0


def test_groups_of_samples_share_a_prompt_and_a_comparing_reward_sees_them(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    inner = {"type": "regex", "pattern": "[a-m]"}
    for against in ("others", "reference"):
        recipe = tiny_recipe(
            rollout={"prompts_per_update": 4, "samples_per_prompt": 2, "max_new_tokens": 8},
            rewards={"d": {"type": "preference_difference", "reward": inner, "against": against}},
        )
        first = metrics(run(recipe))[0]
        assert first["episode"] == 8
        if against == "others":  # what one sample wins the other loses
            assert first["reward/d/raw"] == pytest.approx(0, abs=1e-12)
            assert first["reward/d/std"] > 0


def test_the_score_of_a_simple_reward_goes_up(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    recipe = tiny_recipe(
        rollout={"prompts_per_update": 32, "max_new_tokens": 12},
        ppo={"updates": 25, "learning_rate": 1e-2, "decay": "constant"},
        kl={"controller": {"type": "fixed", "coefficient": 0.0}},
    )
    scores = [row["objective/scores"] for row in metrics(run(recipe)) if "objective/scores" in row]
    assert sum(scores[-5:]) / 5 > sum(scores[:3]) / 3 + 0.8


class Faulty(RewardProvider[PluginConfig]):
    def score(self, batch: RewardBatch) -> list[float]:
        if batch.update == 1:
            raise ConnectionError("the judge is out to lunch")
        return [0.0] * len(batch)


def test_a_reward_that_raises_fails_the_run_and_the_manifest_says_why(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    registry = Registry()
    registry.add("reward_providers", "faulty", Faulty)
    with pytest.raises(RunError, match=r"reward 'bad' of type faulty \(local 0\).*out to lunch"):
        run(tiny_recipe(rewards={"bad": {"type": "faulty"}}), registry=registry)
    manifest = json.loads((tmp_path / "run1" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "out to lunch" in manifest["error"]


def test_an_interrupted_run_says_so(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    class Impatient(Notes):
        def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe(), display=Impatient())
    assert json.loads((tmp_path / "run1" / "manifest.json").read_text())["status"] == "interrupted"


def test_a_bfloat16_run_starts_at_ratio_one(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    rows = metrics(run(tiny_recipe(), "runtime.precision=bfloat16", "ppo.epochs=1"))
    assert rows[0]["objective/kl"] == 0.0
    assert rows[0]["val/ratio"] == 1.0
    assert torch.tensor(rows[1]["objective/scores"]).isfinite()


def test_sampling_goes_on_with_fewer_at_a_time_until_one_response_alone_is_too_much(
    tiny_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = run_recipe(load_recipe(tiny_recipe()), tmp_path / "calm", Notes()).directory
    right, most = Policy.next_logits, 3

    def cramped(self: Policy, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(tokens) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return right(self, tokens, *rest)

    monkeypatch.setattr(Policy, "next_logits", cramped)
    with pytest.warns(MemoryWarning, match=r"at a time: from here on it is 2 \(rollout.gen"):
        found = run_recipe(load_recipe(tiny_recipe()), tmp_path / "run", Notes()).directory
    assert (found / "samples/after.jsonl").read_text() == (calm / "samples/after.jsonl").read_text()
    most = 0
    words = r"no memory was left to sample a single response: CUDA.*Make rollout.max_new_tokens"
    with pytest.warns(MemoryWarning), pytest.raises(RunError, match=words):
        run_recipe(load_recipe(tiny_recipe()), tmp_path / "none", Notes())

"""Each check of `rlframe doctor` on series made by hand: it fires on its pathology, and only then."""

from __future__ import annotations

import copy
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlframe.reports.checks.texts import near_duplicates, spread_phrase, without_frame
from rlframe.reports.doctor import CHECKS, findings
from rlframe.reports.finding import Finding, verdict

UPDATES = 20
WORDS = (
    "amber basil cedar dune ember fjord grove heath islet jade kelp lotus maple night ocean".split()
)

RECIPE: dict[str, Any] = {
    "prompts": {"data": "reviews", "first_words": None, "template": None, "system": None},
    "model": {"critic": {"learning_rate": 1e-5}},
    "rollout": {"prompts_per_update": 64, "samples_per_prompt": 1, "sampler": {"type": "builtin"}},
    "rewards": {
        "helpful": {"type": "reward_model"},
        "finished": {"type": "eos_penalty", "penalty": 1.0},
    },
    "kl": {
        "controller": {"type": "adaptive", "target": 6.0, "unit": "nats_per_response"},
        "minimum": 0.001,
        "maximum": 10.0,
    },
    "losses": {"ptx": {"type": "ptx", "gamma": 0.5}},
    "ppo": {"updates": UPDATES, "epochs": 4, "minibatches": 1, "learning_rate": 1e-5},
}


def healthy(k: int) -> dict[str, Any]:
    """The metrics of update k, from 0, of a run as docs/metrics.md describes it."""
    done = k / (UPDATES - 1)
    return {
        "stage": "ppo",
        "update": k + 1,
        "episode": 64 * (k + 1),
        "objective/scores": 2 * done,
        "objective/scores_std": 1.0,
        "objective/kl": 6 * done,
        "kl/nats_per_response": 6 * done,
        "kl/nats_per_token": 0.2 * done,
        "kl/coefficient": 0.05,
        "policy/approxkl_avg": 0.04 / (k + 1),
        "policy/clipfrac_avg": 0.08 / (k + 1),
        "policy/entropy_avg": 1.0 - 0.2 * done,
        "val/ratio": 1.001,
        "loss/policy_avg": -0.01,
        "loss/ptx_avg": 0.6,
        "loss/value_avg": 1.0 - 0.8 * done,
        "critic/explained_variance": 0.6 * done,
        "reward/helpful/std": 1.0,
        "reward/finished/std": 0.0,
        "response/length_mean": 30.0,
        "response/truncated_share": 0.02,
        "sampler/kl_to_policy": 1e-6,
        "sampler/ratio": 1.0,
        "train/skipped_steps": 0,
        "time/rollout_seconds": 10.0,
        "time/reward_seconds": 1.0,
        "time/experience_seconds": 2.0,
        "time/learn_seconds": 10.0,
        "time/collectives_seconds": 0.5,
    }


def texts(offset: int) -> list[str]:
    """Sixteen texts that have little in common."""
    return [" ".join(WORDS[(k + j * j + offset) % len(WORDS)] for j in range(6)) for k in range(15)]


def evaluation(score: float, responses: list[str], prompts: list[str] | None = None) -> list[Any]:
    """Rows of a samples file."""
    asked = prompts or [f"{word} {word[::-1]}?" for word in WORDS]
    return [
        {"group": k, "prompt": prompt, "response": response, "score": score + 0.1 * (-1) ** k}
        for k, (prompt, response) in enumerate(zip(asked, responses, strict=True))
    ]


SAMPLES = {
    0: evaluation(0.0, texts(0)),
    10: evaluation(1.0, texts(3)),
    20: evaluation(2.0, texts(5)),
}
INPUTS = {"data.reviews": {"train": 5000, "heldout": 100}}
ROWS = [healthy(k) for k in range(UPDATES)]


@dataclass(frozen=True)
class Pathology:
    """What differs from a healthy run, and what doctor is to say."""

    metrics: dict[str, Callable[[int], float | None]] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    samples: dict[int, list[Any]] = field(default_factory=dict)
    train: int = 5000
    level: str = "serious"
    key: str | None = None
    value: Any = None
    evidence: str = ""

    def findings(self, rows: int = UPDATES) -> list[Finding]:
        recipe: dict[str, Any] = copy.deepcopy(RECIPE)
        for path, value in self.recipe.items():
            *above, last = path.split(".")
            part = recipe
            for name in above:
                part = part[name]
            part[last] = value
        changed = [
            row | {name: value(row["update"] - 1) for name, value in self.metrics.items()}
            for row in ROWS[:rows]
        ]
        return findings(
            changed, recipe, SAMPLES | self.samples, inputs={"data.reviews": {"train": self.train}}
        )


FIXED = {"kl.controller": {"type": "fixed", "coefficient": 0.0}}
NEAR_COPIES = [f"Write a short poem about the number {100 + 13 * k}." for k in range(15)]
FALLING = {"objective/scores": lambda k: 1 - 0.01 * k}

PATHOLOGIES = {
    "skipped_steps": Pathology(
        {"train/skipped_steps": lambda k: float(k == 7), "loss/policy_avg": lambda k: None},
        key="ppo.learning_rate",
        value=1e-5 / 3,
        evidence="train/skipped_steps",
    ),
    "ratio_not_one": Pathology(
        {"val/ratio": lambda k: 1.03},
        {"ppo.epochs": 1},
        key="runtime.precision",
        value="float32",
        evidence="val/ratio",
    ),
    "sampler_diverges": Pathology(
        {"sampler/kl_to_policy": lambda k: 0.3 * k, "sampler/ratio": lambda k: 1 - 0.02 * k},
        {"rollout.sampler": {"type": "remote"}},
        key="rollout.sampler.type",
        value="builtin",
        evidence="sampler/kl_to_policy",
    ),
    "step_too_large": Pathology(
        {"policy/approxkl_avg": lambda k: 0.5, "policy/clipfrac_avg": lambda k: 0.6},
        key="ppo.learning_rate",
        value=1e-6,
        evidence="policy/clipfrac_avg",
    ),
    "no_signal": Pathology(
        {"objective/scores_std": lambda k: 0.0, "reward/helpful/std": lambda k: 0.0},
        key="rewards.helpful.type",
        value="reward_model",
        evidence="objective/scores_std",
    ),
    "coefficient_zero": Pathology(
        {"kl/coefficient": lambda k: 0.0},
        FIXED,
        key="kl.controller.coefficient",
        value=0.05,
        evidence="kl/nats_per_token",
    ),
    "kl_negative": Pathology(
        {"objective/kl": lambda k: -0.5 * k, "kl/nats_per_token": lambda k: -0.02 * k},
        {"rollout.top_p": 0.9},
        key="rollout.top_p",
        value=1.0,
        evidence="kl/nats_per_token",
    ),
    "learning_rate_floor": Pathology(
        {
            "kl/coefficient": lambda k: 0.05 * 1.2**k,
            "kl/nats_per_token": lambda k: min(0.2 * k, 1.0),
            "response/length_mean": lambda k: 30.0 - k,
        },
        key="ppo.learning_rate",
        value=1e-5 / 3,
        evidence="response/length_mean",
    ),
    "missing_eos": Pathology(
        {"response/truncated_share": lambda k: 0.9},
        {"rewards": {"helpful": {"type": "reward_model"}}},
        key="rewards.finished",
        value="{type: eos_penalty, penalty: 1.0}",
        evidence="response/truncated_share",
    ),
    "templated": Pathology(
        samples={20: evaluation(2.0, [f"I love it, {w}" for w in WORDS])},
        key="kl.controller.initial",
        value=0.15,
        evidence="responses with the phrase",
    ),
    "overfitting": Pathology(
        samples={20: evaluation(-0.5, texts(5))},
        key="ppo.updates",
        value=10,
        evidence="heldout/scores",
    ),
    "reward_hacking": Pathology(
        {"kl/nats_per_response": lambda k: 0.8 * k},
        level="warning",
        key="kl.controller.initial",
        value=0.15,
        evidence="kl/nats_per_response",
    ),
    "kl_runaway": Pathology(
        {"kl/nats_per_response": lambda k: 2.0 * k},
        key="kl.controller.initial",
        value=0.15,
        evidence="kl/nats_per_response",
    ),
    "controller_at_bound": Pathology(
        {"kl/coefficient": lambda k: min(0.05 * 2**k, 10.0)},
        level="warning",
        key="ppo.learning_rate",
        value=1e-5 / 3,
        evidence="kl/coefficient",
    ),
    "kl_flat": Pathology(
        {"objective/kl": lambda k: 0.001, "objective/scores": lambda k: 0.0},
        level="warning",
        key="ppo.learning_rate",
        value=1e-4,
        evidence="objective/kl",
    ),
    "auxiliary_dominates": Pathology(
        FALLING | {"loss/ptx_avg": lambda k: 3.0},
        level="warning",
        key="losses.ptx.gamma",
        value=0.05,
        evidence="loss/ptx_avg",
    ),
    "prompts_few": Pathology(
        train=30,
        level="warning",
        key="ppo.updates",
        value=9,
        evidence="times that each prompt was used",
    ),
    "prompts_alike": Pathology(
        recipe={"prompts.first_words": 1},
        samples={0: evaluation(0.0, texts(0), ["the"] * 8 + ["a"] * 7)},
        level="warning",
        key="prompts.first_words",
        value=2,
        evidence="different held-out prompts, as a fraction",
    ),
    "evaluation_like_training": Pathology(
        samples={0: evaluation(0.0, texts(0), NEAR_COPIES)},
        level="warning",
        key="prompts.data",
        value="another data set, divided by topic",
        evidence="held-out prompts with a near copy, as a fraction",
    ),
    "critic_explains_nothing": Pathology(
        {"critic/explained_variance": lambda k: 0.0},
        level="warning",
        key="model.critic.learning_rate",
        value=1e-4,
        evidence="critic/explained_variance",
    ),
    "value_loss_not_falling": Pathology(
        {"loss/value_avg": lambda k: 1.0 + 0.1 * k},
        level="warning",
        key="model.critic.learning_rate",
        value=3e-5,
        evidence="loss/value_avg",
    ),
    "entropy_collapse": Pathology(
        {"policy/entropy_avg": lambda k: 0.8**k},
        level="warning",
        key="kl.controller.initial",
        value=0.15,
        evidence="policy/entropy_avg",
    ),
    "length_drift": Pathology(
        {"response/length_mean": lambda k: 30.0 + 5 * k},
        level="warning",
        key="rewards.brevity",
        value="{type: length, target_tokens: 40, weight: 0.1}",
        evidence="response/length_mean",
    ),
    "approx_kl_spike": Pathology(
        {"policy/approxkl_avg": lambda k: 0.4 if k == 12 else 0.004},
        level="warning",
        key="ppo.stop_approx_kl",
        value=0.05,
        evidence="policy/approxkl_avg",
    ),
    "slow_rank": Pathology(
        {"time/collectives_seconds": lambda k: 12.0},
        level="note",
        key="ppo.microbatch_tokens",
        value=2048,
        evidence="time/collectives_seconds",
    ),
    "slow_reward": Pathology(
        {"time/reward_seconds": lambda k: 40.0},
        level="note",
        key="hooks.cache.type",
        value="reward_cache",
        evidence="time/reward_seconds",
    ),
}


def test_a_healthy_run_has_no_findings() -> None:
    found = Pathology().findings()
    assert found == []
    assert verdict(found) == "healthy"


def test_every_check_has_a_pathology_here() -> None:
    assert {check.__name__ for check in CHECKS} == set(PATHOLOGIES) | {"too_short"}


def test_every_finding_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert rows == [check.__name__ for check in CHECKS]


@pytest.mark.parametrize("name", PATHOLOGIES)
def test_a_pathology_is_named_first_with_key_value_and_metric(name: str) -> None:
    planted = PATHOLOGIES[name]
    first, *_ = planted.findings()
    assert (first.name, first.level) == (name, planted.level)
    assert first.key == planted.key
    number = isinstance(planted.value, float)
    wanted = pytest.approx(planted.value) if number else planted.value
    assert wanted is None or first.value == wanted
    spans = first.evidence[planted.evidence]
    assert all(0 <= span.first <= span.last <= UPDATES for span in spans)
    assert json.loads(json.dumps(first.as_json()))["change"] == first.change


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (
            "kl/coefficient",
            lambda k: 0.05 * 1.2**k,
        ),  # held by the controller: KL stays at its target
        ("objective/kl", lambda k: -0.05),  # k1 is noisy
        ("policy/approxkl_avg", lambda k: 0.3 if k == 1 else 0.004),  # an early peak
        ("response/truncated_share", lambda k: 0.9 - 0.045 * k),  # learns to end
        ("loss/ptx_avg", lambda k: 3.0),  # large, but the score rises
        ("critic/explained_variance", lambda k: None if k % 2 else 0.3),
    ],
)
def test_what_looks_bad_and_is_not_is_left_out(metric: str, value: Any) -> None:
    assert Pathology({metric: value}).findings() == []


def test_truncation_that_the_recipe_asks_for_is_no_divergence() -> None:
    wanted = Pathology(
        {"sampler/kl_to_policy": lambda k: 3.0, "sampler/ratio": lambda k: 0.9},
        {"rollout.top_p": 0.9},
    )
    assert wanted.findings() == []


def test_a_coefficient_of_0_is_a_warning_as_long_as_the_policy_stays_near() -> None:
    near = Pathology({"kl/coefficient": lambda k: 0.0, "kl/nats_per_token": lambda k: 0.01}, FIXED)
    assert [(f.name, f.level) for f in near.findings()] == [("coefficient_zero", "warning")]


def test_a_rate_of_a_critic_that_misleads_is_lowered() -> None:
    (found,) = Pathology({"critic/explained_variance": lambda k: -3.0}).findings()
    assert (found.level, found.key, found.value) == (
        "serious",
        "model.critic.learning_rate",
        pytest.approx(1e-6),
    )


def test_a_phrase_that_was_there_before_is_not_what_ppo_has_taught() -> None:
    alike = [f"I love it, {w}" for w in WORDS]
    both = {update: evaluation(update / 10, alike) for update in (0, 10, 20)}
    assert Pathology(samples=both).findings() == []


def test_overfitting_from_the_first_update_on_is_a_matter_of_the_coefficient() -> None:
    worse = {update: evaluation(-update / 5, texts(update)) for update in (0, 10, 20)}
    first, *_ = Pathology(samples=worse).findings()
    assert (first.name, first.key) == ("overfitting", "kl.controller.initial")


def test_responses_to_prompts_that_are_near_copies_may_be_alike() -> None:
    alike = evaluation(2.0, [f"I love it, {w}" for w in WORDS], NEAR_COPIES)
    found = Pathology(samples={0: evaluation(0.0, texts(0), NEAR_COPIES), 20: alike}).findings()
    assert [f.name for f in found] == ["evaluation_like_training"]


def test_a_run_without_critic_losses_or_sampler_metrics_is_judged_by_what_it_has() -> None:
    bare = [
        {
            k: v
            for k, v in row.items()
            if k.split("/")[0] not in ("critic", "sampler", "loss", "time")
        }
        for row in ROWS
    ]
    assert findings(bare, RECIPE, {}) == []
    assert findings([{"update": 1}], {}, {})[0].name == "too_short"


def test_a_short_run_says_that_trends_cannot_be_judged() -> None:
    (found,) = Pathology().findings(rows=9)
    assert (found.name, found.level, found.change) == ("too_short", "note", "ppo.updates=20")
    assert verdict([found]) == "nothing wrong so far, but too short to judge trends"
    assert Pathology().findings(rows=10) == []
    at_once = PATHOLOGIES["coefficient_zero"].findings(rows=2)
    assert [f.name for f in at_once] == ["coefficient_zero", "too_short"]


def test_the_most_serious_finding_comes_first_and_causes_before_effects() -> None:
    both = {
        n: m
        for p in ("entropy_collapse", "step_too_large")
        for n, m in PATHOLOGIES[p].metrics.items()
    }
    found = Pathology({**both, "time/reward_seconds": lambda k: 40.0}).findings()
    assert [f.name for f in found] == ["step_too_large", "entropy_collapse", "slow_reward"]
    assert verdict(found) == "1 serious finding"


def test_a_window_forgets_old_events_and_bounds_the_work() -> None:
    class Counting(list[Any]):
        read = 0

        def __getitem__(self, which: Any) -> Any:
            found = super().__getitem__(which)
            Counting.read += len(found) if isinstance(which, slice) else 1
            return found

    spike = {"train/skipped_steps": 1.0}
    rows = Counting([healthy(0) | spike | {"update": k + 1} for k in range(50)])
    rows += [healthy(UPDATES - 1) | {"update": k + 51} for k in range(10_000)]
    names = {f.name for f in findings(rows, RECIPE, SAMPLES, window=100)}
    assert "skipped_steps" not in names
    assert Counting.read < 5000
    assert "skipped_steps" in {f.name for f in findings(rows, RECIPE, SAMPLES)}


@pytest.mark.parametrize("value", [0.0, -1.0, 1e30, math.nan, None])
@pytest.mark.parametrize("metric", healthy(0))
def test_no_value_of_a_metric_ends_in_an_error(metric: str, value: float | None) -> None:
    if metric in ("stage", "update"):
        return
    for rows in (1, 5, UPDATES):
        for found in Pathology({metric: lambda k: value}).findings(rows):
            assert found.what
            assert "nan" not in json.dumps(found.as_json())


def test_a_call_after_an_update_takes_milliseconds() -> None:
    begin = time.process_time()
    for _ in range(10):
        findings(ROWS, RECIPE, SAMPLES, window=50)
    assert (time.process_time() - begin) / 10 < 0.1  # about 0.01 on one core


def test_a_phrase_has_spread_whatever_the_language() -> None:
    old = ("春天的花开了很多", "秋天的雨下得不停")
    new = ("花：我非常喜欢这个产品", "雨：我非常喜欢这个产品")
    assert spread_phrase(old, new)[1:] == (0, 1)
    assert spread_phrase(new, new)[1:] == (1, 1)
    assert spread_phrase(("one text here",), ("", "")) == ("", 0, 1)
    assert spread_phrase((), ()) == ("", 0, 0)


def test_prompts_are_near_copies_if_they_differ_in_a_number() -> None:
    assert near_duplicates(("a b c d", "a b c d"), at_least=0.6) == 0
    assert near_duplicates(("number 1007 is", "number 1008 is", "else"), at_least=0.4) == 2 / 3


def test_the_frame_of_a_template_is_no_similarity() -> None:
    framed = ["Answer: what is red? Now.", "Answer: how old is he? Now."]
    assert list(without_frame(framed)) == ["what is red", "how old is he"]
    assert list(without_frame(["equal", "equal"])) == ["", ""]
    assert list(without_frame([])) == []

"""An update's metrics by hand, clock included; test_reference.py compares those of whole runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlframe.engine.batching import Schedule
from rlframe.engine.experience import Experience
from rlframe.engine.metrics import Clock, Meter
from rlframe.engine.scoring import Scores
from rlframe.engine.update_metrics import Update, update_metrics
from rlframe.rollout.packing import pack
from rlframe.types import KLMeasurement, KLState, Prompt, Rollout, StopReason

LENGTHS = (2, 3, 1)
REASONS = (StopReason.EOS, StopReason.LENGTH, StopReason.STOP_STRING)


def tensor(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def update(**changes: Any) -> Update:
    """Three responses; numbers in the padding that nobody may read."""
    sequences = pack([(1,)] * 3, [[5] * n for n in LENGTHS], device=torch.device("cpu"))
    rollout = Rollout(
        sequences, (Prompt("p", (1,)),) * 3, ("",) * 3, REASONS, (0, 1, 2), (0, 1, 2), 4
    )
    mask = torch.tensor([[True, True, False], [True] * 3, [True, False, False]])
    kl = tensor([1, 2, 99], [0.5, 0.5, 0.5], [-1, 99, 99])
    experience = Experience(
        sequences=sequences,
        mask=mask,
        logprobs=tensor([-1, -1, 99], [-2, -2, -2], [-3, 99, 99]),
        reference=0 * kl,
        values=tensor([1, 1, 9], [1, 2, 3], [0, 9, 9]),
        kl=kl,
        rewards=0 * kl,
        advantages=0 * kl,
        returns=tensor([2, 2, 9], [2, 3, 4], [1, 9, 9]),
        schedule=Schedule([], [], total=3, minibatches=1, budget=1, key=(0, 0), most=lambda x: x),
        update=4,
    )
    scores = tensor(1, 3, 5)
    meter = Meter()
    meter.add("val/ratio", 12.0, 10)
    meter.add("ratio_square", 0.9, 10)
    parts: dict[str, Any] = {
        "number": 4,
        "rollout": rollout,
        "scores": Scores(
            rewards=torch.diag(scores),
            valid=torch.ones(3, dtype=torch.bool),
            untransformed=scores / 2,
            raw={"a": scores},
            weighted={"a": 2 * scores},
        ),
        "experience": experience,
        "meter": meter,
        "metrics": {"lr": 0.25},
        "measured": KLMeasurement(kl=7.0, nats_per_response=1.1, nats_per_token=0.6, responses=3),
        "kl": KLState(0.5),
        "next_kl": KLState(0.7),
    }
    return Update(**(parts | changes))


def clock(**seconds: float) -> Clock:
    found = Clock()
    found.seconds = seconds
    return found


def measured(update: Update, *, penalty: bool = True, **seconds: float) -> dict[str, float]:
    return update_metrics(
        update,
        clock(**(seconds or {"rollout": 1.0})),
        penalty=penalty,
        episodes=15,
        reduce=lambda x: x,
    )


def test_phases_that_work_on_tokens_have_a_speed_and_every_phase_its_seconds() -> None:
    kept = clock(rollout=2.0, reward=0.0, experience=0.5, learn=1.5, checkpoint=4.0)
    found = update_metrics(update(), kept, penalty=True, episodes=15, reduce=lambda x: x)
    assert found["eps"] == 3 / 8
    assert {name: found[name] for name in found if name.startswith(("time/", "speed/"))} == {
        "time/rollout_seconds": 2.0,
        "time/reward_seconds": 0.0,
        "time/experience_seconds": 0.5,
        "time/learn_seconds": 1.5,
        "time/checkpoint_seconds": 4.0,
        "speed/rollout_tokens_per_second": 3.0,
        "speed/experience_tokens_per_second": 12.0,
        "speed/learn_tokens_per_second": 4.0,
    }
    assert kept.seconds == {}  # the next update's begin anew


def test_every_metric_by_hand() -> None:
    found = measured(update())
    expected = {
        "episode": 15,
        "objective/scores": 1.5,
        "objective/scores_std": math.sqrt(8 / 3) / 2,
        "objective/mix": 3.0,
        "objective/kl": (3 + 1.5 - 1) / 3,
        "objective/entropy": (2 + 6 + 3) / 3,
        "objective/non_score_reward": -0.5 * 3.5 / 3,
        "objective/rlhf_reward": 3 - 0.5 * 3.5 / 3,
        "reward/a/raw": 3.0,
        "reward/a/weighted": 6.0,
        "reward/a/std": math.sqrt(8 / 3),
        "reward/a/judged_share": 1.0,
        "response/valid_share": 1.0,
        "response/length_mean": 2.0,
        "response/truncated_share": 1 / 3,
        "val/num_eos_tokens": 1.0,
        "val/ratio": 1.2,
        "val/ratio_var": 0.09 - 0.04,
        "kl/coefficient": 0.5,
        "kl/nats_per_response": 1.1,
        "kl/nats_per_token": 0.6,
        "critic/explained_variance": 1.0,  # G - V is 1 everywhere
        "lr": 0.25,
    }
    clocked = ("time/", "speed/", "eps")
    found = {name: value for name, value in found.items() if not name.startswith(clocked)}
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("missing", ["values", "returns"])
def test_without_a_critic_nothing_is_said_of_what_it_explains(missing: str) -> None:
    given: dict[str, Any] = {missing: None}
    found = measured(update(experience=replace(update().experience, **given)))
    assert "critic/explained_variance" not in found


def test_an_invalid_response_is_measured_and_not_learned_from() -> None:
    """KL, entropy and lengths are of all three; scores of the first two; "a" judged the last two."""
    whole = update()
    mask = whole.experience.mask.clone()
    mask[2] = False
    scores = replace(
        whole.scores, valid=mask.any(-1), raw={"a": tensor(math.nan, 3, 5)}, rewards=torch.eye(3)
    )
    changed = replace(whole.experience, mask=mask)
    found, before = measured(update(scores=scores, experience=changed)), measured(whole)
    same = ("objective/kl", "objective/entropy", "response/length_mean", "val/num_eos_tokens")
    assert [found[name] for name in same] == [before[name] for name in same]
    assert found["response/valid_share"] == pytest.approx(2 / 3)
    assert found["reward/a/judged_share"] == pytest.approx(2 / 3)
    assert found["objective/scores"] == (0.5 + 1.5) / 2
    assert found["objective/scores_std"] == pytest.approx(0.5)
    assert found["objective/mix"] == 1
    assert found["reward/a/raw"] == (3 + 5) / 2
    assert found["reward/a/std"] == 1
    assert found["reward/a/weighted"] == (2 + 6) / 2
    assert found["objective/non_score_reward"] == -0.5 * (3 + 1.5) / 2


def test_kl_that_is_a_loss_is_no_part_of_the_reward() -> None:
    found = measured(update(), penalty=False)
    assert found["objective/non_score_reward"] == 0
    assert found["objective/rlhf_reward"] == found["objective/mix"]


def test_what_a_transform_tells_is_told_of_its_reward_alone() -> None:
    scores = Scores(
        rewards=torch.eye(3, dtype=torch.float64),
        valid=torch.ones(3, dtype=torch.bool),
        raw={"a": tensor(1, 3, 5), "b": tensor(0, 0, 0)},
        weighted={"a": tensor(1, 3, 5), "b": tensor(0, 0, 0)},
        untransformed=tensor(1, 1, 1),
        metrics={"b/running_mean": 2.0, "b/running_std": 3.0},
    )
    found = measured(update(scores=scores))
    assert {name: value for name, value in found.items() if "running" in name} == {
        "reward/b/running_mean": 2.0,
        "reward/b/running_std": 3.0,
    }


def test_what_the_samplers_own_probabilities_say_where_filters_truncate() -> None:
    """Sums of log-probabilities over a response: the sampler's less those of policy and reference."""
    of_sampler = ((-0.5, -0.5), (-1.0, -1.0, -1.0), (-2.0,))
    rollout = replace(update().rollout, logprobs=of_sampler)
    experience = replace(
        update().experience, reference=tensor([-2, -2, 99], [-2, -2, -3], [-3, 99, 99])
    )
    found = measured(update(rollout=rollout, experience=experience))
    assert {name: value for name, value in found.items() if name.startswith("sampler/")} == {
        "sampler/logprob": pytest.approx(-6 / 3),
        "sampler/kl_to_policy": pytest.approx((-6 + 11) / 3),
        "sampler/kl_to_reference": pytest.approx((-6 + 14) / 3),
        "sampler/ratio": pytest.approx((2 * math.exp(-0.5) + 3 * math.exp(-1) + math.exp(-1)) / 6),
    }
    assert not any(name.startswith("sampler/") for name in measured(update()))


def test_a_variance_below_zero_by_rounding_is_zero_and_one_of_nothing_is_no_number() -> None:
    rounding, nothing = Meter(), Meter()
    rounding.add("val/ratio", 12.0, 10)
    rounding.add("ratio_square", 0.4 - 1e-15, 10)
    for name in ("val/ratio", "ratio_square"):
        nothing.add(name, 0.0, 0.0)
    assert measured(update(meter=rounding))["val/ratio_var"] == 0.0
    assert math.isnan(measured(update(meter=nothing))["val/ratio_var"])


def test_every_number_is_summed_over_ranks() -> None:
    """Of two ranks that have the same: what is counted doubles, what is averaged stays."""
    alone = measured(update())
    both = update_metrics(
        update(), clock(rollout=1.0), penalty=True, episodes=15, reduce=lambda x: 2 * x
    )
    assert both.pop("val/num_eos_tokens") == 2 * alone.pop("val/num_eos_tokens")
    assert both.pop("speed/rollout_tokens_per_second") == 12.0
    alone.pop("speed/rollout_tokens_per_second")
    assert both == pytest.approx(alone, rel=1e-12)

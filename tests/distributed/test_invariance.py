"""The same numbers from one process or two, in any micro-batches, by any strategy.

Two processes play every run of `worker` one after the other; this process plays the same ones alone.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.distributed.worker import (
    ALGORITHMS,
    DEFECTS,
    EXACT,
    SAVED_AFTER,
    SHORT,
    SMALLER,
    STRATEGIES,
    WITHOUT_MEMORY,
    Played,
    play,
    play_not_finite,
    without_critic,
)

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds until two processes that wait for each other are killed
LAUNCH = """
import sys
from rlframe.distributed.launch import launch
worker = [sys.executable, "-m", "tests.distributed.worker", sys.argv[1]]
sys.exit(launch(worker, processes=2, threads=1).exit_code)
"""
"""In a process of its own, whose ranks end with it."""

ROUNDING = 1e-9  # of float64, after ten updates
SINGLE = 1e-4  # of float32, after three
MARGIN = 1e-3  # by which a planted defect shows: a million times ROUNDING

SAME_RUN = dict.fromkeys(
    (
        *list(EXACT)[:2],
        *(name for name in EXACT if name.startswith("frozen")),
        *DEFECTS,
        *WITHOUT_MEMORY,
    ),
    "everything in a pass",
)
"""Runs that promise to equal another one, played alone; every other one that of its own name."""


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("invariance")


@pytest.fixture(scope="session")
def alone(directory: Path) -> dict[str, Played]:
    """What one process comes to; in float32 under "alone" and "not finite"."""
    found = {
        name: play(directory, {"runtime.precision": "float64", **EXACT[name]}, updates=10)
        for name in EXACT
        if name not in SAME_RUN
    }
    whole = {"runtime.precision": "float64", "ppo.microbatch_tokens": 100_000}
    for name, changes in ALGORITHMS.items():
        found[name] = play(directory, whole | changes, updates=4)
    found["alone"] = play(directory, SMALLER, updates=SHORT)
    found["no critic"] = play(directory, without_critic(SMALLER), updates=2)
    found["not finite"] = play_not_finite(directory, SMALLER)
    return found


@pytest.fixture(scope="session")
def pair(directory: Path, alone: dict[str, Played]) -> Callable[[str], Played]:
    """Looks up what two processes came to."""
    alone["alone"].write(directory, "alone")
    try:
        done = subprocess.run(
            [sys.executable, "-c", LAUNCH, str(directory)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as hanging:
        said = (hanging.stderr or b"").decode()[-2000:]
        pytest.fail(f"two processes did not end within {PATIENCE} s; they said last:\n{said}")
    assert done.returncode == 0, done.stderr[-8000:]
    return cache(lambda name: Played.read(directory, name))


class Distance(NamedTuple):
    """How far two runs are apart."""

    same_tokens: bool
    metrics: float
    """Largest difference of a metric, relative to metrics above 1."""
    which: str


def _compared(metrics: dict[str, float]) -> dict[str, float]:
    """Without those of the machine, and of the setting itself."""
    other = ("eps", "train/microbatch_tokens", "time/", "speed/")
    return {name: value for name, value in metrics.items() if not name.startswith(other)}


def distance(found: Played, expected: Played, *, start: int = 0) -> Distance:
    """Between a run and the updates of another one that begin with `start`."""
    worst = Distance(True, 0.0, "")
    for number, mine in enumerate(found.metrics, start):
        mine, theirs = _compared(mine), _compared(expected.metrics[number])
        assert mine.keys() == theirs.keys()
        for name in mine:
            x, y = mine[name], theirs[name]
            apart = 0.0 if math.isnan(x) and math.isnan(y) else abs(x - y) / max(1.0, abs(y))
            if not apart <= worst.metrics:  # NaN is far away
                worst = Distance(True, apart, f"{name} of update {number}: {x} for {y}")
    same = found.tokens == expected.tokens[start : start + len(found.tokens)]
    return worst._replace(same_tokens=same)


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any element."""
    assert found.keys() == expected.keys()
    assert found
    return max(float((found[name] - expected[name]).abs().max()) for name in found)


# float64: rounding is all that differs


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_give_the_numbers_of_one(
    alone: dict[str, Played], pair: Callable[[str], Played], name: str
) -> None:
    found, expected = pair(name), alone[SAME_RUN.get(name, name)]
    assert len(found.metrics) == 10
    apart = distance(found, expected)
    assert apart.same_tokens
    assert apart.metrics < ROUNDING, apart.which
    assert furthest(found.part("weights/"), expected.part("weights/")) < ROUNDING


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_part_of_an_algorithm_gives_the_same_numbers_from_two_processes_in_small_passes(
    alone: dict[str, Played], pair: Callable[[str], Played], name: str
) -> None:
    found, expected = pair(name), alone[name]
    assert len(found.metrics) == 4
    assert sum(map(sum, found.passes)) > 2 * sum(map(sum, expected.passes))
    apart = distance(found, expected)
    assert apart.same_tokens
    assert apart.metrics < ROUNDING, apart.which
    assert furthest(found.part("weights/"), expected.part("weights/")) < ROUNDING
    if "reinforce" not in name:  # which has no bound
        assert any(update["policy/clipfrac_avg"] > 0.005 for update in expected.metrics)
    for update in expected.metrics:
        assert update["objective/scores_std"] > 0.1
        assert update["train/grad_norm"] > 1e-3
        assert update["response/valid_share"] < 1 or "early" not in name
        if "corrected" in name:
            assert 0.01 < update["sampler/bounded_share"] < 0.6
            assert 0.2 < update["sampler/importance"] < 0.8


@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_a_critic_there_is_none_among_weights_and_metrics(
    alone: dict[str, Played], name: str
) -> None:
    critics = ("loss/value_avg", "val/clipfrac_avg", "critic/explained_variance")
    found = {key for update in alone[name].metrics for key in update if key in critics}
    weights = [key for key in alone[name].part("weights/") if key.startswith("critic")]
    if ALGORITHMS[name].get("model.critic", "") is None:
        assert not found
        assert not weights
    else:
        assert found == {
            "loss/value_avg",
            "critic/explained_variance",
        }  # the plain loss clips nothing
        assert weights


def test_the_runs_that_are_compared_are_no_trivial_ones(
    alone: dict[str, Played], pair: Callable[[str], Played]
) -> None:
    """Else equal numbers would say nothing of the code that they went around."""
    for name in ("everything in a pass", "shared critic, KL as a loss"):
        metrics = alone[name].metrics
        for update in metrics:
            assert update["objective/scores_std"] > 0.1
            assert update["train/grad_norm"] > 0.5  # of RECIPE's ppo.max_grad_norm
            assert update["policy/approxkl_avg"] > 1e-6
        assert len({update["kl/coefficient"] for update in metrics}) == 10
        lengths = {len(ids) for update in alone[name].tokens for ids in update.values()}
        assert len(lengths) > 5
    stopped = alone["shared critic, KL as a loss"].metrics
    assert {update["train/epochs"] for update in stopped} == {1, 2}
    some, one, whole = (sum(map(sum, pair(name).passes)) for name in list(EXACT)[:3])
    assert one > some > whole


@pytest.mark.parametrize("name", [*EXACT, *STRATEGIES])
def test_every_rank_makes_as_many_forward_passes(pair: Callable[[str], Played], name: str) -> None:
    passes = pair(name).passes
    assert all(first == second > 0 for first, second in passes), passes


# float32: every strategy against one plain process


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_first_gradient_is_that_of_one_process(
    alone: dict[str, Played], pair: Callable[[str], Played], name: str
) -> None:
    """Clipped, of several micro-batches and two auxiliary losses: Adam's first moment / 0.1."""
    found, expected = (run.part("first/") for run in (pair(name), alone["alone"]))
    assert found.keys() == expected.keys()
    for model in ("policy.", "critic."):
        names = [n for n in expected if n.startswith(model) and n.endswith("/exp_avg")]
        mine, theirs = (torch.cat([part[n].flatten() for n in names]) for part in (found, expected))
        assert theirs.norm() > 1e-3
        assert (mine - theirs).norm() / theirs.norm() < 1e-6


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_gives_the_numbers_of_one_process(
    alone: dict[str, Played], pair: Callable[[str], Played], name: str
) -> None:
    found = pair(name)
    assert len(found.metrics) == SHORT
    apart = distance(found, alone["alone"])
    assert apart.same_tokens
    assert apart.metrics < SINGLE, apart.which
    assert furthest(found.part("weights/"), alone["alone"].part("weights/")) < SINGLE


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_gives_the_numbers_of_one_process_without_a_critic(
    alone: dict[str, Played], pair: Callable[[str], Played], name: str
) -> None:
    found, expected = pair(f"{name}, no critic"), alone["no critic"]
    assert len(found.metrics) == 2
    assert any(update["train/empty_steps"] for update in expected.metrics)
    assert all(0 < update["response/valid_share"] < 1 for update in expected.metrics)
    apart = distance(found, expected)
    assert apart.same_tokens
    assert apart.metrics < SINGLE, apart.which
    assert furthest(found.part("weights/"), expected.part("weights/")) < SINGLE


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(
    alone: dict[str, Played], pair: Callable[[str], Played], name: str
) -> None:
    found, expected = pair(f"{name}, not finite"), alone["not finite"]
    assert [row["train/skipped_steps"] for row in found.metrics] == [1, 0]
    apart = distance(found, expected)
    assert apart.same_tokens
    assert apart.metrics < SINGLE, apart.which
    assert furthest(found.part("weights/"), expected.part("weights/")) < SINGLE


@pytest.mark.parametrize(
    ("name", "before"), list(zip(STRATEGIES, ["alone", *STRATEGIES], strict=False))
)
def test_a_strategy_goes_on_from_what_another_has_saved(
    pair: Callable[[str], Played], name: str, before: str
) -> None:
    found, saved = pair(f"{name} after {before}"), pair(before)
    for state in ("saved/weights/", "saved/optimizer/"):  # as it says itself after loading
        assert furthest(found.part(state), saved.part(state)) == 0
    assert len(found.metrics) == SHORT - SAVED_AFTER
    apart = distance(found, saved, start=SAVED_AFTER)
    assert apart.same_tokens
    assert apart.metrics < SINGLE, apart.which
    assert furthest(found.part("weights/"), saved.part("weights/")) < SINGLE


@pytest.mark.parametrize("before", STRATEGIES)
def test_one_process_goes_on_from_what_any_strategy_has_saved(
    directory: Path, pair: Callable[[str], Played], before: str
) -> None:
    saved = pair(before)
    found = play(directory, SMALLER, updates=SHORT, after=saved)
    apart = distance(found, saved, start=SAVED_AFTER)
    assert apart.same_tokens
    assert apart.metrics < SINGLE, apart.which


def test_the_strategy_that_was_asked_for_is_the_one_that_runs(
    alone: dict[str, Played], pair: Callable[[str], Played]
) -> None:
    (only,) = alone["alone"].ran
    assert (only["wrapped"], only["optimizer share"]) == ("ActorCritic", 1)
    for rank in (0, 1):
        ran = {name: pair(name).ran[rank] for name in (*STRATEGIES, *EXACT)}
        for name in ("ddp", *EXACT):
            assert ran[name]["wrapped"] == "DistributedDataParallel"
            assert ran[name]["optimizer share"] == 1
        for name in STRATEGIES:
            if name != "ddp":
                assert ran[name]["optimizer share"] == pytest.approx(0.5, abs=0.01)
            if name.startswith("zero"):
                assert ran[name]["engine"] == "DeepSpeedEngine"
                assert (ran[name]["stage"], ran[name]["ranks"]) == (int(name[5]), 2)
        # All but the head, since ranks make other numbers of chunks of logits.
        assert ran["zero 3"]["weights in parts"] == ran["zero 3"]["weights"] - 1 > 0
        assert ran["zero 3, all offloaded"]["weights in parts"] > 0
        assert ran["zero 3, optimizer offloaded"]["optimizer offloaded"]
        assert not ran["zero 3, optimizer offloaded"]["weights offloaded"]
        assert ran["zero 3, all offloaded"]["weights offloaded"]
        # A block in policy and critic each, and the root.
        assert (ran["fsdp"]["class"], ran["fsdp"]["sharded modules"]) == ("FullyShard", 3)
        assert ran["fsdp, frozen in parts"]["sharded modules"] == 3


def test_a_frozen_model_is_in_parts_where_that_was_asked_for_and_whole_while_it_is_asked(
    pair: Callable[[str], Played],
) -> None:
    for name in (*STRATEGIES, *EXACT):
        for rank in pair(name).ran:
            assert rank["reference share, whole"] == 1, name
            in_parts = name.endswith("in parts")
            assert rank["reference share"] == pytest.approx(0.5 if in_parts else 1, abs=0.05), name


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_a_rank_without_memory_changes_no_number(
    alone: dict[str, Played], pair: Callable[[str], Played], name: str
) -> None:
    played = pair(name)
    apart = distance(played, alone[SAME_RUN[name]])
    assert apart.same_tokens
    assert apart.metrics < ROUNDING, apart
    # Rank 0 had enough, and is told because it goes on with rank 1.
    assert played.warned == [
        "update 0: no memory was left in a pass of up to 56 padded tokens: it is halved to 28"
    ]
    assert [row["train/microbatch_tokens"] for row in played.metrics] == [28, 28]


# The comparison itself


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_seen(
    alone: dict[str, Played], pair: Callable[[str], Played], name: str
) -> None:
    apart = distance(pair(name), alone[SAME_RUN[name]])
    assert apart.metrics > MARGIN, apart

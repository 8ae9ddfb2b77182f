from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from rlframe.engine.metrics import Clock, Meter


def test_a_mean_weighs_tokens_not_batches() -> None:
    meter = Meter()
    meter.tokens("x", torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[True, True, True]]))
    meter.tokens("x", torch.tensor([[5.0, 99.0]]), torch.tensor([[True, False]]))
    assert meter.means(lambda t: t) == {"x": 2.0}  # (3 * 1 + 5) / 4, not (1 + 5) / 2


def test_ranks_are_added_before_the_division() -> None:
    mine, theirs = Meter(), Meter()
    mine.add("x", 6.0, 3)
    theirs.add("x", 1.0, 1)
    other = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    assert mine.means(lambda t: t + other) == {"x": 7 / 4}
    mine.merge(theirs)
    assert mine.means(lambda t: t) == {"x": 7 / 4}


def test_plain_numbers_keep_all_their_digits() -> None:
    meter = Meter()
    meter.add("x", 0.1, 1)
    meter.add("many", 2**24 + 1, 2**24 + 1)
    assert meter.means(lambda t: t) == {"x": 0.1, "many": 1.0}


def test_nothing_counted_is_not_a_zero() -> None:
    meter = Meter()
    meter.add("x", 0.0, 0)
    assert math.isnan(meter.means(lambda t: t)["x"])


def test_phases_of_one_name_add_up_until_the_clock_is_restarted() -> None:
    clock = Clock()
    for _ in range(2):
        with clock.phase("a"):
            sum(range(1000))
    first = clock.restart()
    assert set(first) == {"a"}
    assert first["a"] > 0
    assert clock.restart() == {}


def test_a_phase_takes_the_seconds_between_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 103.0, 110.0, 110.5])
    clock_of_the_machine = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr("rlframe.engine.metrics.time", clock_of_the_machine)
    clock = Clock()
    for _ in range(2):
        with clock.phase("a"):
            pass
    assert clock.restart() == {"a": 3.5}


def test_a_step_that_was_not_taken_leaves_names_without_values() -> None:
    meter = Meter()
    meter.add("x", 6.0, 3)
    emptied = meter.emptied()
    assert math.isnan(emptied.means(lambda t: t)["x"])
    emptied.merge(meter)
    assert emptied.means(lambda t: t) == {"x": 2.0}  # and adds nothing to those that were


def test_sums_that_are_not_finite_are_named() -> None:
    meter = Meter()
    meter.add("loss/value_avg", math.nan, 3)
    meter.add("loss/policy_avg", 1.0, 3)
    meter.add("kl", math.inf, 3)
    assert meter.not_finite() == ", not finite on this rank: kl, loss/value_avg"
    assert Meter().not_finite() == ""

"""PPO reaches the known optimum of a bandit; the whole table is in tests/benchmarks/bandit.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bandit import ESTIMATORS, LOSSES, OPTIMA, learned, optimum

SHORT = {"ppo.updates": 60, "rollout.samples_per_prompt": 64}
NEAR = 0.02  # of the expected reward and of the KL

COMBINED = [
    ("gae", "clip", 1.0),
    ("rloo", "clip", 0.2),
    ("group_relative", "reinforce", 1.0),
    ("reinforce_plus_plus", "reinforce", 0.05),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bandit")


@pytest.mark.parametrize("beta", OPTIMA)
def test_the_optimum_is_the_published_one(beta: float) -> None:
    assert optimum(beta) == pytest.approx(OPTIMA[beta], abs=5e-5)


@pytest.mark.parametrize(("estimator", "loss", "beta"), COMBINED)
def test_an_unbiased_estimator_reaches_the_optimum(
    folder: Path, estimator: str, loss: str, beta: float
) -> None:
    changes = {**SHORT, **ESTIMATORS[estimator], **LOSSES[loss]}
    found = learned(folder, {**changes, "kl.controller.coefficient": beta})
    assert (found.reward, found.kl) == pytest.approx(optimum(beta), rel=NEAR)


def test_it_is_reached_with_kl_as_a_loss(folder: Path) -> None:
    given = {"kl.placement": "loss", "kl.controller.coefficient": 0.05}
    found = learned(folder, {**SHORT, **ESTIMATORS["rloo"], **LOSSES["reinforce"], **given})
    assert (found.reward, found.kl) == pytest.approx(optimum(0.05), rel=NEAR)


def test_the_adaptive_controller_settles_where_the_optimum_has_its_target(folder: Path) -> None:
    controller = {"type": "adaptive", "target": 1.1258, "horizon": 2_000, "initial": 0.05}
    changes = {**ESTIMATORS["rloo"], **LOSSES["clip"], "kl.controller": controller}
    found = learned(folder, {**changes, "ppo.learning_rate": 0.01})
    assert found.coefficient == pytest.approx(0.2, rel=0.1)


def test_an_estimator_that_changes_what_is_best_misses_it(folder: Path) -> None:
    """Whitening gives advantages another unit than KL as a loss has: the planted defect is seen."""
    changes = {**SHORT, **ESTIMATORS["rloo"], **LOSSES["reinforce"], "kl.placement": "loss"}
    given = {"algorithm.whiten_advantages": True, "kl.controller.coefficient": 0.2}
    assert abs(learned(folder, changes | given).kl / optimum(0.2)[1] - 1) > 5 * NEAR

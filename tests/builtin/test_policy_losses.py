"""Policy losses by hand, with the keys that a recipe gives them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlframe.api import PolicyLoss, PolicyLossBatch
from rlframe.builtin.policy_losses import CISPO, GSPO, Clip, Reinforce
from tests.playing import part

UP, DOWN, FAR = math.log(1.5), math.log(0.5), math.log(4)


def batch(ratios: list[list[float]], advantages: list[list[float]]) -> PolicyLossBatch:
    """Responses whose tokens were sampled with log π = -1 nat."""
    moved = torch.tensor(ratios, dtype=torch.float64)
    old = torch.full_like(moved, -1.0)
    given = torch.tensor(advantages, dtype=torch.float64)
    mask = torch.ones_like(moved, dtype=torch.bool)
    return PolicyLossBatch((old + moved).requires_grad_(), old, given, torch.zeros_like(old), mask)


def found(loss: type[PolicyLoss[Any]], given: PolicyLossBatch, **config: Any) -> Any:
    return part("policy_loss", loss, **config).component.loss(given)


def rows(x: Tensor) -> Any:
    return x.detach().tolist()


TOKENS = batch([[UP, DOWN, UP, FAR]], [[2.0, -1.0, -1.0, -1.0]])


@pytest.mark.parametrize(
    ("config", "loss", "clipped"),
    [
        ({}, [-2.4, 0.8, 1.5, 4.0], [True, True, False, False]),
        ({"clip": 0.6}, [-3.0, 0.5, 1.5, 4.0], [False, False, False, False]),
        ({"clip_high": 0.28}, [-2.56, 0.8, 1.5, 4.0], [True, True, False, False]),
        ({"dual_clip": 3.0}, [-2.4, 0.8, 1.5, 3.0], [True, True, False, True]),
    ],
    ids=["default", "wide", "clip higher", "dual clip"],
)
def test_clip(config: dict[str, float], loss: list[float], clipped: list[bool]) -> None:
    term = found(Clip, TOKENS, **config)
    assert rows(term.loss)[0] == pytest.approx(loss, rel=1e-12)
    assert rows(term.clipped) == [clipped]


def test_reinforce_is_minus_the_advantage_times_log_pi() -> None:
    term = found(Reinforce, TOKENS)
    assert rows(term.loss)[0] == pytest.approx([2 - 2 * UP, DOWN - 1, UP - 1, FAR - 1], rel=1e-12)
    assert term.clipped is None


def test_gspo_has_one_ratio_for_a_response_the_geometric_mean() -> None:
    """sqrt(1.5 x 0.5) = 0.866 and sqrt(1.5 x 4) = 2.449."""
    given = batch([[UP, DOWN], [UP, FAR], [UP, DOWN]], [[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    low = math.sqrt(0.75)
    term = found(GSPO, given)
    assert rows(term.loss)[0] == pytest.approx([-low, -low], rel=1e-12)
    assert rows(term.loss)[1] == pytest.approx([-1.0004, -1.0004], rel=1e-12)
    assert rows(term.loss)[2] == pytest.approx([0.9997, 0.9997], rel=1e-12)
    assert rows(term.clipped) == [[False, False], [True, True], [True, True]]
    wide = found(GSPO, given, clip=0.9, clip_high=None)
    assert rows(wide.loss)[1] == pytest.approx([-1.9, -1.9], rel=1e-12)


def test_cispo_bounds_the_weight_and_lets_every_token_learn() -> None:
    given = batch([[UP, DOWN, FAR]], [[2.0, 2.0, -1.0]])
    term = found(CISPO, given)
    expected = [-1.28 * 2 * (UP - 1), -0.5 * 2 * (DOWN - 1), 1.28 * (FAR - 1)]
    assert rows(term.loss)[0] == pytest.approx(expected, rel=1e-12)
    assert rows(term.clipped) == [[True, False, True]]
    (gradient,) = torch.autograd.grad(term.loss.sum(), given.logprobs)
    assert rows(gradient)[0] == pytest.approx([-2.56, -1.0, 1.28], rel=1e-12)
    both = found(CISPO, given, clip_low=0.3)
    assert rows(both.loss)[0][1] == pytest.approx(-0.7 * 2 * (DOWN - 1), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "config"),
    [
        (Clip, {"clip": 0.0}),
        (Clip, {"clip_high": -0.1}),
        (Clip, {"dual_clip": 1.0}),
        (GSPO, {"clip": 0.0}),
        (CISPO, {"clip_low": 0.0}),
        (CISPO, {"clip_high": 0.0}),
    ],
)
def test_a_bound_that_would_bind_everything_is_refused(loss: Any, config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="greater than"):
        loss.Config(**config)

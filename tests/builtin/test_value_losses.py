"""Value losses by hand, with the keys that a recipe gives them."""

from __future__ import annotations

import pytest
import torch

from rlframe.api import ValueLossBatch
from rlframe.builtin.value_losses import Clipped, Plain
from tests.playing import part


def batch() -> ValueLossBatch:
    """Predictions of 1, 3 and 0.9 that were 0.5, 1 and 1; the returns are 2, 1 and 0."""
    values, old, returns = (
        torch.tensor([row], dtype=torch.float64)
        for row in ([1.0, 3.0, 0.9], [0.5, 1.0, 1.0], [2.0, 1.0, 0.0])
    )
    mask = torch.ones_like(values, dtype=torch.bool)
    return ValueLossBatch(values.requires_grad_(), old, returns, mask)


@pytest.mark.parametrize(
    ("clip", "loss", "clipped"),
    [
        # Bounded to 0.7, 1.2 and 0.9: the first is further away so, the second nearer.
        (0.2, [1.69 / 2, 4 / 2, 0.81 / 2], [True, False, False]),
        (0.05, [1.45**2 / 2, 4 / 2, 0.95**2 / 2], [True, False, True]),
        (3.0, [1 / 2, 4 / 2, 0.81 / 2], [False, False, False]),
    ],
)
def test_clipped(clip: float, loss: list[float], clipped: list[bool]) -> None:
    term = part("value_loss", Clipped, clip=clip).component.loss(batch())
    assert term.loss[0].tolist() == pytest.approx(loss, rel=1e-12)
    assert term.clipped.tolist() == [clipped]


def test_by_default_a_prediction_may_move_by_0_2() -> None:
    assert Clipped.Config().clip == 0.2


def test_plain_is_half_the_squared_error() -> None:
    term = part("value_loss", Plain).component.loss(batch())
    assert term.loss[0].tolist() == pytest.approx([1 / 2, 4 / 2, 0.81 / 2], rel=1e-12)
    assert term.clipped is None

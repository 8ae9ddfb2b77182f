"""Losses and gradients that are not finite, and what they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.situations import Situation, recipe

SMALL = {"rollout": {"prompts_per_update": 4, "max_new_tokens": 4}, "evaluation": {"prompts": 2}}


def trained(weight: float = 1.0, **ppo: Any) -> Callable[[Path], list[str]]:
    """A training whose reward is multiplied with a weight."""

    def make(folder: Path) -> list[str]:
        path = recipe(
            folder,
            **SMALL,
            rewards={"short": {"type": "length", "target_tokens": 3, "weight": weight}},
            ppo={"updates": 2, "learning_rate": 1e-3, **ppo},
        )
        return ["train", path, "--output", str(folder / "run")]

    return make


SKIPPED = ("update 0: 3 optimiser steps in a row were skipped", "The weights are those before")

SITUATIONS = [
    Situation("scores whose squares are infinite", trained(1e30), 1, SKIPPED),
    Situation(
        "scores whose squares are infinite, and a limit on the policy's movement",
        trained(1e30, stop_approx_kl=0.1),
        1,
        SKIPPED,
    ),
    Situation(
        "scores that are infinite in the precision of the critic",
        trained(1e40),
        1,
        (
            "the mix is not finite, or too large for float32",
            "reward 'short' times its weight of 1e+40",
        ),
    ),
    Situation(
        "a learning rate that leaves no finite weights",
        trained(learning_rate=1e30),
        1,
        ("update 0", "learning rate"),
    ),
]

"""What makes comparisons of float32 runs independent of how a processor rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from rlframe.compose import ppo

SMOOTH = 1e-3
"""Adam's epsilon, in the unit of gradients: about as large as they are."""


@contextmanager
def smooth_adam() -> Iterator[None]:
    """PPO's AdamW with a large epsilon: steps change no more than gradients do.

    With the usual 1e-8, Adam's first step is the learning rate times g / |g|. Where the exact gradient
    of a weight is close to 0, its rounding decides about a whole step, so that two correct runs differ.
    """
    right = ppo._optimizer

    def smooth(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = right(*args, **kwargs)
        for group in optimizer.param_groups:
            group["eps"] = SMOOTH
        return optimizer

    with patch.object(ppo, "_optimizer", smooth):
        yield

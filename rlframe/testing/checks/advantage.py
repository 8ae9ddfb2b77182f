"""What an advantage estimator promises."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlframe.functional.rewards import response_mask
from rlframe.hooks.component import AdvantageEstimator
from rlframe.testing.check import Broken, check
from rlframe.testing.checks.common import COMMON
from rlframe.testing.subject import Subject

Estimator = Subject[AdvantageEstimator[Any]]

LENGTHS = (7, 1, 4, 6, 2)
NAMES = ("advantages", "returns")


class _Inputs(NamedTuple):
    """[B, T] each."""

    rewards: Tensor
    values: Tensor
    mask: Tensor

    def copy(self) -> _Inputs:
        return _Inputs(*(tensor.clone() for tensor in self))

    def padded_with(self, garbage: float) -> _Inputs:
        rewards, values = (x.masked_fill(~self.mask, garbage) for x in self[:2])
        return _Inputs(rewards, values, self.mask)


def _inputs(*, scale: float = 1.0) -> _Inputs:
    """Rewards and values at random, 0 in the padding."""
    mask = response_mask(torch.tensor(LENGTHS), width=max(LENGTHS))
    generator = torch.Generator().manual_seed(0)
    rewards, values = (
        scale * torch.randn(mask.shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return _Inputs(rewards, values, mask).padded_with(0.0)


def _estimated(subject: Estimator, given: _Inputs) -> tuple[Tensor, Tensor]:
    answer = subject.instance.estimate(*given.copy())
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise Broken(f"`estimate` returned {type(answer).__name__}, not (advantages, returns)")
    for name, found in zip(NAMES, answer, strict=True):
        if not isinstance(found, Tensor) or found.shape != given.mask.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise Broken(f"{name} are {shape} for rewards of {tuple(given.mask.shape)}")
    return answer


def _compare(expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], when: str) -> None:
    for name, before, after in zip(NAMES, expected, found, strict=True):
        if not torch.allclose(before, after, rtol=1e-6, atol=1e-9, equal_nan=True):
            row = int((before - after).abs().sum(-1).argmax())
            raise Broken(
                f"{name} of row {row} went from {_shown(before[row])} to {_shown(after[row])} {when}"
            )


def _shown(row: Tensor) -> str:
    return "[" + ", ".join(f"{x:.4g}" for x in row.tolist()) + "]"


@check(
    expected="(advantages, returns), both with the shape of the rewards and floating",
    likely="one value a response is returned, or a single tensor",
    do="return one advantage and one value target for each token: [B, T] each",
)
def shapes(subject: Estimator) -> None:
    """The policy's loss takes the one, the critic's the other, token by token."""
    for width in (max(LENGTHS), 1):
        given = _Inputs(*(tensor[:, :width] for tensor in _inputs()))
        for name, found in zip(NAMES, _estimated(subject, given), strict=True):
            if not found.is_floating_point():
                raise Broken(f"{name} are {found.dtype}")


@check(
    expected="0 outside the mask, in advantages and returns alike",
    likely="a baseline is subtracted, or values are added, after the mask was applied",
    do="end with `x.masked_fill(~mask, 0)`",
)
def zero_outside_the_mask(subject: Estimator) -> None:
    """Values outside the mask are 0 everywhere in the engine."""
    given = _inputs().padded_with(3.0)
    for name, found in zip(NAMES, _estimated(subject, given), strict=True):
        outside = found[~given.mask]
        if bool((outside != 0).any()):
            raise Broken(f"{name} of up to {float(outside.abs().max()):.4g} outside the mask")


@check(
    expected="the same advantages whatever stands in the padding",
    likely="a recursion or a mean runs over the padding behind a response",
    do="fill what is not real with 0 first: `rewards.masked_fill(~mask, 0)`, and values alike",
)
def padding_changes_nothing(subject: Estimator) -> None:
    """A critic computes some number for padding too."""
    given = _inputs()
    expected = _estimated(subject, given)
    for garbage in (1e4, -1e4):
        found = _estimated(subject, given.padded_with(garbage))
        _compare(expected, found, f"with {garbage:g} in the padding")


@check(
    expected="the same advantages for a response alone as beside others",
    likely="a mean or a spread over the whole batch: whitening",
    do="leave whitening to the engine, which does it over all ranks (`ppo.whiten_advantages`)",
)
def rows_are_independent(subject: Estimator) -> None:
    """Which responses share a rank is chance."""
    given = _inputs()
    together = _estimated(subject, given)
    for row, length in enumerate(LENGTHS):
        alone = _Inputs(*(tensor[row : row + 1, :length] for tensor in given))
        expected = (together[0][row : row + 1, :length], together[1][row : row + 1, :length])
        _compare(expected, _estimated(subject, alone), "when it was alone")


@check(
    expected="finite numbers, for rewards that are all 0, all alike, or large as well",
    likely="a division by a spread or a sum that can be 0",
    do="leave scaling to the engine, or say what it is worth where there is no spread",
)
def finite(subject: Estimator) -> None:
    """A reward that is 0 for everybody is an ordinary first rollout."""
    zero = _inputs(scale=0.0)
    alike = _Inputs(zero.mask.double(), zero.mask.double(), zero.mask)
    for name, given in (("0", zero), ("1", alike), ("up to 1e6", _inputs(scale=1e6))):
        for what, found in zip(NAMES, _estimated(subject, given), strict=True):
            if not bool(found.isfinite().all()):
                raise Broken(f"{what} that are not finite, with rewards and values of {name}")


@check(
    expected="rewards, values and mask as they were",
    likely="an operation in place: `rewards[~mask] = 0`, `values *= mask`",
    do="use the form that makes a new tensor: `masked_fill`, `values * mask`",
)
def inputs_untouched(subject: Estimator) -> None:
    """The engine goes on to use them: they are logged, and values are clipped around."""
    given, kept = _inputs().padded_with(3.0), _inputs().padded_with(3.0)
    subject.instance.estimate(*given)
    for name, before, after in zip(_Inputs._fields, kept, given, strict=True):
        if not torch.equal(before, after):
            raise Broken(f"`estimate` changed {name}")


ADVANTAGE = (
    *COMMON,
    shapes,
    zero_outside_the_mask,
    padding_changes_nothing,
    rows_are_independent,
    finite,
    inputs_untouched,
)

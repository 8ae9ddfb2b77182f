"""What an advantage estimator promises."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlframe.api.answers import ContractError
from rlframe.api.component import AdvantageEstimator
from rlframe.api.contract import refuse_bad_shapes
from rlframe.functional.rewards import response_mask
from rlframe.testing.check import Broken, check
from rlframe.testing.checks.common import COMMON, random_states_moved
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
    try:
        refuse_bad_shapes(answer, given.rewards)
    except ContractError as error:
        raise Broken(f"it {error}") from None
    advantages, returns = answer
    return advantages, returns


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
    expected="(advantages, returns), both with the shape and the type of the rewards",
    likely="one value a response is returned, a single tensor, or a tensor of a type of its own",
    do="return one advantage and one value target for each token, [B, T] each; make new tensors from "
    "those that are given: `torch.zeros_like(rewards)`",
)
def shapes(subject: Estimator) -> None:
    """The policy's loss takes the one, the critic's the other, token by token."""
    for width in (max(LENGTHS), 1):
        given = _Inputs(*(tensor[:, :width] for tensor in _inputs()))
        _estimated(subject, given)
    square = _Inputs(*(tensor[:, : len(LENGTHS)] for tensor in _inputs()))
    _estimated(subject, square)  # where [B] would pass for [T]


@check(
    expected="more reward does not lower advantages or returns; a critic that expected more does not "
    "raise advantages or lower returns; and a reward counts for the tokens up to it, not those after",
    likely="a sign is turned, the answer is (returns, advantages), or a sum runs from the left",
    do="advantage = what came after the token - what the critic expected; sum from the right",
)
def direction(subject: Estimator) -> None:
    """The wrong sign makes the worst likelier. Sums of a response: it may have a baseline."""
    given = _inputs()
    more = given.mask.double()
    for what, changed, signs in (
        ("rewards are 1 higher", given._replace(rewards=given.rewards + more), (1, 1)),
        ("the critic expects 1 more", given._replace(values=given.values + more), (-1, 1)),
    ):
        for name, moved, sign in zip(NAMES, _moved(subject, given, changed), signs, strict=True):
            worst = float((sign * moved.sum(1)).min())
            if worst < -1e-6:
                fall = "fall" if sign > 0 else "rise"
                raise Broken(f"{name} of a response {fall} by up to {-worst:.4g} when {what}")
    row, end = 0, LENGTHS[0] - 1
    first, last = given.rewards.clone(), given.rewards.clone()
    first[row, 0] += 1
    last[row, end] += 1
    forwards = _moved(subject, given, given._replace(rewards=first))[0][row, 1:]
    backwards = _moved(subject, given, given._replace(rewards=last))[0][row, :end]
    if float(forwards.abs().max()) > 1e-9 and float(backwards.abs().max()) <= 1e-9:
        raise Broken(
            "the first token's reward counts for the last token, and not the other way round"
        )


def _moved(subject: Estimator, given: _Inputs, changed: _Inputs) -> list[Tensor]:
    """By how much advantages and returns change."""
    before, after = _estimated(subject, given), _estimated(subject, changed)
    return [new - old for old, new in zip(before, after, strict=True)]


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


@check(
    expected="the global random states of Python, NumPy and torch as they were",
    likely="`torch.rand` or `manual_seed` without a generator of its own",
    do="draw from a generator that is seeded by `context.seed`",
)
def global_rng_untouched(subject: Estimator) -> None:
    """Random numbers that a plugin takes change those of everything after it."""
    changed = random_states_moved(lambda: _estimated(subject, _inputs()))
    if changed:
        raise Broken(f"`estimate` moved the global random state of {', '.join(changed)}")


ADVANTAGE = (
    *COMMON,
    shapes,
    direction,
    zero_outside_the_mask,
    padding_changes_nothing,
    rows_are_independent,
    finite,
    inputs_untouched,
    global_rng_untouched,
)

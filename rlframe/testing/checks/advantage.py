"""What an advantage estimator promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlframe.api.algorithm import AdvantageEstimator, EstimatorNeeds
from rlframe.api.answers import awaited
from rlframe.api.contract import credited, refuse_bad_credit
from rlframe.api.unchanged import Given
from rlframe.batches import CreditBatch, ScoreMoments
from rlframe.functional.rewards import response_mask
from rlframe.testing.check import Broken, DoesNotApply, check, kept
from rlframe.testing.checks.common import COMMON, random_states_moved, state_can_be_kept
from rlframe.testing.checks.tensors import (
    changed,
    compare,
    copied,
    rows_of,
    shuffled,
    tensors,
)
from rlframe.testing.subject import Subject
from rlframe.types import StopReason

Estimator = Subject[AdvantageEstimator[Any]]

LENGTHS = (7, 1, 4, 6, 2, 5, 3, 7)
"""Of responses; a batch has whole groups of them."""
GROUPS = 3


def _needs(subject: Estimator) -> EstimatorNeeds:
    return subject.component.needs(subject.instance.config)


def _inputs(
    subject: Estimator, *, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> CreditBatch:
    """Rewards, and what else the estimator asks for, at random; 0 in the padding, as in a run.

    Groups are complete, their numbers neither in order nor without gaps. Every third response was cut.
    Scores are float64 whatever the run computes in.
    """
    needs = _needs(subject)
    size = max(2, needs.samples_per_prompt)
    lengths = [LENGTHS[k % len(LENGTHS)] for k in range(GROUPS * size)]
    mask = response_mask(torch.tensor(lengths), width=max(LENGTHS))
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Tensor:
        x = scale * torch.randn(mask.shape, generator=generator, dtype=torch.float64)
        return x.masked_fill(~mask, 0).to(dtype)

    rewards, kl, values = drawn(), drawn() / 10, drawn()
    cut = [k % 3 == 0 for k in range(len(lengths))]
    scores = rewards.double().sum(-1)
    return CreditBatch(
        rewards=rewards,
        mask=mask,
        scores=scores,
        kl=kl,
        group_ids=torch.tensor([5 + 7 * (GROUPS - k // size) for k in range(len(lengths))]),
        stop_reasons=tuple(StopReason.LENGTH if c else StopReason.EOS for c in cut),
        values=values if needs.critic else None,
        last_values=values[:, 0] * torch.tensor(cut) if needs.last_values else None,
        score_moments=(
            ScoreMoments(len(scores), float(scores.mean()), float(scores.std()) or 1.0)
            if needs.global_moments
            else None
        ),
    )


def _of_width(batch: CreditBatch, width: int) -> CreditBatch:
    """The first tokens of every response, or wider padding."""
    more = width - batch.mask.shape[1]
    if more <= 0:
        return rows_of(batch, slice(None), width)
    wide = {n: pad(x, (0, more)) for n, x in tensors(batch).items() if x.ndim == 2}
    return changed(batch, wide)


def _with_rewards(batch: CreditBatch, rewards: Tensor) -> CreditBatch:
    """Other rewards, and the scores that go with them."""
    more = (rewards - batch.rewards).sum(-1)
    return replace(batch, rewards=rewards, scores=batch.scores + more)


def _estimated(subject: Estimator, given: CreditBatch) -> dict[str, Tensor]:
    """Advantages, and returns where there is a critic."""
    answer = subject.instance.estimate(copied(given))
    with kept():
        return tensors(credited(answer, given))


@check(
    expected="Credit(advantages, returns), each with the shape and the type of the rewards; returns "
    "where there is a critic, and None where there is none",
    likely="one value per response is returned, a single tensor, a tuple, or a tensor of a type of its "
    "own",
    do="return `Credit(advantages, returns)` with one value for each token, [B, T]; make new tensors "
    "from those that are given: `torch.zeros_like(batch.rewards)`",
)
def shapes(subject: Estimator) -> None:
    """The policy's loss takes the one, the critic's the other, token by token."""
    for dtype in (torch.float32, torch.float64):
        given = _inputs(subject, dtype=dtype)
        widths = (given.mask.shape[1], 1, len(given))  # the last is where [B] would pass for [T]
        for width in widths:
            with kept():
                cut = _of_width(given, width)
                refuse_bad_credit(subject.instance.estimate(copied(cut)), cut)


@check(
    expected="more reward does not lower advantages or returns; a critic that expected more does not "
    "raise advantages or lower returns; and a reward counts for the tokens up to it, not those after",
    likely="a sign is turned, the answer is (returns, advantages), or a sum runs from the left",
    do="advantage = what came after the token - what was expected; sum from the right",
)
def direction(subject: Estimator) -> None:
    """The wrong sign makes the worst likelier. Sums of a response: it may have a baseline."""
    given = _inputs(subject)
    for row, length in enumerate(given.mask.sum(-1).tolist()):
        more = given.rewards.clone()
        more[row, :length] += 1
        _refuse_fall(subject, given, _with_rewards(given, more), row, "its rewards are 1 higher")
    if given.values is not None:
        expected = replace(given, values=given.values + given.mask.double())
        for name, moved in _moved(subject, given, expected).items():
            sign = 1 if name == "returns" else -1
            worst = float((sign * moved.sum(1)).min())
            if worst < -1e-6:
                fall = "fall" if sign > 0 else "rise"
                raise Broken(
                    f"{name} of a response {fall} by up to {-worst:.4g} when the critic expects 1 more"
                )
    row, end = 0, int(given.mask[0].sum()) - 1
    first, last = given.rewards.clone(), given.rewards.clone()
    first[row, 0] += 1
    last[row, end] += 1
    forwards = _moved(subject, given, _with_rewards(given, first))["advantages"][row, 1:]
    backwards = _moved(subject, given, _with_rewards(given, last))["advantages"][row, :end]
    if float(forwards.abs().max()) > 1e-9 and float(backwards.abs().max()) <= 1e-9:
        raise Broken(
            "the first token's reward counts for the last token, and not the other way round"
        )


def _refuse_fall(
    subject: Estimator, given: CreditBatch, other: CreditBatch, row: int, when: str
) -> None:
    for name, moved in _moved(subject, given, other).items():
        fall = -float(moved[row].sum())
        if fall > 1e-6:
            raise Broken(f"{name} of a response fall by {fall:.4g} when {when}")


def _moved(subject: Estimator, given: CreditBatch, other: CreditBatch) -> dict[str, Tensor]:
    """By how much advantages and returns change."""
    before, after = _estimated(subject, given), _estimated(subject, other)
    return {name: after[name] - before[name] for name in before}


@check(
    expected="0 outside the mask, in advantages and returns alike",
    likely="a baseline is subtracted, or values are added, after the mask was applied",
    do="end with `x.masked_fill(~batch.mask, 0)`",
)
def zero_outside_the_mask(subject: Estimator) -> None:
    """Values outside the mask are 0 everywhere in the engine."""
    _estimated(subject, _inputs(subject))


@check(
    expected="the same advantages however wide the padding is",
    likely="a mean or a count over the rectangle: `rewards.mean(-1)`, `mask.shape[1]`",
    do="count real tokens: `batch.mask.sum(-1).clamp(min=1)`",
)
def padding_changes_nothing(subject: Estimator) -> None:
    """How wide it is depends on the longest response that happens to be on the same rank."""
    given = _inputs(subject)
    width = given.mask.shape[1]
    found = _estimated(subject, _of_width(given, width + 3))
    narrow = {name: x[:, :width] for name, x in found.items()}
    compare(_estimated(subject, given), narrow, "with wider padding")


@check(
    expected="the same advantages for a group alone as beside others",
    likely="a mean or a spread over the whole batch (whitening), or groups that are taken by "
    "position instead of `group_ids`",
    do="compare responses within their group alone; leave whitening to the engine, which does it over "
    "all ranks (`whiten = True`), or declare `global_moments` in `needs` and use `score_moments`",
)
def groups_are_independent(subject: Estimator) -> None:
    """Which groups share a rank is chance."""
    if _needs(subject).global_moments:
        raise DoesNotApply("it declares that it compares all responses (`global_moments`)")
    given = _inputs(subject)
    together = _estimated(subject, given)
    size = len(given) // GROUPS
    for start in range(0, len(given), size):
        rows = slice(start, start + size)
        longest = int(given.mask[rows].sum(-1).max())
        reasons = given.stop_reasons[rows]
        found = _estimated(subject, rows_of(given, rows, longest, stop_reasons=reasons))
        expected = {name: x[rows, :longest] for name, x in together.items()}
        compare(expected, found, "when its group was alone", first=start)
    order = shuffled(len(given))
    reasons = tuple(given.stop_reasons[k] for k in order.tolist())
    mixed = rows_of(given, order, stop_reasons=reasons)
    expected = {name: x[order] for name, x in together.items()}
    compare(expected, _estimated(subject, mixed), "when responses stood in another order")


@check(
    expected="the same advantages for valid responses with an invalid one in the group as without it",
    likely="a mean over a group counts responses without a token, whose rewards nobody knows",
    do="count `batch.valid` responses alone; `batch.totals` is 0 for the others, which is no score",
)
def invalid_responses_count_for_nothing(subject: Estimator) -> None:
    """A response that no reward could judge stays in the batch, with no token in its mask."""
    given = _inputs(subject)
    if _needs(subject).samples_per_prompt > 1:  # one group of all, so that enough are left in it
        given = replace(given, group_ids=torch.full_like(given.group_ids, 4))
    mask, scores, rewards = given.mask.clone(), given.scores.clone(), given.rewards.clone()
    mask[1], scores[1], rewards[1] = False, 50.0, 0.0  # as the engine masks it
    without_it: dict[str, Any] = {
        "mask": mask,
        "scores": scores,
        "rewards": rewards,
        "kl": given.kl.clone(),
    }
    without_it["kl"][1] = 0.0
    if given.values is not None:
        without_it["values"] = given.values.masked_fill(~mask, 0)
    found = _estimated(subject, replace(given, **without_it))
    if bool(found["advantages"][1].any()):
        raise Broken("an invalid response has advantages")
    others = torch.tensor([row for row in range(len(given)) if row != 1])
    reasons = tuple(given.stop_reasons[k] for k in others.tolist())
    without = rows_of(given, others, stop_reasons=reasons)
    left = {name: x[others] for name, x in found.items()}
    compare(_estimated(subject, without), left, "when an invalid response stood beside it")


@check(
    expected="finite numbers, for rewards that are all 0, all alike, or large as well",
    likely="a division by a spread or a sum that can be 0",
    do="leave scaling to the engine, or say what it is worth where there is no spread",
)
def finite(subject: Estimator) -> None:
    """A reward that is 0 for everybody is an ordinary first rollout."""
    zero = _inputs(subject, scale=0.0)
    alike = _with_rewards(zero, zero.mask.double())
    for name, given in (("0", zero), ("1", alike), ("up to 1e6", _inputs(subject, scale=1e6))):
        for what, found in _estimated(subject, given).items():
            if not bool(found.isfinite().all()):
                raise Broken(f"{what} that are not finite, with rewards and values of {name}")


@check(
    expected="the batch unchanged",
    likely="an operation in place: `batch.rewards[~batch.mask] = 0`, `batch.values.mul_(...)`",
    do="use the form that makes a new tensor: `masked_fill`, `values * mask`",
)
def inputs_untouched(subject: Estimator) -> None:
    """The engine goes on to use them: they are logged, and values are clipped around."""
    batch = _inputs(subject)
    given = Given(batch=batch)
    with kept():
        awaited(subject.instance.estimate(batch))
        given.refuse_change()


@check(
    expected="the global random states of Python, NumPy and torch unchanged",
    likely="`torch.rand` or `manual_seed` without a generator of its own",
    do="draw from a generator that is seeded by `context.seed`",
)
def global_rng_untouched(subject: Estimator) -> None:
    """Random numbers that a plugin takes change those of everything after it."""
    moved = random_states_moved(lambda: _estimated(subject, _inputs(subject)))
    if moved:
        raise Broken(f"`estimate` moved the global random state of {', '.join(moved)}")


ADVANTAGE = (
    *COMMON,
    shapes,
    direction,
    zero_outside_the_mask,
    padding_changes_nothing,
    groups_are_independent,
    invalid_responses_count_for_nothing,
    finite,
    inputs_untouched,
    state_can_be_kept,
    global_rng_untouched,
)

"""What a reward transform promises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlframe.api.algorithm import RewardTransform
from rlframe.api.transform_contract import plain_metrics, plain_state, transformed
from rlframe.api.unchanged import Given
from rlframe.batches import ScoreBatch
from rlframe.functional.running import statistics
from rlframe.testing.check import Broken, check, kept
from rlframe.testing.checks.common import COMMON, random_states_moved, state_can_be_kept
from rlframe.testing.checks.tensors import compare, shuffled
from rlframe.testing.subject import Subject

Transform = Subject[RewardTransform[Any]]
State = Mapping[str, Any]

GROUPS, EACH = 3, 4
UPDATES = 5


def _scores(
    seed: int = 0, *, factor: float = 1.0, offset: float = 0.0, valid: Tensor | None = None
) -> ScoreBatch:
    """Scores of one process, at random, of complete groups."""
    drawn = torch.randn(GROUPS * EACH, generator=torch.Generator().manual_seed(seed))
    return _of(drawn.double() * factor + offset, valid=valid, update=seed % UPDATES)


def _of(totals: Tensor, *, valid: Tensor | None = None, update: int = 0) -> ScoreBatch:
    counts = torch.ones(len(totals), dtype=torch.bool) if valid is None else valid
    groups = torch.arange(GROUPS).repeat_interleave(EACH)[: len(totals)]
    moments = statistics(totals[counts], lambda x: x)
    return ScoreBatch(totals, counts, groups, moments, update=update, updates=UPDATES)


def _rows(scores: ScoreBatch, index: Tensor) -> ScoreBatch:
    """Some responses alone, as another rank has them: with the moments of all."""
    return ScoreBatch(
        scores.totals[index],
        scores.valid[index],
        scores.group_ids[index],
        scores.moments,
        update=scores.update,
        updates=scores.updates,
    )


def _applied(
    transform: RewardTransform[Any], state: State, scores: ScoreBatch
) -> tuple[State, Tensor]:
    """The next state and the totals after the transform, 0 for those that are invalid."""
    with kept():
        new, scale, shift = transformed(transform.apply(state, scores), scores)
    return new, (scores.totals * scale + shift).masked_fill(~scores.valid, 0)


def _first(transform: RewardTransform[Any]) -> State:
    with kept():
        return plain_state(transform.initial())


def _later(subject: Transform) -> tuple[State, ScoreBatch]:
    """The state after two rollouts, and the scores of a third."""
    state = _first(subject.instance)
    for seed in (1, 2):
        state, _ = _applied(subject.instance, state, _scores(seed, factor=2.0, offset=1.0))
    return state, _scores(3)


@check(
    expected="(state, scale, shift): plain data, and two float64 tensors of shape [B]",
    likely="the transformed totals are returned, or a number in place of a tensor",
    do="return `(state, scale, shift)`, so that scale * total + shift is the new total",
)
def state_scale_and_shift(subject: Transform) -> None:
    """The engine scales token rewards and adds the shift at the last token."""
    none = torch.zeros(GROUPS * EACH, dtype=torch.bool)
    for scores in (_scores(), _of(torch.tensor([2.0]).double()), _scores(valid=none)):
        _applied(subject.instance, _first(subject.instance), scores)


@check(
    expected="finite totals, whatever the scores: all the same, of size 1e6, next to 0, a single one",
    likely="a division by a deviation of 0, or a logarithm",
    do="divide by `scores.moments.std`, which is 1 where nothing is known of the scale",
)
def finite(subject: Transform) -> None:
    """In the first rollout all scores may be the same."""
    same = torch.full((GROUPS * EACH,), 3.0, dtype=torch.float64)
    cases = [same, 0 * same, _scores(factor=1e6).totals, _scores(factor=1e-9).totals, same[:1]]
    for totals in cases:
        state = _first(subject.instance)
        for _ in range(2):
            state, found = _applied(subject.instance, state, _of(totals))
            if not bool(found.isfinite().all()):
                raise Broken(f"a total of {float(found[~found.isfinite()][0])} for {totals[:3]}...")


@check(
    expected="for a higher score of the same prompt a total that is no lower",
    likely="a sign is turned: mean - total where total - mean was meant",
    do="keep the order of scores. A transform that is meant to turn it, such as one that rewards a "
    "middle, skips this with that reason",
)
def order_kept(subject: Transform) -> None:
    """A reward says what is better; a transform says by how much."""
    state, scores = _later(subject)
    _, found = _applied(subject.instance, state, scores)
    for group in range(GROUPS):
        rows = scores.group_ids == group
        order = scores.totals[rows].argsort()
        if bool((found[rows][order].diff() < -1e-9).any()):
            raise Broken(
                f"scores of {scores.totals[rows][order].tolist()} became {found[rows][order].tolist()}"
            )


@check(
    expected="the same totals for a response whatever other groups its rank has, and in which order",
    likely="a mean or a deviation of `scores.totals`, which are those of one rank alone",
    do="take statistics over all responses from `scores.moments`, and over a group by `group_ids`",
)
def ranks_agree(subject: Transform) -> None:
    """One process has all groups, each of several has some; the run must be the same."""
    state, scores = _later(subject)
    together, expected = _applied(subject.instance, state, scores)
    for group in range(GROUPS):
        index = (scores.group_ids == group).nonzero().squeeze(1)
        alone, found = _applied(subject.instance, state, _rows(scores, index))
        compare({"the total": expected[index, None]}, {"the total": found[:, None]}, "on its own")
        if alone != together:
            raise Broken(f"the next state is {dict(alone)} of one group, {dict(together)} of all")
    order = shuffled(len(scores))
    _, found = _applied(subject.instance, state, _rows(scores, order))
    compare({"the total": expected[order, None]}, {"the total": found[:, None]}, "in another order")


@check(
    expected="the same totals for valid responses, whatever stands beside them as invalid",
    likely="a mean over a group counts responses that this reward does not score",
    do="count `scores.valid` responses alone",
)
def invalid_responses_count_for_nothing(subject: Transform) -> None:
    """A response that no reward could judge stays in the batch, and its total is no score."""
    valid = torch.ones(GROUPS * EACH, dtype=torch.bool)
    valid[1] = valid[-1] = False
    results = []
    for garbage in (0.0, 1e6, float("nan")):
        scores = _scores(4, valid=valid)
        totals = scores.totals.masked_fill(~valid, garbage)
        results.append(
            _applied(subject.instance, _first(subject.instance), _of(totals, valid=valid))
        )
    for state, found in results[1:]:
        compare(
            {"the total": results[0][1][:, None]},
            {"the total": found[:, None]},
            "when another number stood for an invalid response",
        )
        if state != results[0][0]:
            raise Broken("the next state depends on the total of an invalid response")


@check(
    expected="a state and a batch that are left alone, and the same answer when it is asked again",
    likely="the state is changed in place, or something is remembered on `self`",
    do="make a new state: `{**state, 'seen': state['seen'] + 1}`",
)
def pure(subject: Transform) -> None:
    """The state is all that a checkpoint keeps, and ranks compare it."""
    state, scores = _later(subject)
    before, given = json.dumps(state), Given(state=state, scores=scores)
    first = _applied(subject.instance, state, scores)
    with kept():
        given.refuse_change()
    for asked in (subject.instance, subject.build()):
        again = _applied(asked, json.loads(before), scores)
        if again[0] != first[0]:
            raise Broken(f"another state when it was asked again: {again[0]} after {first[0]}")
        compare({"the total": first[1][:, None]}, {"the total": again[1][:, None]}, "asked again")


@check(
    expected="metrics that are plain finite numbers, of the state alone",
    likely="a tensor, or a statistic that is NaN before the first score",
    do="return floats, and nothing where there is nothing to tell",
)
def metrics_are_numbers(subject: Transform) -> None:
    """They are logged as reward/NAME/KEY."""
    for state in (_first(subject.instance), _later(subject)[0]):
        with kept():
            plain_metrics(subject.instance.metrics(state))


@check(
    expected="the global random states of Python, NumPy and torch unchanged",
    likely="`torch.rand` or `manual_seed` without a generator of its own",
    do="draw from a generator that is seeded by `context.seed` and `scores.update`",
)
def global_rng_untouched(subject: Transform) -> None:
    """Random numbers that a plugin takes change those of everything after it."""
    state, scores = _later(subject)
    moved = random_states_moved(lambda: _applied(subject.instance, state, scores))
    if moved:
        raise Broken(f"`apply` moved the global random state of {', '.join(moved)}")


TRANSFORM = (
    *COMMON,
    state_scale_and_shift,
    finite,
    order_kept,
    ranks_agree,
    invalid_responses_count_for_nothing,
    pure,
    state_can_be_kept,
    metrics_are_numbers,
    global_rng_untouched,
)

"""What a policy loss promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rlframe.api.algorithm import PolicyLoss
from rlframe.batches import PolicyLossBatch
from rlframe.testing.check import Broken, DoesNotApply, check
from rlframe.testing.checks.token_loss import (
    FIRST,
    REST,
    answered,
    drawn,
    refuse_gradient,
    refuse_wrong_way,
    signs,
    slope_of,
    term_of,
    with_gradient,
)
from rlframe.testing.subject import Subject

Loss = Subject[PolicyLoss[Any]]


def _at_sampling(subject: Loss) -> PolicyLossBatch:
    """A batch before the first optimiser step: every ratio is exactly 1."""
    batch: Any = drawn(subject)
    found: PolicyLossBatch = replace(batch, old_logprobs=batch.logprobs)
    return found


@check(
    expected="where every ratio is 1, a gradient that makes responses with positive advantages "
    "likelier, and responses with negative advantages less likely",
    likely="a sign is turned, the ratio is upside down (old - new), or `logprobs` is detached",
    do="minimise `-ratio * advantages` with `ratio = (logprobs - old_logprobs).exp()`; a weight that "
    "is detached needs `logprobs` beside it: `-weight.detach() * advantages * logprobs`",
)
def direction(subject: Loss) -> None:
    """The wrong sign makes the worst likelier."""
    batch = _at_sampling(subject)
    wanted = signs(batch)
    batch = replace(batch, advantages=wanted * batch.advantages.abs())
    found = answered(subject.instance, batch)[slope_of("logprobs")]
    refuse_wrong_way(found, wanted, "the log-probabilities")


@check(
    expected="no gradient of the log-probabilities where every ratio is 1 and every advantage is 0",
    likely="0 is counted among the negative advantages, or something is added to advantages",
    do="let the advantage multiply whatever `logprobs` is in. A loss that is meant to regularise the "
    "policy, at the weights that sampled too, skips this with that reason",
)
def no_advantage_no_gradient(subject: Loss) -> None:
    """A rollout that says nothing about what was better must not move the policy."""
    batch = _at_sampling(subject)
    batch = replace(batch, advantages=torch.zeros_like(batch.advantages))
    found = answered(subject.instance, batch)[slope_of("logprobs")]
    refuse_gradient(found, "where no token has an advantage")


@check(
    expected="`clipped` False everywhere while every ratio is 1",
    likely="`clipped` says where no bound acted, or where the two branches are equal",
    do="say where a bound is the active branch: `clamped < unclipped`, without `<=`",
)
def nothing_clipped_at_ratio_1(subject: Loss) -> None:
    """The fraction of clipped tokens is how a run is judged that has gone too far."""
    batch = _at_sampling(subject)
    term = term_of(subject.instance, with_gradient(batch)[0])
    if term.clipped is None:
        raise DoesNotApply("it has no bound (`clipped` is None)")
    count = int((term.clipped & batch.mask).sum())
    if count:
        raise Broken(f"{count} of {int(batch.mask.sum())} tokens are clipped")


POLICY_LOSS = (*FIRST, direction, no_advantage_no_gradient, nothing_clipped_at_ratio_1, *REST)

"""What a value loss promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlframe.api.algorithm import ValueLoss
from rlframe.batches import ValueLossBatch
from rlframe.testing.check import check
from rlframe.testing.checks.token_loss import (
    FIRST,
    REST,
    answered,
    drawn,
    refuse_gradient,
    refuse_wrong_way,
    signs,
    slope_of,
)
from rlframe.testing.subject import Subject

Loss = Subject[ValueLoss[Any]]


def _at_sampling(subject: Loss) -> ValueLossBatch:
    """A batch before the first optimiser step: the critic says what it said."""
    batch: Any = drawn(subject)
    found: ValueLossBatch = replace(batch, old_values=batch.values)
    return found


@check(
    expected="where values are those at sampling, a gradient that moves them towards the returns",
    likely="a sign is turned, `values` is detached, or the loss is a function of `old_values`",
    do="minimise a distance of `batch.values` from `batch.returns`",
)
def direction(subject: Loss) -> None:
    """The wrong sign drives the critic away, and advantages with it."""
    batch = _at_sampling(subject)
    wanted = signs(batch)
    batch = replace(batch, returns=batch.values + wanted * batch.returns.abs())
    found = answered(subject.instance, batch)[slope_of("values")]
    refuse_wrong_way(found, wanted, "the values")


@check(
    expected="no gradient where values, those at sampling and returns are the same",
    likely="the distance is measured from something else than the return, or a penalty is added",
    do="let the loss be least at the return. A loss that is meant to have another minimum, such as a "
    "quantile, skips this with that reason",
)
def no_error_no_gradient(subject: Loss) -> None:
    """A critic that is right must stay."""
    batch = _at_sampling(subject)
    batch = replace(batch, returns=batch.values)
    found = answered(subject.instance, batch)[slope_of("values")]
    refuse_gradient(found, "where the critic is right")


VALUE_LOSS = (*FIRST, direction, no_error_no_gradient, *REST)

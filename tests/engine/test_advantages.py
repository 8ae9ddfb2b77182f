"""An estimator's answer is what the policy learns from: it is held against the contract, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlframe.api import (
    AdvantageEstimator,
    Credit,
    CreditBatch,
    EstimatorNeeds,
    HookPlugin,
    PluginConfig,
    hookimpl,
)
from rlframe.api.component import Instance
from rlframe.engine.advantages import CreditAssignment
from rlframe.errors import RunError
from rlframe.registry.relay import Relay
from rlframe.types import StopReason

MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
REWARDS = torch.where(MASK, torch.arange(9.0).reshape(3, 3), 7.0)
VALUES = torch.where(MASK, 0.5, 9.0)

Estimate = Callable[[CreditBatch], Any]


class Scripted(AdvantageEstimator[PluginConfig]):
    """Estimates by a function."""

    def __init__(self, function: Estimate) -> None:
        self._function = function
        self.config = PluginConfig()

    def estimate(self, batch: CreditBatch) -> Any:
        return self._function(batch)


def given(values: Tensor | None = VALUES) -> CreditBatch:
    return CreditBatch(
        rewards=REWARDS.clone(),
        mask=MASK.clone(),
        scores=REWARDS.sum(-1),
        kl=torch.zeros(3, 3),
        group_ids=torch.tensor([4, 4, 9]),
        stop_reasons=(StopReason.EOS,) * 3,
        values=None if values is None else values.clone(),
    )


def asked(function: Estimate, relay: Relay | None = None, values: Tensor | None = VALUES) -> Credit:
    instance = Instance("advantages", "scripted (dist 1.0)", Scripted(function))
    return CreditAssignment(instance, relay or Relay()).assign(given(values))


def right(batch: CreditBatch) -> Credit:
    returns = batch.rewards.masked_fill(~batch.mask, 0)
    if batch.values is None:
        return Credit(returns)
    return Credit(returns - batch.values.masked_fill(~batch.mask, 0), returns)


def test_what_keeps_the_contract_comes_back_as_it_is() -> None:
    credit = asked(right)
    assert credit.returns is not None
    assert torch.equal(credit.returns, REWARDS * MASK)
    assert torch.equal(credit.advantages, (REWARDS - VALUES) * MASK)
    assert asked(right, values=None).returns is None


def test_a_vector_is_not_spread_over_tokens_where_there_are_as_many_of_both() -> None:
    with pytest.raises(RunError, match=r"estimator 'advantages' of type scripted .*shape \(3,\)"):
        asked(lambda b: Credit(b.rewards.sum(1), b.rewards * b.mask))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda b: Credit(b.rewards * b.mask), "returned no returns, which are the critic's"),
        (lambda b: (b.rewards * b.mask, b.rewards * b.mask), "returned a tuple of 2; it must"),
        (lambda b: b.rewards * b.mask, r"it must return Credit\(advantages, returns\)"),
        (lambda b: None, r"returned None; it must return Credit"),
        (lambda b: Credit([0.0], b.rewards * b.mask), "as advantages; it must be a tensor"),
        (lambda b: Credit(b.rewards - 9, b.rewards * b.mask), "advantages that are not 0 where"),
        (lambda b: Credit((b.rewards * b.mask).double(), b.rewards * b.mask), "torch.float64 on"),
    ],
)
def test_anything_but_credit_is_refused(answer: Estimate, words: str) -> None:
    with pytest.raises(RunError, match=words):
        asked(answer)


def test_returns_without_a_critic_are_refused() -> None:
    with pytest.raises(RunError, match="there is no critic that learns them"):
        asked(lambda b: Credit(b.rewards * b.mask, b.rewards * b.mask), values=None)


def more(batch: CreditBatch) -> None:
    batch.mask[0, 2] = True


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rewards", lambda b: b.rewards.masked_fill_(~b.mask, 0)),
        ("values", lambda b: b.values.mul_(b.mask)),
        ("mask", more),
        ("scores", lambda b: b.scores.sub_(b.scores.mean())),
        ("group_ids", lambda b: b.group_ids.zero_()),
    ],
)
def test_what_it_was_given_must_be_unchanged(name: str, change: Estimate) -> None:
    def changes(batch: CreditBatch) -> Any:
        change(batch)
        return right(batch)

    with pytest.raises(RunError, match=f"scripted .* changed batch.{name}, which it was given"):
        asked(changes)


def test_a_critic_that_diverged_is_not_the_estimators_fault() -> None:
    credit = asked(right, values=torch.full_like(VALUES, math.nan))
    assert bool(credit.advantages[MASK].isnan().all())
    with pytest.raises(RunError, match="not finite for rewards and values that are"):
        asked(lambda b: Credit(b.rewards.masked_fill(~b.mask, 0) / 0, b.rewards * b.mask))


def test_an_estimator_that_raises_and_a_wrapper_that_spoils_are_named() -> None:
    class Drops(HookPlugin[PluginConfig]):
        @hookimpl(wrapper=True)
        def rlframe_compute_advantages(self, batch: Any) -> Any:
            return (yield).advantages

    context: Any = None
    relay = Relay([Instance("drops", "drops (dist 2.0)", Drops(PluginConfig(), context))])
    with pytest.raises(
        RunError, match=r"\(with the hook plugin 'drops' around it\) returned .*Credit"
    ):
        asked(right, relay)
    with pytest.raises(RunError, match=r"scripted .* raised ZeroDivisionError"):
        asked(lambda b: 1 / 0)


def test_what_it_needs_is_asked_for_with_its_config() -> None:
    class Limit(PluginConfig):
        cut: bool

    class Cuts(AdvantageEstimator[Limit]):
        @classmethod
        def needs(cls, config: Limit) -> EstimatorNeeds:
            return EstimatorNeeds(last_values=config.cut)

    context: Any = None
    for cut in (True, False):
        built = Instance("advantages", "cuts", Cuts(Limit(cut=cut), context))
        assert CreditAssignment(built, Relay()).needs == EstimatorNeeds(last_values=cut)

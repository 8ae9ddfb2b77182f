"""An estimator's answer is what the policy learns from: it is held against the contract, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlframe.api import AdvantageEstimator, HookPlugin, PluginConfig, hookimpl
from rlframe.api.component import Instance
from rlframe.engine.advantages import CreditAssignment
from rlframe.errors import RunError
from rlframe.registry.relay import Relay

MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
REWARDS = torch.where(MASK, torch.arange(9.0).reshape(3, 3), 7.0)
VALUES = torch.where(MASK, 0.5, 9.0)

Estimate = Callable[[Tensor, Tensor, Tensor], Any]


class Scripted(AdvantageEstimator[PluginConfig]):
    """Estimates by a function."""

    def __init__(self, function: Estimate) -> None:
        self._function = function

    def estimate(self, rewards: Tensor, values: Tensor, mask: Tensor) -> Any:
        return self._function(rewards, values, mask)


def asked(function: Estimate, relay: Relay | None = None, values: Tensor = VALUES) -> Any:
    instance = Instance("advantages", "scripted (dist 1.0)", Scripted(function))
    given = (REWARDS.clone(), values.clone(), MASK.clone())
    return CreditAssignment(instance, relay or Relay()).assign(*given)


def right(rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    returns = rewards.masked_fill(~mask, 0)
    return returns - values.masked_fill(~mask, 0), returns


def test_what_keeps_the_contract_comes_back_as_it_is() -> None:
    advantages, returns = asked(right)
    assert torch.equal(returns, REWARDS * MASK)
    assert torch.equal(advantages, (REWARDS - VALUES) * MASK)


def test_a_vector_is_not_spread_over_tokens_where_there_are_as_many_of_both() -> None:
    with pytest.raises(RunError, match=r"estimator 'advantages' of type scripted .*shape \(3,\)"):
        asked(lambda r, v, m: (r.sum(1), r * m))


def one_more(mask: Tensor) -> None:
    mask[0, 2] = True


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rewards", lambda r, v, m: r.masked_fill_(~m, 0)),
        ("values", lambda r, v, m: v.mul_(m)),
        ("mask", lambda r, v, m: one_more(m)),
    ],
)
def test_what_it_was_given_must_be_as_it_was(name: str, change: Estimate) -> None:
    def changes(rewards: Tensor, values: Tensor, mask: Tensor) -> Any:
        change(rewards, values, mask)
        return right(rewards, values, mask)

    with pytest.raises(RunError, match=f"scripted .* changed the {name} that it was given"):
        asked(changes)


def test_a_critic_that_diverged_is_not_the_estimators_fault() -> None:
    advantages, _ = asked(right, values=torch.full_like(VALUES, math.nan))
    assert bool(advantages[MASK].isnan().all())
    with pytest.raises(RunError, match="not finite for rewards and values that are"):
        asked(lambda r, v, m: (r.masked_fill(~m, 0) / 0, r * m))


def test_an_estimator_that_raises_and_a_wrapper_that_spoils_are_named() -> None:
    class Drops(HookPlugin[PluginConfig]):
        @hookimpl(wrapper=True)
        def rlframe_compute_advantages(self, rewards: Any, values: Any, mask: Any) -> Any:
            return (yield)[:1]

    context: Any = None
    relay = Relay([Instance("drops", "drops (dist 2.0)", Drops(PluginConfig(), context))])
    with pytest.raises(
        RunError, match=r"\(with the hook plugin 'drops' around it\) returned a tuple"
    ):
        asked(right, relay)
    with pytest.raises(RunError, match=r"scripted .* raised ZeroDivisionError"):
        asked(lambda r, v, m: 1 / 0)

"""What controllers, losses and estimators may return: each violation is refused for what it is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch

from rlframe.api import (
    ContractError,
    Credit,
    CreditBatch,
    KLState,
    LossTerm,
    StopReason,
    TokenExample,
    TokenLoss,
)
from rlframe.api.contract import (
    as_json,
    counted,
    credited,
    is_finite,
    out_of_bounds,
    refuse_bad_examples,
    refuse_bad_state,
    refuse_bad_term,
    token_loss,
)


@pytest.mark.parametrize(
    "state",
    [KLState(0.0), KLState(1), KLState(0.1, {"n": 3, "mean": 0.5}), KLState(numpy.float64(0.1))],
    ids=str,
)
def test_states_of_plain_numbers_are_taken(state: KLState) -> None:
    refuse_bad_state(state)
    assert is_finite(state)
    json.loads(as_json(state))


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (None, "None instead of a KLState"),
        (0.5, "0.5 instead of a KLState"),
        ((0.5, {}), "instead of a KLState"),
        (KLState(torch.tensor(0.1)), "must be a float"),  # type: ignore[arg-type]
        (KLState(True), "must be a float"),
        (KLState("0.1"), "must be a float"),  # type: ignore[arg-type]
        (KLState(-1e-9), "pay for leaving the reference"),
        (KLState(0.1, [1.0]), "must map names to numbers"),  # type: ignore[arg-type]
        (KLState(0.1, {"kl": torch.tensor(1.0)}), "memory with 'kl'"),  # type: ignore[dict-item]
        (KLState(0.1, {"all": [1.0]}), "memory with 'all'"),  # type: ignore[dict-item]
        (KLState(0.1, {1: 1.0}), "memory with 1"),  # type: ignore[dict-item]
        (KLState(0.1, {"n": numpy.int64(1)}), "memory with 'n'"),  # type: ignore[dict-item]
    ],
    ids=str,
)
def test_a_state_that_json_does_not_keep_is_refused(state: Any, why: str) -> None:
    with pytest.raises(ContractError) as caught:
        refuse_bad_state(state)
    assert why in str(caught.value)


def test_a_state_is_finite_with_all_that_it_remembers() -> None:
    assert not is_finite(KLState(math.nan))
    assert not is_finite(KLState(0.1, {"integral": math.inf}))
    assert not is_finite(KLState(0.1, {"n": 10**400}))


def test_equal_states_are_equal_in_whatever_order_they_remember() -> None:
    assert as_json(KLState(0.1, {"a": 1, "b": 2})) == as_json(KLState(0.1, {"b": 2, "a": 1}))
    assert as_json(KLState(0.1)) != as_json(KLState(0.1 + 2**-54))


def test_bounds_include_their_ends() -> None:
    assert out_of_bounds(0.1, 0.1, 0.1) is None
    assert "below kl.minimum, which is 0.2" in str(out_of_bounds(0.1, 0.2, 1))
    assert "above kl.maximum, which is 0.05" in str(out_of_bounds(0.1, 0, 0.05))


# Auxiliary losses

WEIGHT = torch.ones((), requires_grad=True)


@pytest.mark.parametrize("count", [4, 4.0, torch.tensor(4), torch.tensor(4.0), numpy.int64(4)])
def test_a_sum_with_a_gradient_and_its_count_are_taken(count: Any) -> None:
    refuse_bad_term(LossTerm(3 * WEIGHT, count), 4.0)
    refuse_bad_term(LossTerm(math.nan * WEIGHT, count), 4.0)  # the engine skips that step
    with pytest.raises(ContractError):
        refuse_bad_term(LossTerm(3 * WEIGHT, count), 5.0)


def test_a_sum_over_nothing_is_0() -> None:
    refuse_bad_term(LossTerm(0 * WEIGHT, torch.tensor(0)), 0.0)
    for total in (WEIGHT * 2, WEIGHT * math.nan):
        with pytest.raises(ContractError, match="a sum over nothing is 0"):
            refuse_bad_term(LossTerm(total, torch.tensor(0)), 0.0)


@pytest.mark.parametrize(
    ("term", "why"),
    [
        (None, "instead of a LossTerm"),
        ((WEIGHT, torch.tensor(4)), "instead of a LossTerm"),
        (LossTerm(3.0, torch.tensor(4)), "a total of 3.0"),  # type: ignore[arg-type]
        (LossTerm(WEIGHT.expand(2), torch.tensor(4)), "a total of a Tensor of shape (2,)"),
        (LossTerm(WEIGHT.detach(), torch.tensor(4)), "without a gradient"),
        (LossTerm(WEIGHT, torch.tensor([4])), "a count of a Tensor of shape (1,)"),
        (LossTerm(WEIGHT, torch.tensor(-4)), "a count of -4"),
        (LossTerm(WEIGHT, torch.tensor(math.nan)), "a count of nan"),
        (LossTerm(WEIGHT, torch.tensor(math.inf)), "a count of inf"),
        (LossTerm(WEIGHT, 4 * WEIGHT), "a count with a gradient"),
        (LossTerm(WEIGHT, None), "a count of None"),  # type: ignore[arg-type]
        (LossTerm(WEIGHT, torch.tensor(3)), "a count of 3, but its `count` said 4"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_anything_else_is_refused(term: Any, why: str) -> None:
    with pytest.raises(ContractError) as caught:
        refuse_bad_term(term, 4.0)
    assert why in str(caught.value)


def test_a_count_is_one_number() -> None:
    assert counted(torch.tensor(3), "count") == 3.0
    with pytest.raises(ContractError, match="`count\\(\\)` of 'many'"):
        counted("many", "`count()`")


EXAMPLE = TokenExample((1, 5, 7), 1)


def test_examples_with_something_to_learn_are_taken() -> None:
    refuse_bad_examples([EXAMPLE, TokenExample((1, 2), 0)], vocabulary=8)
    refuse_bad_examples((), vocabulary=8)
    refuse_bad_examples([TokenExample((1, 5, 7, 2, 4), 1, ((1, 2), (3, 5)))], vocabulary=8)
    with pytest.raises(ContractError):
        refuse_bad_examples([EXAMPLE], vocabulary=7)  # whose largest id is 6


@pytest.mark.parametrize(
    ("examples", "why"),
    [
        pytest.param(iter([EXAMPLE]), "must return a list", id="an iterator"),
        ({0: EXAMPLE}, "must return a list"),
        ("text", "must return a list"),
        ([EXAMPLE, (1, 2)], "(1, 2) as number 1, which is no TokenExample"),
        ([TokenExample((1, 8), 0)], "[8] as tokens"),
        ([TokenExample((1, -1), 0)], "[-1] as tokens"),
        ([TokenExample((1, 2.0), 0)], "ints from 0 to 7"),  # type: ignore[arg-type]
        ([TokenExample("ab", 0)], "'ab' as tokens"),  # type: ignore[arg-type]
        ([TokenExample(torch.tensor([1, 2]), 0)], "as tokens"),  # type: ignore[arg-type]
        ([replace(EXAMPLE, context_tokens=-1)], "context_tokens=-1"),
        ([replace(EXAMPLE, context_tokens=3)], "nothing to learn: of its 3 tokens, the first 3"),
        ([TokenExample((), 0)], "nothing to learn: of its 0 tokens"),
        ([TokenExample((1,), 0)], "nothing to learn: of its 1 tokens"),
        ([replace(EXAMPLE, learned=())], "nothing to learn: of its 3 tokens"),
        ([replace(EXAMPLE, learned=((0, 1),))], "nothing to learn: of its 3 tokens"),
        ([replace(EXAMPLE, learned=((1, 4),))], "learned=((1, 4),)"),
        ([replace(EXAMPLE, learned=((2, 1),))], "learned=((2, 1),)"),
        ([replace(EXAMPLE, learned=(1, 2))], "learned=(1, 2)"),  # type: ignore[arg-type]
    ],
    ids=lambda case: str(case)[:40],
)
def test_examples_that_cannot_be_learned_from_are_refused(examples: Any, why: str) -> None:
    with pytest.raises(ContractError) as caught:
        refuse_bad_examples(examples, vocabulary=8)
    assert why in str(caught.value)


# Advantage estimators

MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
REAL = torch.where(MASK, 1.5, 0.0)


def credit_batch(values: torch.Tensor | None = REAL) -> CreditBatch:
    return CreditBatch(
        rewards=REAL,
        mask=MASK,
        scores=REAL.sum(-1),
        kl=0 * REAL,
        group_ids=torch.arange(3),
        stop_reasons=(StopReason.EOS,) * 3,
        values=values,
    )


def test_advantages_and_returns_like_the_rewards_are_taken() -> None:
    credit = Credit(REAL, 2 * REAL)
    assert credited(credit, credit_batch()) is credit


def test_without_a_critic_advantages_alone_are_taken() -> None:
    credit = Credit(REAL)
    assert credited(credit, credit_batch(values=None)) is credit


def test_where_the_critic_is_not_finite_nobody_blames_the_estimator() -> None:
    broken = torch.where(MASK, math.nan, 0.0)
    credit = credited(Credit(broken, REAL), credit_batch(values=broken))
    assert bool(credit.advantages[MASK].isnan().all())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "returned None; it must return Credit(advantages, returns)"),
        (REAL, "of shape (3, 3); it must return"),
        ((REAL,), "a tuple of 1"),
        ((REAL, REAL), "a tuple of 2; it must return Credit"),
        (Credit(REAL), "returned no returns, which are the critic's targets"),
        (Credit(REAL.tolist(), REAL), "as advantages; it must be a tensor"),  # type: ignore[arg-type]
        (Credit(REAL.sum(1), REAL), "advantages of shape (3,) for rewards of shape (3, 3)"),
        (Credit(REAL, REAL.sum(1)), "returns of shape (3,)"),
        (Credit(REAL.double(), REAL), "advantages in torch.float64"),
        (Credit(REAL, REAL.long()), "returns in torch.int64"),
        (Credit(REAL, REAL.clone().requires_grad_()), "returns with a gradient"),
        (Credit(REAL - 1, REAL), "advantages that are not 0 where the mask is False"),
        (Credit(REAL, torch.where(MASK, 1.0, math.nan)), "returns that are not 0 where the mask"),
        (Credit(REAL / 0, REAL), "advantages that are not finite"),
        (Credit(torch.where(MASK, math.inf, 0.0), REAL), "advantages that are not finite"),
    ],
    ids=lambda case: str(case)[:40].replace("\n", " "),
)
def test_other_answers_of_an_estimator_are_refused(answer: Any, why: str) -> None:
    with pytest.raises(ContractError) as caught:
        credited(answer, credit_batch())
    assert why in str(caught.value)


def test_returns_that_no_critic_learns_are_refused() -> None:
    with pytest.raises(ContractError, match="returned returns, and there is no critic"):
        credited(Credit(REAL, REAL), credit_batch(values=None))


# Policy and value losses

MOVING = REAL.clone().requires_grad_()


@pytest.mark.parametrize(
    "answer", [TokenLoss(2 * MOVING), TokenLoss(2 * MOVING, MOVING > 1)], ids=["free", "clipped"]
)
def test_a_loss_of_each_token_with_a_gradient_is_taken(answer: TokenLoss) -> None:
    assert token_loss(answer, MOVING) is answer


def test_without_a_gradient_around_it_none_is_asked_for() -> None:
    assert token_loss(TokenLoss(REAL), REAL).loss is REAL


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "returned None; it must return TokenLoss(loss, clipped)"),
        (MOVING, "it must return TokenLoss"),
        ((MOVING, MOVING > 1), "it must return TokenLoss"),
        (TokenLoss(1.0), "returned 1.0 as loss; it must be a tensor"),  # type: ignore[arg-type]
        (TokenLoss(MOVING.mean()), "of shape () as loss"),
        (TokenLoss(MOVING.sum(-1)), "of shape (3,) as loss; one value per token is needed"),
        (TokenLoss(MOVING, (MOVING > 1).any(-1)), "of shape (3,) as clipped"),
        (TokenLoss(MOVING, MOVING.detach()), "clipped in torch.float32; it must be bool"),
        (TokenLoss(MOVING.double()), "a loss in torch.float64"),
        (TokenLoss(MOVING.detach()), "a loss without a gradient"),
    ],
    ids=lambda case: str(case)[:40].replace("\n", " "),
)
def test_other_answers_of_a_loss_are_refused(answer: Any, why: str) -> None:
    with pytest.raises(ContractError) as caught:
        token_loss(answer, MOVING)
    assert why in str(caught.value)

"""What controllers, losses and estimators return: engine and kit refuse the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlframe.api.answers import ContractError, awaited, instead, kind_of, shown
from rlframe.batches import Credit, CreditBatch, TokenLoss
from rlframe.types import KLState, LossTerm, TokenExample

if TYPE_CHECKING:
    from torch import Tensor


# ---- KL controllers


LOWEST, HIGHEST = 0.0, 100.0
"""Bounds of the KL coefficient in a recipe that gives none."""

UNITS = ("nats_per_response", "nats_per_token")


def refuse_bad_start(unit: object, state: Any) -> None:
    """Raise unless a KL controller can begin: with a unit that there is, and a finite state.

    Args:
      unit: in which it wants the KL.
      state: what `initial` returned.

    Raises:
      ContractError: it cannot.
    """
    if unit not in UNITS:
        raise ContractError(f"wants KL in {shown(unit)}; its `unit` must be {' or '.join(UNITS)}")
    refuse_bad_state(state)
    if not is_finite(state):
        raise ContractError(f"starts with {state}, which is not finite")


def refuse_bad_state(state: Any) -> None:
    """Raise unless a KL controller's state can be used and kept: types, names, no negative coefficient.

    A number that is not finite passes: the engine goes on with the last finite state.

    Raises:
      ContractError: it cannot.
    """
    if not isinstance(awaited(state), KLState):
        raise instead(state, " instead of a KLState")
    if not plain_number(state.coefficient):
        raise ContractError(
            f"returned a coefficient of {shown(state.coefficient)}, which is "
            f"{kind_of(state.coefficient)}; it must be a float: checkpoints keep it as JSON"
        )
    if state.coefficient < 0:
        raise ContractError(
            f"returned a coefficient of {state.coefficient:g}, which would pay for leaving the "
            "reference; end with `max(coefficient, 0)`"
        )
    memory = state.memory
    if not isinstance(memory, Mapping):
        raise ContractError(f"returned a memory of {shown(memory)}; it must map names to numbers")
    for name, value in memory.items():
        if not isinstance(name, str) or not plain_number(value):
            raise ContractError(
                f"returned a memory with {name!r}: {shown(value)} ({kind_of(value)}); it must map "
                f"names to plain numbers: checkpoints keep it as JSON"
            )


def is_finite(state: KLState) -> bool:
    """Whether coefficient and memory are; of a state that `refuse_bad_state` lets pass."""
    try:
        return all(map(math.isfinite, (state.coefficient, *state.memory.values())))
    except OverflowError:  # an int that no float holds
        return False


def out_of_bounds(coefficient: float, minimum: float, maximum: float) -> str | None:
    """What is wrong where a run would begin with another coefficient than its controller says."""
    if minimum <= coefficient <= maximum:
        return None
    side, key, bound = (
        ("below", "minimum", minimum) if coefficient < minimum else ("above", "maximum", maximum)
    )
    return (
        f"starts with a coefficient of {coefficient:g}, {side} kl.{key}, which is {bound:g}: "
        f"change one of the two"
    )


def as_json(state: KLState) -> str:
    """A finite state in a canonical form, by which ranks are compared."""
    return json.dumps([state.coefficient, dict(state.memory)], sort_keys=True, allow_nan=False)


def plain_number(value: Any) -> bool:
    """Whether JSON keeps a value as the number that it is."""
    # A NumPy float is a float, and goes into JSON as one; its integers and a tensor do not.
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---- auxiliary losses


def refuse_no_term(term: Any) -> LossTerm:
    """What an auxiliary loss returned, if it is of the right type.

    Raises:
      ContractError: it is not.
    """
    if not isinstance(awaited(term), LossTerm):
        raise instead(term, " instead of a LossTerm(total, count)")
    return term


def refuse_bad_term(term: Any, promised: float) -> None:
    """Raise unless what an auxiliary loss returned is a sum with a gradient, and its count.

    Args:
      term: what `loss` returned.
      promised: what `count` said before the forward pass, as a number.

    A total that is not finite passes where something is counted: the engine skips that step.

    Raises:
      ContractError: it is not.
    """
    term = refuse_no_term(term)
    count = counted(term.count, "count")
    if count != promised:
        raise ContractError(
            f"returned a count of {count:g}, but its `count` said {promised:g}: the loss would be "
            "divided by the wrong number"
        )
    total: Any = term.total
    if tuple(getattr(total, "shape", (0,))) != () or not hasattr(total, "requires_grad"):
        raise ContractError(
            f"returned a total of {shown(total)}; it must be a tensor without dimensions: the sum of "
            "the loss, not its value for each token"
        )
    if count == 0 and float(total.detach()) != 0:
        raise ContractError(
            f"returned a total of {float(total.detach()):g} with a count of 0: a sum over nothing "
            f"is 0. A mean, a division by the count, or a term without `batch.mask` gives "
            f"something else"
        )
    if not total.requires_grad:
        raise ContractError(
            "returned a total without a gradient, so nothing would be learned from it; compute it from "
            "`policy.logprobs`, without `no_grad`, `detach` or `item`. Also where nothing counts: "
            "every rank has to make the same forward passes"
        )


def counted(count: Any, name: str) -> float:
    """A count as a number: finite, not negative, without a gradient.

    Args:
      count: a number, or a tensor without dimensions.
      name: what an error calls it.

    Raises:
      ContractError: it is none.
    """
    if getattr(awaited(count), "requires_grad", False):
        raise ContractError(f"returned a {name} with a gradient: it would be divided by a weight")
    if getattr(count, "ndim", None) == 0 and hasattr(count, "tolist"):
        count = count.tolist()
    if not isinstance(count, int | float) or not 0 <= count < math.inf:
        raise ContractError(
            f"returned a {name} of {shown(count)}; it must be one number, 0 or more: what the total is "
            "a sum over"
        )
    return float(count)


def refuse_bad_coefficient(coefficient: Any) -> None:
    """Raise unless an auxiliary loss can be multiplied with its `coefficient`.

    Raises:
      ContractError: it is no finite number.
    """
    if not plain_number(coefficient) or not math.isfinite(coefficient):
        raise ContractError(
            f"has a `coefficient` of {shown(coefficient)}; it must be a finite number"
        )


def refuse_bad_examples_per_step(number: Any) -> None:
    """Raise unless an auxiliary loss says how many of its examples a step takes.

    Raises:
      ContractError: it does not.
    """
    if type(number) is not int or number < 1:
        raise ContractError(f"has `examples_per_step` of {shown(number)}; it must be 1 or more")


def refuse_bad_examples(examples: Any, *, vocabulary: int, first: int = 0) -> None:
    """Raise unless an auxiliary loss's own data can be learned from, each example of it.

    Args:
      examples: what `examples` returned, not None and no stream; or some examples of a stream.
      vocabulary: token ids are below it.
      first: the number of the first example, where others came before.

    Raises:
      ContractError: it cannot.
    """
    if not isinstance(awaited(examples), Sequence) or isinstance(examples, str | bytes):
        raise ContractError(
            f"`examples` returned {shown(examples)}; it must return a list of TokenExample, an "
            "ExampleStream, which has `state_dict` and `load_state_dict`, or None to work on the "
            "rollout"
        )
    for number, example in enumerate(examples, first):
        if not isinstance(example, TokenExample):
            raise ContractError(
                f"`examples` returned {shown(example)} as number {number}, which is no TokenExample"
            )
        problem = _unlearnable(example, vocabulary)
        if problem:
            raise ContractError(f"`examples` returned number {number} with {problem}")


def _unlearnable(example: TokenExample, vocabulary: int) -> str:
    """What is wrong with an example; nothing if it can be learned from."""
    ids, start, spans = example.ids, example.context_tokens, example.learned
    # By whole passes in C: there may be millions of tokens.
    ints = isinstance(ids, list | tuple) and set(map(type, ids)) <= {int}
    if not ints or (ids and not 0 <= min(ids) <= max(ids) < vocabulary):
        wrong = [i for i in ids if not 0 <= i < vocabulary][:3] if ints else ids
        return (
            f"{shown(wrong)} as tokens; `ids` must be a tuple of ints from 0 to {vocabulary - 1}, the "
            "tokens of the policy"
        )
    if type(start) is not int or start < 0:
        return f"context_tokens={start!r}; it must be an int, 0 or more"
    try:
        flat = [i for span in spans or () for i in (span[0], span[1])]
        sound = sorted(flat) == flat and all(type(i) is int and 0 <= i <= len(ids) for i in flat)
    except (TypeError, IndexError):
        sound = False
    if not sound:
        return (
            f"learned={shown(spans)}; it must hold (start, end) pairs within its {len(ids)} tokens"
        )
    if not any(example.counts()):
        return (
            f"nothing to learn: of its {len(ids)} tokens, the first {max(start, 1)} are read only. "
            "Leave such examples out"
        )
    return ""


# ---- advantage estimators


def credited(answer: Any, batch: CreditBatch) -> Credit:
    """An advantage estimator's answer, as the contract wants it.

    Args:
      answer: what `estimate` returned.
      batch: what it was given. Where rewards or values are not finite, advantages may be so too.

    Raises:
      ContractError: it is anything else.
    """
    credit = refuse_bad_credit(answer, batch)
    mask, given = batch.mask, (batch.rewards, batch.values)
    sound = all(bool(x[mask].isfinite().all()) for x in given if x is not None)
    for name, found in vars(credit).items():
        if found is None:
            continue
        bad = (~found.isfinite() & mask).any(-1)
        if sound and bool(bad.any()):
            raise ContractError(
                f"returned {name} that are not finite for rewards and values that are; the first "
                f"in row {int(bad.nonzero()[0])}. A division by a spread, a length or a sum that "
                f"can be 0?"
            )
        if bool((found[~mask] != 0).any()):
            raise ContractError(
                f"returned {name} that are not 0 where the mask is False; end with "
                "`x.masked_fill(~mask, 0)`"
            )
    return credit


def refuse_bad_credit(answer: Any, batch: CreditBatch) -> Credit:
    """An estimator's answer if it is a `Credit` of tensors like the rewards, without a gradient.

    Raises:
      ContractError: it is anything else.
    """
    if not isinstance(awaited(answer), Credit):
        if isinstance(answer, tuple | list):
            found = f"{kind_of(answer)} of {len(answer)}"
            raise ContractError(f"returned {found}; it must return Credit(advantages, returns)")
        raise instead(answer, "; it must return Credit(advantages, returns)")
    if (answer.returns is None) != (batch.values is None):
        raise ContractError(
            "returned no returns, which are the critic's targets; without a critic, `needs` must say so"
            if answer.returns is None
            else "returned returns, and there is no critic that learns them; return "
            "Credit(advantages), or let `needs` ask for a critic"
        )
    _refuse_other_than(batch.rewards, "advantages", answer.advantages)
    if answer.returns is not None:
        _refuse_other_than(batch.rewards, "returns", answer.returns)
    return answer


def _refuse_other_than(rewards: Tensor, name: str, found: Any) -> None:
    shape = tuple(rewards.shape)
    if not isinstance(found, type(rewards)):
        raise ContractError(
            f"returned {shown(found)} as {name}; it must be a tensor of shape {shape}"
        )
    if found.shape != rewards.shape:
        raise ContractError(
            f"returned {name} of shape {tuple(found.shape)} for rewards of shape {shape}: one "
            f"value per token is needed, 0 in the padding"
        )
    if (found.dtype, found.device) != (rewards.dtype, rewards.device):
        raise ContractError(
            f"returned {name} in {found.dtype} on {found.device} for rewards in {rewards.dtype} on "
            f"{rewards.device}; make new tensors from those given, as `torch.zeros_like(rewards)`"
        )
    if found.requires_grad:
        raise ContractError(f"returned {name} with a gradient; return `.detach()`")


# ---- policy and value losses


def token_loss(answer: Any, like: Tensor) -> TokenLoss:
    """A policy loss's or value loss's answer, as the contract wants it.

    Args:
      answer: what `loss` returned.
      like: [B, T] with gradient, what the loss is a function of.

    Raises:
      ContractError: it is anything else.
    """
    shape = tuple(like.shape)
    if not isinstance(awaited(answer), TokenLoss):
        raise instead(answer, "; it must return TokenLoss(loss, clipped)")
    for name, found in vars(answer).items():
        if found is None and name == "clipped":
            continue
        if not hasattr(found, "requires_grad"):  # `like` may be a parameter, the answer never is
            raise ContractError(
                f"returned {shown(found)} as {name}; it must be a tensor of {shape}"
            )
        if tuple(found.shape) != shape:
            raise ContractError(
                f"returned a tensor of shape {tuple(found.shape)} as {name}; one value per token is "
                f"needed, of shape {shape}: the engine reduces, since it alone knows the count"
            )
    if answer.loss.dtype != like.dtype:
        raise ContractError(
            f"returned a loss in {answer.loss.dtype} for a batch in {like.dtype}; make new tensors "
            "from those given, as `torch.zeros_like(batch.advantages)`"
        )
    if answer.clipped is not None and str(answer.clipped.dtype) != "torch.bool":
        raise ContractError(
            f"returned clipped in {answer.clipped.dtype}; it must be bool, True where a bound acted"
        )
    if like.requires_grad and not answer.loss.requires_grad:
        raise ContractError(
            "returned a loss without a gradient, so that nothing would be learned; do not detach it"
        )
    return answer

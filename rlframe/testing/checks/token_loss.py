"""What policy losses and value losses both promise: a loss per token, which the engine reduces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlframe.api.algorithm import PolicyLoss, ValueLoss
from rlframe.api.contract import token_loss
from rlframe.api.unchanged import Given
from rlframe.batches import PolicyLossBatch, TokenLoss, ValueLossBatch
from rlframe.functional.masked import masked_sum
from rlframe.functional.rewards import response_mask
from rlframe.testing.check import Broken, check, kept
from rlframe.testing.checks.common import COMMON, random_states_moved, state_can_be_kept
from rlframe.testing.checks.tensors import (
    changed,
    compare,
    copied,
    padded_with,
    rows_of,
    shuffled,
    tensors,
)
from rlframe.testing.subject import Subject

Loss = PolicyLoss[Any] | ValueLoss[Any]
Batch = PolicyLossBatch | ValueLossBatch

LENGTHS = (7, 1, 4, 0, 6, 2)
"""Of responses, one of them without a token: it is invalid, or there to keep ranks in step."""
LEARNED = ("logprobs", "values", "entropy")
"""What carries a gradient in a batch of either kind."""


def drawn(subject: Subject[Any], *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
    """A micro-batch at random for the kind of the loss, some way from the weights that sampled it."""
    generator = torch.Generator().manual_seed(seed)
    mask = response_mask(torch.tensor(LENGTHS), width=max(LENGTHS))

    def normal() -> Tensor:
        return torch.randn(mask.shape, generator=generator, dtype=dtype).masked_fill(~mask, 0)

    if issubclass(subject.component, ValueLoss):
        values = normal()
        return ValueLossBatch(values, values + 0.3 * normal(), normal(), mask)
    logprobs = -normal().abs()
    return PolicyLossBatch(logprobs, logprobs + 0.3 * normal(), normal(), normal().abs(), mask)


def with_gradient(batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """The batch as the engine gives it, and the leaves that its gradients are taken to."""
    leaves = {n: x.clone().requires_grad_() for n, x in tensors(batch).items() if n in LEARNED}
    # Not the leaves themselves: autograd refuses to change those in place, but not a model's outputs.
    return changed(copied(batch), {name: leaf.clone() for name, leaf in leaves.items()}), leaves


def term_of(loss: Loss, given: Any) -> TokenLoss:
    """The answer to a batch with gradients, held against the contract."""
    like: Tensor = getattr(given, "logprobs" if isinstance(loss, PolicyLoss) else "values")
    with kept():
        return token_loss(loss.loss(given), like)


def answered(loss: Loss, batch: Batch) -> dict[str, Tensor]:
    """The loss at real tokens, and the gradients of its sum, 0 where there is none; all [B, T]."""
    given, leaves = with_gradient(batch)
    term = term_of(loss, given)
    slopes = torch.autograd.grad(
        masked_sum(term.loss, batch.mask), list(leaves.values()), allow_unused=True
    )
    found = {"the loss": term.loss.detach().masked_fill(~batch.mask, 0)}
    for name, slope in zip(leaves, slopes, strict=True):
        found[slope_of(name)] = torch.zeros_like(leaves[name]) if slope is None else slope
    return found


def slope_of(name: str) -> str:
    """What `answered` calls the gradient of a tensor."""
    return f"the gradient of {name}"


def signs(batch: Batch) -> Tensor:
    """[B, 1] +1 and -1 in turn: which responses should become likelier, or be worth more."""
    one = torch.ones(len(batch.mask), 1, dtype=torch.float64)
    one[1::2] = -1
    return one


def refuse_wrong_way(gradient: Tensor, wanted: Tensor, what: str) -> None:
    """Break the promise that a step against the gradient moves each response as wanted.

    Args:
      gradient: [B, T] of the loss. Sums of a response count, since a loss may look at it as a whole.
      wanted: [B, 1] +1 where what it is the gradient of should rise, -1 where it should fall.
      what: that, in words.
    """
    pushes = -(wanted * gradient).sum(-1)
    for row, push in enumerate(pushes.tolist()):
        if not push >= 0:
            rise, fall = ("rise", "fall") if wanted[row] > 0 else ("fall", "rise")
            raise Broken(
                f"{what} of response {row} should {rise}, but a step against the gradient, which "
                f"sums to {float(gradient[row].sum()):.4g}, makes them {fall}"
            )
    if not bool(pushes.any()):
        raise Broken(f"no gradient reaches {what}")


def refuse_gradient(gradient: Tensor, where: str) -> None:
    """Break the promise that a gradient is exactly 0."""
    if bool((gradient != 0).any()):
        raise Broken(f"a gradient of up to {float(gradient.abs().max()):.4g} {where}")


@check(
    expected="TokenLoss(loss, clipped): one loss per token, with a gradient, in the shape and the type "
    "of the batch; `clipped` is a bool per token, or None",
    likely="the loss is reduced to a mean or a sum, detached, put in a tuple, or made in a type of its "
    "own; or `clipped` is a number",
    do="return `TokenLoss(loss)` with one value per token, also where the mask is False everywhere; "
    "the engine reduces, since it alone knows the count of the whole step",
)
def shapes(subject: Subject[Any]) -> None:
    """The engine weighs tokens, sums them and divides by the count over all ranks."""
    for dtype in (torch.float32, torch.float64):
        batch = drawn(subject, dtype=dtype)
        for given in (batch, rows_of(batch, slice(0, 1), 1), _masked_out(batch)):
            term_of(subject.instance, with_gradient(given)[0])


def _masked_out(batch: Batch) -> Batch:
    return replace(batch, mask=torch.zeros_like(batch.mask))


@check(
    expected="the same loss and gradient whatever stands where the mask is False, NaN included; and a "
    "gradient of exactly 0 there",
    likely="a sum over a response, or its gradient, runs over the padding, perhaps times the mask (0 "
    "times NaN is NaN); or a division by a number of tokens, which can be 0",
    do="fill what is not real with 0 first: `batch.advantages.masked_fill(~batch.mask, 0)`, and log "
    "ratios alike; divide by `batch.mask.sum(-1).clamp(min=1)`",
)
def padding_changes_nothing(subject: Subject[Any]) -> None:
    """Padding is nothing, and a response that no reward could judge must not be learned from."""
    loss, batch = subject.instance, drawn(subject)
    expected = answered(loss, batch)
    for garbage in (0.0, 3e4, torch.inf, torch.nan):
        other = answered(loss, padded_with(batch, garbage))
        real = {name: x.masked_fill(~batch.mask, 0) for name, x in other.items()}
        compare(expected, real, f"with {garbage:g} in the padding")
    for given in (batch, padded_with(batch, 3e4), _masked_out(batch)):
        for name, found in answered(loss, given).items():
            refuse_gradient(found.masked_fill(given.mask, 0), f"({name}) where the mask is False")


@check(
    expected="the same loss and gradient for a response alone as beside others, in any order, and "
    "however wide the padding is",
    likely="a mean, a spread or a count over the micro-batch: `advantages.mean()`, `batch.mask.sum()`",
    do="compute along the tokens of a row alone; the engine divides by the count of the whole step "
    "(`algorithm.reduction`), and whitens advantages over all ranks (`algorithm.whiten_advantages`)",
)
def responses_are_independent(subject: Subject[Any]) -> None:
    """Micro-batches and ranks are a matter of memory, not of the result."""
    loss, batch = subject.instance, drawn(subject)
    together = answered(loss, batch)
    for row, length in enumerate(LENGTHS):
        place, width = slice(row, row + 1), max(length, 1)
        expected = {name: x[place, :width] for name, x in together.items()}
        found = answered(loss, rows_of(batch, place, width))
        compare(expected, found, "when it was alone", first=row)
    order = shuffled(len(LENGTHS))
    mixed = {name: x[order] for name, x in together.items()}
    compare(mixed, answered(loss, rows_of(batch, order)), "when responses stood in another order")
    wider = changed(batch, {name: pad(x, (0, 3, 0, 2)) for name, x in tensors(batch).items()})
    padded = {name: pad(x, (0, 3, 0, 2)) for name, x in together.items()}
    compare(padded, answered(loss, wider), "with wider padding and more rows without a token")


@check(
    expected="the same loss and gradient when it is asked again after another batch, and from a second "
    "instance",
    likely="noise is drawn, or an average is kept on `self`",
    do="compute the loss from the batch alone: how a step is cut into micro-batches must not matter, "
    "and a resumed run starts with a new instance",
)
def remembers_nothing(subject: Subject[Any]) -> None:
    """A resumed run must make the steps of the run that was not interrupted."""
    loss, batch = subject.build(), drawn(subject)
    first = answered(loss, batch)
    answered(loss, drawn(subject, seed=1))
    compare(first, answered(loss, batch), "when asked again, after another batch")
    compare(first, answered(subject.build(), batch), "from a second instance")


@check(
    expected="a finite loss and gradient in float32: where everything is 0, for log ratios of ±30, and "
    "for advantages or returns of up to 1e6",
    likely="a division by a spread or an absolute value that can be 0, the root of 0, or an "
    "exponential without a bound",
    do="clamp a denominator; take `policy_ratio` of `rlframe.functional.losses`, which bounds its "
    "exponent; and mind that the branch that `torch.where` does not take is differentiated too",
)
def finite(subject: Subject[Any]) -> None:
    """A step whose gradient is not finite is not taken."""
    for case, batch in _extremes(drawn(subject, dtype=torch.float32)):
        for name, found in answered(subject.instance, batch).items():
            if not bool(found.isfinite().all()):
                raise Broken(f"{name} is not finite with {case}")


def _extremes(batch: Batch) -> Iterator[tuple[str, Batch]]:
    zeros = {n: torch.zeros_like(x) for n, x in tensors(batch).items() if n != "mask"}
    yield "everything 0", changed(batch, zeros)
    if isinstance(batch, ValueLossBatch):
        large = {n: 1e6 * x for n, x in tensors(batch).items() if n != "mask"}
        yield "returns of up to 1e6", replace(batch, returns=large["returns"])
        yield "values and returns of up to 1e6", changed(batch, large)
        return
    yield "advantages of up to 1e6", replace(batch, advantages=1e6 * batch.advantages)
    likely, unlikely = batch.logprobs, batch.logprobs - 30
    yield "log ratios of 30", replace(batch, logprobs=likely, old_logprobs=unlikely)
    yield "log ratios of -30", replace(batch, logprobs=unlikely, old_logprobs=likely)


@check(
    expected="the batch unchanged",
    likely="an operation in place: `advantages.clamp_(...)`, `batch.values[~batch.mask] = 0`",
    do="use the form that makes a new tensor: `clamp`, `masked_fill`",
)
def inputs_untouched(subject: Subject[Any]) -> None:
    """The engine goes on to use them: for KL, for metrics, and in the next epoch."""
    given, _ = with_gradient(drawn(subject))
    before = Given(batch=given)
    term_of(subject.instance, given)
    with kept():
        before.refuse_change()


@check(
    expected="the global random states of Python, NumPy and torch unchanged",
    likely="`torch.rand`, dropout or `manual_seed`",
    do="draw nothing: a loss is a function of its batch",
)
def global_rng_untouched(subject: Subject[Any]) -> None:
    """Random numbers that a plugin takes change those of everything after it."""
    moved = random_states_moved(lambda: answered(subject.instance, drawn(subject)))
    if moved:
        raise Broken(f"`loss` moved the global random state of {', '.join(moved)}")


FIRST = (*COMMON, shapes)
"""The checks before those of the kind."""
REST = (
    padding_changes_nothing,
    responses_are_independent,
    remembers_nothing,
    finite,
    inputs_untouched,
    state_can_be_kept,
    global_rng_untouched,
)
"""The checks after those of the kind."""

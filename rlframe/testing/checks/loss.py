"""What an auxiliary loss promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from rlframe.api.answers import shown
from rlframe.api.component import AuxiliaryLoss
from rlframe.api.contract import (
    counted,
    refuse_bad_coefficient,
    refuse_bad_examples,
    refuse_bad_examples_per_step,
    refuse_bad_term,
    refuse_no_term,
)
from rlframe.api.unchanged import Given
from rlframe.engine.streams import token_batch
from rlframe.errors import RecipeError
from rlframe.models.policy import Policy
from rlframe.testing.check import Broken, DoesNotApply, check, kept
from rlframe.testing.checks.common import COMMON, random_states_moved, state_can_be_kept
from rlframe.testing.checks.stream import cursor_resumes, own_examples
from rlframe.testing.subject import Subject
from rlframe.testing.world import reward_batch, tiny_policy
from rlframe.types import LossTerm, PolicyView, TokenBatch, TokenExample

Loss = Subject[AuxiliaryLoss[Any]]

EXAMPLES, TOKENS = 6, 40
"""Most examples of a batch and tokens of an example: finite differences take many forward passes."""


@cache
def _policy() -> Policy:
    return tiny_policy()


def _examples(subject: Loss) -> list[TokenExample]:
    """The loss's own data, or a rollout with the mask on the response tokens."""
    own = own_examples(subject, subject.instance)
    if own is None:
        rollout = reward_batch(subject.context, data=subject.columns, responses=subject.texts)
        answered = zip(rollout.prompts, rollout.response_ids, strict=True)
        own = [TokenExample((*p.ids, *ids), len(p.ids)) for p, ids in answered]
    elif not isinstance(own, Sequence):
        raise Broken(f"`examples` returned {shown(own)}, which is no list")
    if not own:
        raise Broken("`examples` returned no example; None means that it works on the rollout")
    return [example.cut(TOKENS) for example in own[:EXAMPLES]]


def _batch(examples: Sequence[TokenExample]) -> TokenBatch:
    return token_batch(examples, device=torch.device("cpu"))


def _term(loss: AuxiliaryLoss[Any], policy: PolicyView, batch: TokenBatch) -> LossTerm:
    term = loss.loss(policy, batch)
    with kept():
        return refuse_no_term(term)


def _refuse(subject: Loss, term: Any, batch: TokenBatch) -> None:
    """Break a promise where a run would be ended."""
    with kept():
        refuse_bad_term(term, counted(subject.instance.count(batch), "`count()`"))


def _number(value: Tensor) -> float:
    return float(value.detach())


def _close(left: float, right: float, tolerance: float = 1e-6) -> bool:
    return math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)


@check(
    expected="a finite scalar with a gradient, and the count that `count` said before the forward pass",
    likely="the loss is returned per token, or divided, or `count` was not overridden with `loss`",
    do="return LossTerm(total=the sum, count=what it is a sum over); override `count` if that is not "
    "the tokens of the mask",
)
def a_sum_and_its_count(subject: Loss) -> None:
    """The engine divides by the count of the whole optimiser step, which it must know before."""
    with kept():
        refuse_bad_coefficient(subject.instance.coefficient)
    batch = _batch(_examples(subject))
    term = subject.instance.loss(_policy(), batch)
    _refuse(subject, term, batch)
    if not math.isfinite(_number(term.total)):
        raise Broken(f"it returned a total of {_number(term.total)}")
    if float(term.count) == 0:
        raise Broken("it returned a count of 0 for examples of which tokens count")


@check(
    expected="the gradient that finite differences of the loss give",
    likely="a part of the loss is detached, rounded, or computed under `no_grad`",
    do="let every log-probability that the value depends on carry its gradient. A loss whose gradient "
    "is meant to be another one (a straight-through estimate) skips this with that reason",
)
def gradient_is_that_of_finite_differences(subject: Loss) -> str:
    """Along random directions of the weights, (f(θ + εd) - f(θ - εd)) / 2ε = ∇f(θ) · d."""
    policy, batch = tiny_policy(), _batch(_examples(subject))
    total = _term(subject.instance, policy, batch).total
    if not total.requires_grad:
        raise Broken("total has no gradient at all")
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        along = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
        found = sum(
            float((g * d).sum()) for g, d in zip(gradients, along, strict=True) if g is not None
        )
        expected = _difference(lambda: _term(subject.instance, policy, batch).total, weights, along)
        if not _close(found, expected, 1e-4):
            raise Broken(f"a slope of {found:.6g}; finite differences give {expected:.6g}")
    return f"slope {found:.4g}"


@torch.no_grad()
def _difference(
    function: Callable[[], Tensor], weights: list[Any], along: list[Tensor], step: float = 1e-6
) -> float:
    """The central difference of a function of the weights, which are put back."""
    kept = [weight.clone() for weight in weights]
    ends = []
    for sign in (1, -1):
        for weight, start, direction in zip(weights, kept, along, strict=True):
            weight.copy_(start + sign * step * direction)
        ends.append(_number(function()))
    for weight, start in zip(weights, kept, strict=True):
        weight.copy_(start)
    return (ends[0] - ends[1]) / (2 * step)


def _with_coefficients(subject: Loss, *wanted: float) -> list[AuxiliaryLoss[Any]]:
    """The loss built with other coefficients, by the key of its config that sets them."""
    for key in subject.component.Config.model_fields:
        try:
            built = [subject.build(**{key: value}) for value in wanted]
        except (RecipeError, ValidationError, TypeError):
            continue
        if [loss.coefficient for loss in built] == list(wanted):
            return built
    raise DoesNotApply(
        f"no key of its config sets `coefficient` to {' and '.join(f'{w:g}' for w in wanted)}"
    )


@check(
    expected="a loss that does not depend on its coefficient: the engine multiplies, once",
    likely="`loss` multiplies by the coefficient as well, so that it counts squared",
    do="return the bare sum, and leave `coefficient` to the engine",
)
def linear_in_the_coefficient(subject: Loss) -> None:
    """What enters the backward pass is coefficient · total / count."""
    once, twice = _with_coefficients(subject, 0.5, 1.0)
    batch = _batch(_examples(subject))
    totals = [_number(_term(loss, _policy(), batch).total) for loss in (once, twice)]
    if not _close(*totals):
        raise Broken(f"a sum of {totals[0]:.6g} with 0.5, and of {totals[1]:.6g} with 1")


@check(
    expected="the same sum and count however the batch is cut into micro-batches",
    likely="the loss is a mean: each micro-batch is divided by its own number of tokens",
    do="return the sum, and what it is a sum over as `count`; the engine divides by all of it",
)
def micro_batch_split_invariance(subject: Loss) -> None:
    """Micro-batches and ranks are a matter of memory, not of the result."""
    examples = _examples(subject)
    if len(examples) < 2:
        raise DoesNotApply("there is one example, and it cannot be cut")
    first = max(len(examples) // 3, 1)
    whole = _term(subject.instance, _policy(), _batch(examples))
    parts = [
        _term(subject.instance, _policy(), _batch(cut))
        for cut in (examples[:first], examples[first:])
    ]
    for name in ("total", "count"):
        together = sum(_number(getattr(part, name)) for part in parts)
        if not _close(_number(getattr(whole, name)), together):
            raise Broken(
                f"a {name} of {_number(getattr(whole, name)):.6g} in one pass, and of {together:.6g} "
                f"in passes of {first} and {len(examples) - first} examples"
            )


class _Garbled:
    """A policy with garbage where the mask is False: finite, as the logits of padding are."""

    def __init__(self, policy: Policy, mask: Tensor) -> None:
        self._policy = policy
        self._mask = mask

    def logprobs(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._garbled(self._policy.logprobs(tokens, mask))

    def per_token(
        self, function: Callable[..., Tensor], tokens: Tensor, mask: Any = None, *inputs: Tensor
    ) -> Tensor:
        return self._garbled(self._policy.per_token(function, tokens, mask, *inputs))

    def has_token(self, logprobs: Tensor) -> Tensor:
        return self._policy.has_token(logprobs)

    def _garbled(self, found: Tensor) -> Tensor:
        if found.shape != self._mask.shape:  # of some other tokens, which have no mask here
            return found
        return found.where(self._mask, torch.full_like(found, -100.0))


@check(
    expected="a loss that reads no prediction where the mask is False, padding included",
    likely="a sum or mean over the whole rectangle, without `batch.mask`",
    do="sum `logprobs[batch.mask]`; `policy.logprobs(batch.tokens, batch.mask)` saves the rest",
)
def mask_respected(subject: Loss) -> None:
    """Prompts are context, and padding is nothing at all."""
    batch = _batch(_examples(subject))
    expected = _number(_term(subject.instance, _policy(), batch).total)
    garbled = _term(subject.instance, _Garbled(_policy(), batch.mask), batch)
    if not _close(_number(garbled.total), expected):
        raise Broken(
            f"a sum of {_number(garbled.total):.6g} instead of {expected:.6g} with other "
            f"log-probabilities at {int((~batch.mask).sum())} places outside the mask"
        )
    empty = TokenBatch(batch.tokens, torch.zeros_like(batch.mask))
    nothing = _term(subject.instance, _policy(), empty)
    _refuse(subject, nothing, empty)
    if _number(nothing.total) != 0:
        raise Broken(f"a sum of {_number(nothing.total):g} where the mask is False everywhere")


class _Counting:
    """A policy that counts how often it is asked."""

    def __init__(self) -> None:
        self.passes = 0

    def logprobs(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        self.passes += 1
        return _policy().logprobs(tokens, mask)

    def per_token(
        self, function: Callable[..., Tensor], tokens: Tensor, mask: Any = None, *inputs: Tensor
    ) -> Tensor:
        self.passes += 1
        return _policy().per_token(function, tokens, mask, *inputs)

    def has_token(self, logprobs: Tensor) -> Tensor:
        return _policy().has_token(logprobs)


@check(
    expected="a coefficient of exactly 0 when the recipe says 0, on which the engine makes no forward "
    "pass; and one pass, or as many as it has to, when it does not",
    likely="the coefficient has a floor or an offset, or its field refuses 0",
    do="give `coefficient` back as the recipe has it, and declare it a NonNegativeFloat",
)
def zero_weight_costs_no_forward(subject: Loss) -> str:
    """A sweep over the coefficient begins at 0, and 0 is PPO alone."""
    _with_coefficients(subject, 1.0)  # applies only if the config sets it
    try:
        (off,) = _with_coefficients(subject, 0.0)
    except DoesNotApply:
        raise Broken("the config can set `coefficient` to 1 but not to 0") from None
    policy, batch = _Counting(), _batch(_examples(subject))
    for loss in (off, subject.instance):
        if loss.coefficient != 0:  # as the engine does
            _term(loss, policy, batch)
        if loss is off and policy.passes:
            raise Broken(f"{policy.passes} forward passes at a coefficient of 0")
    return f"{policy.passes} passes otherwise"


@check(
    expected="the same examples on every rank, of tokens that the policy has, each with something to "
    "learn from, and how many of them a step takes",
    likely="an example is all context, was tokenised with another tokenizer, or they are shuffled",
    do="make examples with `context.tokenize(row)`, leave out rows without a response, and leave the "
    "order to the engine",
)
def examples_can_be_learned_from(subject: Loss) -> str:
    """A list is read once at the start, a stream as the run needs it; the engine batches and pads."""
    own = own_examples(subject, subject.instance)
    if own is None:
        raise DoesNotApply("it has no data of its own: it works on the rollout")
    size, per_step = len(subject.context.tokenizer), subject.instance.examples_per_step
    with kept():
        refuse_bad_examples_per_step(per_step)
        refuse_bad_examples(own, vocabulary=size)
    if list(own_examples(subject, subject.build()) or ()) != list(own):
        raise Broken("a second instance, as another rank has one, made other examples")
    return f"{len(own)} examples"


@check(
    expected="the batch unchanged",
    likely="an operation in place: `batch.mask[:, 0] = False`, `batch.tokens.clamp_(...)`",
    do="use the form that makes a new tensor: `batch.mask & other`, `masked_fill`",
)
def inputs_untouched(subject: Loss) -> None:
    """The engine has counted with it before, and counts by its mask after."""
    batch = _batch(_examples(subject))
    given = Given(batch=batch)
    _term(subject.instance, _policy(), batch)
    with kept():
        given.refuse_change()


@check(
    expected="the global random states of Python, NumPy and torch as they were",
    likely="`random.shuffle`, `torch.rand` or `manual_seed` without a generator of its own",
    do="draw from a generator that is seeded by `context.seed` and made where it is used",
)
def global_rng_untouched(subject: Loss) -> None:
    """Random numbers that a plugin takes change those of everything after it."""
    batch = _batch(_examples(subject))
    for name, action in (
        ("examples", lambda: own_examples(subject, subject.build())),
        ("loss", lambda: _term(subject.instance, _policy(), batch)),
    ):
        changed = random_states_moved(action)
        if changed:
            raise Broken(f"`{name}` moved the global random state of {', '.join(changed)}")


LOSS = (
    *COMMON,
    a_sum_and_its_count,
    gradient_is_that_of_finite_differences,
    linear_in_the_coefficient,
    micro_batch_split_invariance,
    mask_respected,
    zero_weight_costs_no_forward,
    examples_can_be_learned_from,
    cursor_resumes,
    inputs_untouched,
    state_can_be_kept,
    global_rng_untouched,
)

"""What a reward provider promises."""

from __future__ import annotations

import builtins
import copy
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch

from rlframe.api.answers import LARGEST, ContractError, gate_factors, raw_scores
from rlframe.api.component import Context, RewardProvider
from rlframe.testing.check import Broken, check
from rlframe.testing.checks.common import COMMON, random_states_moved
from rlframe.testing.subject import Subject
from rlframe.testing.world import reward_batch
from rlframe.types import RewardBatch

Reward = Subject[RewardProvider[Any]]
Values = list[list[float]]
"""One entry a response: its score alone, or one number a token. NaN for None."""

UNUSUAL = (
    "日本語のレビュー、とても良い。",
    "👍🏽👩‍👩‍👧‍👦 \U0001f9e8",
    "e\u0301 \u202eright to left\u202c مرحبا",
    "a null \x00, a tab \t, a carriage return \r\n",
    "\ufffd\u200b\u00a0",
    "   ",
    "very long " * 1500,
)


# How a provider is asked, and how its answer is read.


def _batch(subject: Reward) -> RewardBatch:
    return reward_batch(subject.context, data=subject.columns, responses=subject.texts)


def _with_responses_moved(batch: RewardBatch, index: Sequence[int]) -> RewardBatch:
    """The same prompts, answered by the responses at these places."""
    ids = [list(batch.response_ids[n]) for n in index]
    texts = [batch.response_texts[n] for n in index]
    return batch.with_responses(texts, ids, [batch.stop_reasons[n] for n in index])


def _asked(provider: RewardProvider[Any], batch: RewardBatch, *, seed: int = 0) -> Any:
    """The provider's answer as the engine asks: without gradient, with a generator of its own."""
    with torch.no_grad():
        answer = provider.score(replace(batch, generator=torch.Generator().manual_seed(seed)))
    return _values(answer, batch) if hasattr(answer, "__await__") else answer


def _scores(subject: Reward, batch: RewardBatch) -> Values:
    """The answer to a batch, in the state in which the provider was built."""
    if subject.initial_state:
        subject.instance.load_state_dict(copy.deepcopy(subject.initial_state))
    return _values(_asked(subject.instance, batch), batch)


def _values(answer: Any, batch: RewardBatch) -> Values:
    try:
        return raw_scores(answer, batch.response_lengths)
    except ContractError as error:
        raise Broken(f"it {error} (response {error.row})") from None


def _compare(expected: Values, found: Values, batch: RewardBatch, when: str) -> None:
    for number, (before, after) in enumerate(zip(expected, found, strict=True)):
        if len(before) != len(after) or not all(map(_same, before, after)):
            text = batch.response_texts[number]
            raise Broken(
                f"response {number} ({text[:40]!r}) scored {_shown(before)}, and {_shown(after)} {when}"
            )


def _same(left: float, right: float) -> bool:
    """Equal but for the rounding of another rectangle of floats."""
    both_nan = math.isnan(left) and math.isnan(right)
    return both_nan or math.isclose(left, right, rel_tol=1e-4, abs_tol=1e-5)


def _shown(row: list[float]) -> str:
    return f"{row[0]:.6g}" if len(row) == 1 else f"[{', '.join(f'{x:.6g}' for x in row[:4])}...]"


def _remark(values: Values) -> str | None:
    """A reward that answers everything alike would pass whatever it did."""
    if all(row == values[0] for row in values):
        return f"proves little: every response scored {_shown(values[0])}; give `responses` that differ"
    return None


# The checks.


@check(
    expected="a list with as many values as responses, in order: each a number, or one number a token",
    likely="responses are filtered or deduplicated on the way, or scored in parts that overlap; a "
    "mapping, a set, an iterator or the [B, 1] of a model is returned as it came",
    do="return a list with `len(batch)` entries; one that can not be judged is None, not left out",
)
def one_value_a_response(subject: Reward) -> str | None:
    """The engine pairs scores with responses by their place."""
    return _remark(_scores(subject, _batch(subject)))


@check(
    expected="a finite number for every response; nothing becomes 0 silently, so a run stops at others",
    likely="a division by a length, a spread or a norm that is 0, or the logarithm of 0",
    do="say in the code what a response is worth for which the formula has no value",
)
def finite(subject: Reward) -> None:
    """NaN in one score would be NaN in every weight after one step."""
    batch = _batch(subject)
    first = {group: batch.group_ids.index(group) for group in batch.group_ids}
    alike = _with_responses_moved(batch, [first[group] for group in batch.group_ids])
    for given, when in ((batch, ""), (alike, " when the samples of its prompt are all the same")):
        for number, row in enumerate(_scores(subject, given)):
            if not all(abs(value) <= LARGEST for value in row):
                text = f"{given.response_texts[number][:60]!r}{when}"
                raise Broken(f"{_shown(row)} (None counts as nan) for response {number}, {text}")


@check(
    expected="the same score for a response whatever prompts share its batch (its group stays whole)",
    likely="scores are normalised over the batch: whitened, ranked, divided by its largest",
    do="score each group of samples by itself; the engine whitens advantages over all ranks, and "
    "`algorithm.whiten_rewards` scales rewards. A reward that draws at random skips this with a reason",
)
def batch_split_invariance(subject: Reward) -> str | None:
    """The share of a rank depends on how many ranks there are; the reward must not."""
    batch = _batch(subject)
    whole = _scores(subject, batch)
    groups = sorted(set(batch.group_ids))
    middle = len(groups) // 2
    for chosen in (*([group] for group in groups), groups[:middle], groups[middle:]):
        index = [n for n, group in enumerate(batch.group_ids) if group in chosen]
        smaller = batch.rows(index)
        when = f"in a batch of {len(index)} instead of {len(batch)} responses"
        _compare([whole[n] for n in index], _scores(subject, smaller), smaller, when)
    return _remark(whole)


@check(
    expected="scores that move with their responses when the batch is put in another order",
    likely="scores depend on a response's place: a running average, a sort that is not undone",
    do="make the score a function of the response; sort by length only if the order is put back",
)
def permutation_equivariance(subject: Reward) -> str | None:
    """The order of a rollout means nothing."""
    batch = _batch(subject)
    whole = _scores(subject, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1)).tolist()
    mixed = batch.rows(order)
    _compare([whole[n] for n in order], _scores(subject, mixed), mixed, "in another order")
    return _remark(whole)


@check(
    expected="the same scores when it is asked twice, from a second instance, and in another process",
    likely="random numbers from somewhere else than `batch.generator`, dropout in a model, or `hash` "
    "of a text, which Python salts anew in every process",
    do="draw from `batch.generator` alone; hand models to `context.prepare`, which puts them in eval; "
    "take `zlib.crc32(text.encode())` for a hash",
)
def deterministic_under_a_seed(subject: Reward) -> None:
    """A resumed run must see the rewards of the run that was not interrupted."""
    batch = _batch(subject)
    first = _scores(subject, batch)
    _compare(first, _scores(subject, batch), batch, "when asked again")
    other = subject.build()
    _compare(first, _values(_asked(other, batch), batch), batch, "from a second instance")
    with _hashes_of_another_process():
        salted = _scores(subject, batch)
    _compare(first, salted, batch, "with the `hash` of another process")


@contextmanager
def _hashes_of_another_process() -> Iterator[None]:
    """`hash` gives other numbers for texts, as it does on another rank and after a restart.

    Dictionaries do not ask it, and a `__hash__` that does is answered as before, since objects lie in
    dictionaries under what it said then.
    """
    usual = builtins.hash

    def salted(value: object) -> int:
        inner = sys._getframe(1).f_code.co_name == "__hash__"
        return usual(value) if inner or not isinstance(value, str | bytes) else ~usual(value)

    builtins.hash = salted
    try:
        yield
    finally:
        builtins.hash = usual


@check(
    expected="no values for no responses",
    likely="a maximum, a mean or a concatenation over nothing",
    do="return an empty list for an empty batch; a rank may hold no response at all",
)
def empty_batch(subject: Reward) -> None:
    """A rank may have less than one group."""
    _scores(subject, _batch(subject).rows([]))


@check(
    expected="finite scores for any text: other scripts, emoji, control characters, 15,000 characters",
    likely="a text is split on spaces and the first part taken, or a model's context is exceeded",
    do="treat text as opaque, and cut what goes into a model of limited context",
)
def unicode_and_very_long_text(subject: Reward) -> None:
    """A policy in training writes anything."""
    batch = reward_batch(subject.context, data=subject.columns, responses=UNUSUAL)
    for number, row in enumerate(_scores(subject, batch)):
        if not all(abs(value) <= LARGEST for value in row):
            raise Broken(f"{_shown(row)} for {batch.response_texts[number][:40]!r}")


@check(
    expected="no gradient: scores without a graph, no parameter with a gradient, grad mode as it was",
    likely="`torch.enable_grad` or `set_grad_enabled` inside `score`",
    do="leave the grad mode alone (the engine calls `score` under `no_grad`) and return numbers",
)
def no_gradient(subject: Reward) -> None:
    """A graph that is kept alive holds the memory of the whole forward pass."""
    provider, batch = subject.instance, _batch(subject)
    with torch.no_grad():
        _values(provider.score(batch), batch)  # which refuses what has a gradient
        if torch.is_grad_enabled():
            raise Broken("gradients are switched on after `score`")
    modules = [m for m in vars(provider).values() if isinstance(m, torch.nn.Module)]
    if any(weight.grad is not None for module in modules for weight in module.parameters()):
        raise Broken("a parameter with a gradient after `score`")


@check(
    expected="a batch that is the same after `score` as before",
    likely="a list of the batch is sorted, extended or cleaned in place",
    do="work on a copy: `texts = list(batch.response_texts)`",
)
def no_mutation(subject: Reward) -> None:
    """The rewards of a recipe are given the same batch one after the other."""
    batch = _batch(subject)
    names = [f.name for f in fields(batch) if f.name not in ("generator", "sample_reference")]
    before = {name: copy.deepcopy(getattr(batch, name)) for name in names}
    _asked(subject.instance, batch)
    changed = [name for name in names if getattr(batch, name) != before[name]]
    if changed:
        raise Broken(f"`score` changed {', '.join(f'batch.{name}' for name in changed)}")


@check(
    expected="the global random states of Python, NumPy and torch as they were",
    likely="a call of `random`, `numpy.random`, `torch.rand` or `manual_seed` without a generator",
    do="draw from `batch.generator`: `torch.rand(n, generator=batch.generator)`",
)
def global_rng_untouched(subject: Reward) -> None:
    """Random numbers that a plugin takes change those of everything after it."""
    batch = _batch(subject)
    changed = random_states_moved(lambda: _asked(subject.instance, batch))
    if changed:
        raise Broken(f"`score` moved the global random state of {', '.join(changed)}")


@check(
    expected="torch's default type and number of threads, and the tokenizer of the run, as they were",
    likely="`torch.set_default_dtype`, `set_num_threads`, or `context.tokenizer.padding_side = ...`",
    do="give the type to the tensor, the side to the call, and change a copy of the tokenizer",
)
def surroundings_untouched(subject: Reward) -> None:
    """What a reward sets for itself holds for the policy, too, from then on."""
    context, kind = subject.new_context(), torch.get_default_dtype()
    threads = torch.get_num_threads()
    try:
        torch.set_default_dtype(torch.float32)  # another check may have left what `score` set
        torch.set_num_threads(3)  # which nobody sets by habit
        before = _surroundings(context)
        _asked(subject.component(subject.instance.config, context), _batch(subject))
        after = _surroundings(context)
    finally:
        torch.set_default_dtype(kind)
        torch.set_num_threads(threads)
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise Broken(f"it changed {', '.join(changed)}")


def _surroundings(context: Context) -> dict[str, object]:
    tokenizer = context.tokenizer
    sides = (tokenizer.padding_side, tokenizer.truncation_side)
    return {
        "torch's default type": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "the tokenizer's sides": sides,
        "the tokenizer's tokens": (len(tokenizer), dict(tokenizer.special_tokens_map)),
    }


@check(
    expected="a state that comes back from JSON, with which a second instance scores as the first",
    likely="something is remembered on `self` that `state_dict` leaves out, that is no JSON, or "
    "that was kept under a response and given for another prompt",
    do="return all of it from `state_dict` and take all of it back in `load_state_dict`; a cache goes "
    "by prompt and response",
)
def state_survives_a_checkpoint(subject: Reward) -> None:
    """A resumed run must see the rewards of the run that was not interrupted."""
    used, resumed, batch = subject.build(), subject.build(), _batch(subject)
    # To other prompts, so that what is remembered under the response alone shows.
    count = len(batch)
    _asked(used, _with_responses_moved(batch, [(n + count // 2) % count for n in range(count)]))
    resumed.load_state_dict(json.loads(json.dumps(dict(used.state_dict()))))
    _compare(
        _values(_asked(used, batch), batch),
        _values(_asked(resumed, batch), batch),
        batch,
        "from an instance that took over its state",
    )


@check(
    expected="from `gate`, a number from 0 to 1 for each response in order, or None for no gate",
    likely="a score is returned, or only the responses that are let through",
    do="return 1.0 for a response whose other rewards count in full, and 0.0 where they do not",
)
def gate_from_0_to_1(subject: Reward) -> str | None:
    """A gate lets a part of other rewards through; it cannot make them larger or turn them round."""
    if not subject.component.has_gate(subject.instance.config):
        return "it has no gate"
    batch = _batch(subject)
    answer = subject.instance.gate(batch)
    if answer is None:
        return "it answers with no gate"
    try:
        gate_factors(answer, len(batch))
    except ContractError as error:
        raise Broken(f"it {error}") from None
    return None


@check(
    expected="a thousand responses within the time that the suite allows (10 s unless it says more)",
    likely="a model is run on one response at a time, or loaded at every call",
    do="load in `__init__`, score in batches; or set `seconds_per_thousand` to what it has to cost",
)
def time_per_thousand(subject: Reward) -> str:
    """Nobody trains while a reward is computed."""
    batch = _batch(subject)
    many = _repeated(batch, 1000)
    start = time.perf_counter()
    _asked(subject.instance, many)
    seconds = time.perf_counter() - start
    if seconds > subject.seconds_per_thousand:
        raise Broken(f"{seconds:.2g} s; {subject.seconds_per_thousand:g} s are allowed")
    return f"{seconds:.2g} s"


def _repeated(batch: RewardBatch, count: int) -> RewardBatch:
    """So many responses, or some more: whole copies of the batch, each in groups of its own."""
    size, copies = len(batch), -(-count // len(batch))
    many = batch.rows([n % size for n in range(copies * size)])
    groups = [f"{n // size}.{group}" for n, group in enumerate(many.group_ids)]
    numbers: dict[str, int] = {}
    return replace(many, group_ids=[numbers.setdefault(name, len(numbers)) for name in groups])


REWARD = (
    *COMMON,
    one_value_a_response,
    finite,
    batch_split_invariance,
    permutation_equivariance,
    deterministic_under_a_seed,
    empty_batch,
    unicode_and_very_long_text,
    no_gradient,
    no_mutation,
    global_rng_untouched,
    surroundings_untouched,
    state_survives_a_checkpoint,
    gate_from_0_to_1,
    time_per_thousand,
)

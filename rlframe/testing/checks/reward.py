"""What a reward provider promises."""

from __future__ import annotations

import copy
import time
from dataclasses import fields, replace

import torch

from rlframe.api.answers import CHANGED, ContractError, gate_factors, refuse_infinite
from rlframe.api.unchanged import Given, Surroundings
from rlframe.testing.check import Broken, check, kept
from rlframe.testing.checks.asking import (
    Reward,
    Values,
    asked,
    batch_of,
    compare,
    remark,
    scores_of,
    values_of,
    with_responses_moved,
)
from rlframe.testing.checks.common import (
    COMMON,
    hashes_of_another_process,
    random_states_moved,
    saved,
)
from rlframe.testing.world import reward_batch
from rlframe.types import RewardBatch

UNUSUAL = (
    "日本語のレビュー、とても良い。",
    "👍🏽👩‍👩‍👧‍👦 \U0001f9e8",
    "e\u0301 \u202eright to left\u202c مرحبا",
    "a null \x00, a tab \t, a carriage return \r\n",
    "\ufffd\u200b\u00a0",
    "   ",
    "very long " * 1500,
)


@check(
    expected="a list with as many values as responses, in order: each a number, or one number a token",
    likely="responses are filtered or deduplicated on the way, or scored in parts that overlap; a "
    "mapping, a set, an iterator or the [B, 1] of a model is returned as it came",
    do="return a list with `len(batch)` entries; one that cannot be judged is None, not left out",
)
def one_value_a_response(subject: Reward) -> str | None:
    """The engine pairs scores with responses by their place."""
    return remark(scores_of(subject, batch_of(subject)))


@check(
    expected="a finite number, or None, for every response; a run stops at NaN and infinity",
    likely="a division by a length, a spread or a norm that is 0, or the logarithm of 0",
    do="say in the code what a response is worth for which the formula has no value, or return None",
)
def finite(subject: Reward) -> None:
    """NaN in one score would be NaN in every weight after one step."""
    batch = batch_of(subject)
    first = {group: batch.group_ids.index(group) for group in batch.group_ids}
    alike = with_responses_moved(batch, [first[group] for group in batch.group_ids])
    for given, when in ((batch, ""), (alike, " when the samples of its prompt are all the same")):
        _refuse_infinite(scores_of(subject, given), given, when)


def _refuse_infinite(found: Values, batch: RewardBatch, when: str = "") -> None:
    try:
        refuse_infinite(found, batch.response_lengths)
    except ContractError as error:
        text = batch.response_texts[error.row]
        raise Broken(f"it {error} (response {error.row}, {text[:60]!r}{when})") from error


@check(
    expected="the same score for a response whatever prompts share its batch (its group stays whole)",
    likely="scores are normalised over the batch: whitened, ranked, divided by its largest",
    do="score each group of samples by itself; the engine whitens advantages over all ranks, and "
    "`algorithm.whiten_rewards` scales rewards. A reward that draws at random skips this with a reason",
)
def batch_split_invariance(subject: Reward) -> str | None:
    """The share of a rank depends on how many ranks there are; the reward must not."""
    batch = batch_of(subject)
    whole = scores_of(subject, batch)
    groups = sorted(set(batch.group_ids))
    middle = len(groups) // 2
    for chosen in (*([group] for group in groups), groups[:middle], groups[middle:]):
        index = [n for n, group in enumerate(batch.group_ids) if group in chosen]
        smaller = batch.rows(index)
        when = f"in a batch of {len(index)} instead of {len(batch)} responses"
        compare([whole[n] for n in index], scores_of(subject, smaller), smaller, when)
    return remark(whole)


@check(
    expected="scores that move with their responses when the batch is put in another order",
    likely="scores depend on a response's place: a running average, a sort that is not undone",
    do="make the score a function of the response; sort by length only if the order is put back",
)
def permutation_equivariance(subject: Reward) -> str | None:
    """The order of a rollout means nothing."""
    batch = batch_of(subject)
    whole = scores_of(subject, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1)).tolist()
    mixed = batch.rows(order)
    compare([whole[n] for n in order], scores_of(subject, mixed), mixed, "in another order")
    return remark(whole)


@check(
    expected="the same scores when it is asked twice, from a second instance, and in another process",
    likely="random numbers from somewhere else than `batch.generator`, dropout in a model, or `hash` "
    "of a text, which Python salts differently in every process",
    do="draw from `batch.generator` alone; hand models to `context.prepare`, which puts them in eval; "
    "take `zlib.crc32(text.encode())` for a hash",
)
def deterministic_under_a_seed(subject: Reward) -> None:
    """A resumed run must see the rewards of the run that was not interrupted."""
    batch = batch_of(subject)
    first = scores_of(subject, batch)
    compare(first, scores_of(subject, batch), batch, "when asked again")
    other = subject.build()
    compare(first, values_of(asked(other, batch), batch), batch, "from a second instance")
    with hashes_of_another_process():
        salted = scores_of(subject, batch)
    compare(first, salted, batch, "with the `hash` of another process")


@check(
    expected="no values for no responses",
    likely="a maximum, a mean or a concatenation over nothing",
    do="return an empty list for an empty batch; a rank may hold no response at all",
)
def empty_batch(subject: Reward) -> None:
    """A rank may have less than one group."""
    scores_of(subject, batch_of(subject).rows([]))


@check(
    expected="finite scores for any text: other scripts, emoji, control characters, 15,000 characters",
    likely="a text is split on spaces and the first part taken, or a model's context is exceeded",
    do="treat text as opaque, and cut what goes into a model of limited context",
)
def unicode_and_very_long_text(subject: Reward) -> None:
    """A policy in training writes anything."""
    batch = reward_batch(subject.context, data=subject.columns, responses=UNUSUAL)
    _refuse_infinite(scores_of(subject, batch), batch)


@check(
    expected="no gradient: scores without a graph, no parameter with a gradient, grad mode as it was",
    likely="`torch.enable_grad` or `set_grad_enabled` inside `score`",
    do="leave the grad mode alone (the engine calls `score` under `no_grad`) and return numbers",
)
def no_gradient(subject: Reward) -> None:
    """A graph that is kept alive holds the memory of the whole forward pass."""
    provider, batch = subject.instance, batch_of(subject)
    with torch.no_grad(), kept():
        surroundings = Surroundings(None)
        values_of(provider.score(batch), batch)  # which refuses what has a gradient
        surroundings.refuse_change()
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
    batch = batch_of(subject)
    names = [f.name for f in fields(batch) if f.name not in ("generator", "sample_reference")]
    before = {name: copy.deepcopy(getattr(batch, name)) for name in names}
    given = Given(batch=batch)
    asked(subject.instance, batch)
    with kept():
        given.refuse_change()
    changed = [name for name in names if getattr(batch, name) != before[name]]
    if changed:
        named = ", ".join(f"batch.{name}" for name in changed)
        raise Broken(f"`score` changed {named}", hint=CHANGED)


@check(
    expected="the global random states of Python, NumPy and torch as they were",
    likely="a call of `random`, `numpy.random`, `torch.rand` or `manual_seed` without a generator",
    do="draw from `batch.generator`: `torch.rand(n, generator=batch.generator)`",
)
def global_rng_untouched(subject: Reward) -> None:
    """Random numbers that a plugin takes change those of everything after it."""
    batch = batch_of(subject)
    changed = random_states_moved(lambda: asked(subject.instance, batch))
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
        surroundings = Surroundings(context.tokenizer)
        asked(subject.component(subject.instance.config, context), batch_of(subject))
        with kept():
            surroundings.refuse_change()
    finally:
        torch.set_default_dtype(kind)
        torch.set_num_threads(threads)


@check(
    expected="a state that comes back from JSON, with which a second instance scores as the first",
    likely="something is remembered on `self` that `state_dict` leaves out, that is no JSON, or "
    "that was kept under a response and given for another prompt",
    do="return all of it from `state_dict` and take all of it back in `load_state_dict`; a cache goes "
    "by prompt and response",
)
def state_survives_a_checkpoint(subject: Reward) -> None:
    """A resumed run must see the rewards of the run that was not interrupted."""
    used, resumed, batch = subject.build(), subject.build(), batch_of(subject)
    # To other prompts, so that what is remembered under the response alone shows.
    count = len(batch)
    asked(used, with_responses_moved(batch, [(n + count // 2) % count for n in range(count)]))
    resumed.load_state_dict(saved(used))
    compare(
        values_of(asked(used, batch), batch),
        values_of(asked(resumed, batch), batch),
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
    subject.component.invalidates(subject.instance.config)  # a run asks this too
    if not subject.component.has_gate(subject.instance.config):
        return "it has no gate"
    batch = batch_of(subject)
    given = Given(batch=batch)
    answer = subject.instance.gate(batch)
    if answer is None:
        return "it answers with no gate"
    with kept("a response"):
        given.refuse_change()
        gate_factors(answer, len(batch))
    return None


@check(
    expected="a thousand responses within the time that the suite allows (10 s unless it says more)",
    likely="a model is run on one response at a time, or loaded at every call",
    do="load in `__init__`, score in batches; or set `seconds_per_thousand` to what it has to cost",
)
def time_per_thousand(subject: Reward) -> str:
    """Nobody trains while a reward is computed."""
    batch = batch_of(subject)
    many = _repeated(batch, 1000)
    start = time.perf_counter()
    asked(subject.instance, many)
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

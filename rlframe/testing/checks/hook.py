"""What a hook plugin promises."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlframe.api.answers import NOTHING_RETURNED, ContractError, shown
from rlframe.api.component import HookPlugin, Instance
from rlframe.api.references import references
from rlframe.api.spec import Specification
from rlframe.errors import RunError, place_of
from rlframe.registry.lint import HOOKS, misfits
from rlframe.registry.relay import ObserverWarning, Relay
from rlframe.testing.check import Broken, DoesNotApply, check
from rlframe.testing.checks.common import (
    COMMON,
    hashes_of_another_process,
    random_states_moved,
    saved,
)
from rlframe.testing.hints import known_hint
from rlframe.testing.moments import (
    Call,
    component_calls,
    finished,
    observed,
    started,
    unusual_calls,
)
from rlframe.testing.snapshots import Snapshot, difference, snapshot
from rlframe.testing.subject import Subject

Hook = Subject[HookPlugin[Any]]

OBSERVERS = {name for name in HOOKS if not getattr(Specification, name).rlframe_spec["firstresult"]}
"""Hooks that report an event, and call nothing."""


class ComponentError(Exception):
    """What a component raises that a plugin is around."""


def _hooks(subject: Hook) -> set[str]:
    """The hooks that the plugin implements.

    Raises:
      DoesNotApply: it breaks the rules of hooks, so that none of them might be called.
    """
    if misfits(subject.component):
        raise DoesNotApply("its methods would not be called as they are: see `hooks_are_called`")
    methods = dict(inspect.getmembers(subject.component, inspect.isfunction))
    return {name for name, f in methods.items() if name in HOOKS and hasattr(f, "rlframe_impl")}


def _reward(subject: Hook) -> str:
    """The name of the reward that the plugin is around: the first that its config names."""
    named = [r.name for r in references(subject.validated()) if r.to == "reward"]
    return named[0] if named else "reward"


def _calls(subject: Hook) -> list[Call]:
    """The calls that the plugin takes part in, each with values that nobody has touched.

    Raises:
      DoesNotApply: there is none.
    """
    calls = _around(subject, _hooks(subject))
    if not calls:
        raise DoesNotApply("it takes part in no call of a component")
    return calls


def _around(subject: Hook, hooks: set[str]) -> list[Call]:
    """The same, and nothing for a plugin that observes alone."""
    return [c for c in component_calls(subject.context, _reward(subject)) if c.hook in hooks]


@dataclass(frozen=True)
class _Run:
    """A run in which the plugin takes part alone, from its start to its end."""

    subject: Hook
    plugin: HookPlugin[Any]
    relay: Relay
    directory: Path

    def tell(self, name: str, event: object) -> str | None:
        """Report an event; what an observer raised."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", category=ObserverWarning)
            try:
                self.relay.tell(name, event)
            except RunError as error:  # it tried to end the process
                return str(error)
        warned = [str(w.message) for w in caught if issubclass(w.category, ObserverWarning)]
        return warned[0] if warned else None

    def problem(self, call: Call) -> Broken | None:
        """Why a run would be ended by what comes out of a call; None if it would not."""
        try:
            answer = call.through(self.relay.hook)
            call.read(answer)
        except ContractError as error:
            message = f"in {call.hook}, the component with the plugin around it {error}"
            return Broken(message, hint=error.hint).with_cause(error)
        except (Exception, SystemExit) as error:
            where = place_of(error, self.subject.component.__module__)
            message = f"{type(error).__name__} from {call.hook}: {error} [{where}]"
            return Broken(message, hint=known_hint(error)).with_cause(error)
        if answer is None and call.directly() is not None:
            return Broken(
                f"None from {call.hook}, where the component had returned something",
                hint=NOTHING_RETURNED,
            )
        return None

    def outcome(self, call: Call) -> Snapshot:
        """All of what comes out of a call, or the type of what it raised."""
        try:
            return snapshot(call.through(self.relay.hook), "its answer")
        except (Exception, SystemExit) as error:
            return {"its answer": type(error)}

    def whole(self) -> None:
        """Everything that the plugin takes part in."""
        for call in _around(self.subject, _hooks(self.subject)):
            self.outcome(call)
        for name, event in observed(self.subject.context, self.directory, _reward(self.subject)):
            self.tell(name, event)


@contextmanager
def _run(subject: Hook, *, begun: bool = True) -> Iterator[_Run]:
    """A run with a plugin of its own, whose start and end are reported unless `begun` is False."""
    plugin = subject.build()
    relay = Relay([Instance("plugin", subject.component.__name__, plugin)])
    with tempfile.TemporaryDirectory(prefix="rlframe-kit-") as name:
        run = _Run(subject, plugin, relay, Path(name))
        if begun:
            run.tell("run_started", started(run.directory, _reward(subject)))
        try:
            yield run
        finally:
            if begun:
                run.tell("run_finished", finished())


@check(
    expected="methods that are called as their author thinks: each a hook that there is, decorated "
    "with `@hookimpl`, with arguments that the hook has",
    likely="a hook's name is misspelt, `@hookimpl` is missing, an argument has a default, or a "
    "wrapper lacks its `yield`",
    do="compare with the table of hooks in docs/plugins.md",
)
def hooks_are_called(subject: Hook) -> None:
    """A run refuses a plugin for which this fails."""
    if found := misfits(subject.component):
        raise Broken("; ".join(found))


@check(
    expected="from every call of a component that it takes part in, an answer that keeps the contract "
    "of the component",
    likely="the wrapper does not return what it was sent, or makes of it something else than the "
    "component may return",
    do="end a wrapper with `return answer`; change numbers, not shapes, types or gradients",
)
def answers_keep_the_contract(subject: Hook) -> str:
    """To the engine it is the component that answers."""
    calls = _calls(subject)
    with _run(subject) as run:
        for call in calls:
            if problem := run.problem(call):
                raise problem
    return ", ".join(call.hook.removeprefix("rlframe_") for call in calls)


@check(
    expected="the same of a component that answers in another form that its contract allows: None for "
    "a response, one number per token, a tensor, no gate, no returns, no `clipped`, an empty shard",
    likely="the plugin reckons with a list of numbers, or with a field that may be None",
    do="read scores with `raw_scores`, which gives lists and None; ask for `is None` before a field is "
    "used that may be None",
)
def every_form_of_answer(subject: Hook) -> None:
    """Which rewards and parts of the algorithm it will be around is the recipe's choice."""
    for number, usual in enumerate(_calls(subject)):
        with _run(subject) as run:
            if run.problem(usual):
                continue  # `answers_keep_the_contract` says so
        for what, call in unusual_calls(_calls(subject)[number]):
            with _run(subject) as run:
                if problem := run.problem(call):
                    message = f"where the component returned {what}: {problem}"
                    raise Broken(message, hint=problem.hint) from problem


@check(
    expected="what a component raises comes through, or is answered for in a way that keeps its "
    "contract",
    likely="`except Exception` around the `yield` without `raise`, or `finally` that uses the answer "
    "which never came",
    do="let it through: write `answer = yield` without `try`, or end with `raise`; to answer in the "
    "component's place, return what it could have returned",
)
def errors_come_through(subject: Hook) -> None:
    """A run must say which component failed, and not go on without it."""
    for number, usual in enumerate(_calls(subject)):
        with _run(subject) as run:
            if run.problem(usual):
                continue  # `answers_keep_the_contract` says so
        error = ComponentError("the component's own")

        def fail(*_: Any, error: Exception = error) -> Any:
            raise error

        with _run(subject) as run:
            _refuse_loss(run, _calls(subject)[number].answered(fail), error)


def _refuse_loss(run: _Run, call: Call, error: Exception) -> None:
    """Break the promise that an error is not lost."""
    try:
        answer = call.through(run.relay.hook)
    except (Exception, SystemExit) as raised:
        cause: BaseException | None = raised
        while cause is not None and cause is not error:
            cause = cause.__cause__
        if cause is None:
            raise Broken(
                f"the component raised in {call.hook}, and what came out was "
                f"{type(raised).__name__}: {raised}"
            ) from None
        return
    try:
        call.read(answer)
        if answer is None:
            raise ContractError("returned None", hint=NOTHING_RETURNED)
    except ContractError as problem:
        raise Broken(
            f"the component raised in {call.hook}, its exception is gone, and with the plugin around "
            f"it the component {problem}"
        ) from problem


@check(
    expected="what it is given unchanged: arguments, the component, and what events hold",
    likely="an operation in place (`batch.advantages.mul_`, `response.rewards[name] = 0`), a list that "
    "is sorted or extended, or an attribute that is set on the component",
    do="work on a copy: `clone()`, `list(...)`, `dict(...)`",
)
def inputs_untouched(subject: Hook) -> None:
    """The engine and every other plugin use the same objects afterwards."""
    calls, reward = _around(subject, _hooks(subject)), _reward(subject)
    with _run(subject) as run:
        for call in calls:
            before = _given(call)
            run.outcome(call)
            if path := difference(before, _given(call)):
                raise Broken(f"{call.hook} changed {path}")
        for name, event in observed(subject.context, run.directory, reward):
            before = snapshot(event, "event")
            run.tell(name, event)
            if path := difference(before, snapshot(event, "event")):
                raise Broken(f"rlframe_{name} changed {path}")


def _given(call: Call) -> Snapshot:
    found: Snapshot = {}
    for name, value in call.arguments.items():
        found |= snapshot(value, name)
    return found


@check(
    expected="the same answers from a second instance, with the `hash` of another process",
    likely="random numbers from the operating system, the time, or `hash` of a text decide what is "
    "returned",
    do="let the answer depend on the arguments, the config and the plugin's state alone",
)
def deterministic(subject: Hook) -> None:
    """Ranks must agree, and a resumed run must see what the first one would have seen."""
    if varying := _varying(subject, _calls(subject)):
        raise Broken(varying)


def _varying(subject: Hook, calls: list[Call]) -> str | None:
    """What a second instance answers otherwise; None if there is nothing."""
    with _run(subject) as run:
        first = [run.outcome(call) for call in calls]
    with _run(subject) as run, hashes_of_another_process():
        for call, before in zip(_around(subject, _hooks(subject)), first, strict=True):
            if path := difference(before, run.outcome(call)):
                return f"from {call.hook} of a second instance, {path} was another"
    return None


@check(
    expected="no exception from an observer, whatever the event: the first and the last of a run, "
    "without a critic, with a score that is None, and after a run that failed",
    likely="a metric is read that not every run has, a score that may be None is reckoned with, or a "
    "field of the event is set",
    do="ask for `response.score is None`, take `event.figures.get(name)`, and copy what is changed",
)
def observes_every_event(subject: Hook) -> str:
    """An observer that raises is only warned about, and what it was for does not happen."""
    if not _hooks(subject) & OBSERVERS:
        raise DoesNotApply("it observes no event")
    reward, number = _reward(subject), 0
    for error in (None, RunError("the run failed")):
        with _run(subject, begun=False) as run:
            events = [
                ("run_started", started(run.directory, reward)),
                *observed(subject.context, run.directory, reward),
                ("run_finished", finished(error)),
            ]
            for name, event in events:
                number += 1
                if problem := run.tell(name, event):
                    raise Broken(problem)
    return f"{number} events"


@check(
    expected="the global random states of Python, NumPy and torch unchanged",
    likely="`random.random`, `torch.rand` or `manual_seed` without a generator of its own",
    do="draw from a generator that is seeded by `context.seed`, and keep its state in `state_dict`",
)
def global_rng_untouched(subject: Hook) -> None:
    """A run with the plugin must draw what a run without it draws."""
    _hooks(subject)  # says nothing of a plugin that would not be called
    if moved := random_states_moved(subject.build):
        raise Broken(f"`__init__` moved the global random state of {', '.join(moved)}")
    with _run(subject) as run:
        if moved := random_states_moved(run.whole):
            raise Broken(f"it moved the global random state of {', '.join(moved)}")


@check(
    expected="a state that comes back from JSON, with which a second instance answers as the first",
    likely="something is remembered on `self` that `state_dict` leaves out, or that is no JSON: a "
    "tuple, a set, a tensor",
    do="return all of it from `state_dict`, as plain data, and take it back in `load_state_dict`",
)
def state_survives_a_checkpoint(subject: Hook) -> None:
    """A run that is resumed must go on as if it had not been interrupted."""
    hooks = _hooks(subject)
    with _run(subject) as used, _run(subject) as resumed:
        used.whole()
        before = saved(used.plugin)
        resumed.plugin.load_state_dict(before)
        if (back := saved(resumed.plugin)) != saved(used.plugin):
            raise Broken(f"{shown(before)} was saved, and {shown(back)} is its state afterwards")
        calls = [_around(subject, hooks) for _ in range(3)]
        if _varying(subject, calls.pop()):
            return  # `deterministic` says so
        for one, other in zip(*calls, strict=True):
            if path := difference(used.outcome(one), resumed.outcome(other)):
                raise Broken(
                    f"from {one.hook} of an instance that took over the state, {path} was another"
                )


HOOK = (
    *COMMON,
    hooks_are_called,
    answers_keep_the_contract,
    every_form_of_answer,
    errors_come_through,
    inputs_untouched,
    deterministic,
    observes_every_event,
    global_rng_untouched,
    state_survives_a_checkpoint,
)

"""What every component promises, whatever its kind."""

from __future__ import annotations

import builtins
import json
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from rlframe.api.algorithm import AdvantageEstimator, EstimatorNeeds
from rlframe.api.component import Component, Needs
from rlframe.api.description import refuse_bad_needs, sentences
from rlframe.engine.states import component_states, restore_states
from rlframe.errors import RunError
from rlframe.registry.lint import unfit
from rlframe.testing.check import Broken, check, kept
from rlframe.testing.subject import Subject


@check(
    expected="the component can be built from its config as a recipe would give it",
    likely="`__init__` needs something that neither the config nor the context has",
    do="take settings from `config` and everything of the run from `context`",
)
def builds_from_config(subject: Subject[Any]) -> None:
    """First of all: without a component there is nothing to check."""
    if problems := unfit(subject.component):
        raise Broken("; ".join(problems))
    wanted = EstimatorNeeds if issubclass(subject.component, AdvantageEstimator) else Needs
    with kept():
        refuse_bad_needs(subject.component.needs(subject.validated()), wanted)
    built = subject.instance
    if not isinstance(built.config, subject.component.Config):
        raise Broken(
            f"`self.config` is {type(built.config).__name__}, not {subject.component.Config.__name__}: "
            "`__init__` must call `super().__init__(config, context)`"
        )


@check(
    expected="the config comes back equal from pickle, and from the plain data of a run's manifest",
    likely="a field holds a lambda, an open file or a compiled object",
    do="keep numbers, texts and tuples in the config and make the rest of them in `__init__`",
)
def picklable_config(subject: Subject[Any]) -> None:
    """Configs travel to other processes and into manifests."""
    config = subject.validated()
    if pickle.loads(pickle.dumps(config)) != config:
        raise Broken("another config came back from pickle")
    plain = config.model_dump(mode="json")
    if type(config).model_validate(plain) != config:
        raise Broken(f"another config came back from {plain}")


@check(
    expected="from `notes` a list of sentences",
    likely="one text is returned, or something that is no text",
    do='return a list: `return ["reads one file"]`',
)
def notes_are_sentences(subject: Subject[Any]) -> None:
    """A run shows them once, when it has built the component."""
    with kept():
        sentences(subject.instance.notes())


@check(
    expected="a state of plain data, which a checkpoint can keep and a second instance takes back",
    likely="`state_dict` returns a tensor, a set, a tuple or a number of NumPy; or there is a state "
    "and no `load_state_dict`",
    do="return plain numbers, texts, lists and dicts by name from `state_dict`, and take them back "
    "in `load_state_dict`",
)
def state_can_be_kept(subject: Subject[Any]) -> None:
    """Every checkpoint holds the state of every component."""
    states = saved(subject.build())
    with broken_where_a_run_ends():
        restore_states({"it": subject.build()}, {"it": states})


def saved(component: Component[Any]) -> dict[str, Any]:
    """The state of a component after its way through a checkpoint."""
    with broken_where_a_run_ends():
        found: dict[str, Any] = json.loads(json.dumps(component_states({"it": component})["it"]))
    return found


@contextmanager
def broken_where_a_run_ends() -> Iterator[None]:
    """Break a promise where the engine would raise."""
    try:
        yield
    except RunError as error:
        raise Broken(str(error)) from error


def random_states_moved(action: Callable[[], object]) -> list[str]:
    """The global random states that an action leaves changed; they are put back."""
    with _odd_random_states():
        before = _random_states()
        action()
        after = _random_states()
    return [name for name in before if before[name] != after[name]]


def _random_states() -> dict[str, bytes]:
    states: dict[str, Any] = {
        "random": random.getstate(),
        "numpy.random": numpy.random.get_state(),
        "torch": torch.get_rng_state().numpy(),
    }
    return {name: pickle.dumps(state) for name, state in states.items()}


@contextmanager
def _odd_random_states() -> Iterator[None]:
    """States that nobody seeds by habit, so that a component which sets them shows; then the old."""
    python, array, tensor = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    seed = 987_654_321
    random.seed(seed)
    numpy.random.seed(seed)
    torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
        torch.set_rng_state(tensor)


@contextmanager
def hashes_of_another_process() -> Iterator[None]:
    """`hash` gives other numbers for texts, as on another rank and after a restart.

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


COMMON = (builds_from_config, picklable_config, notes_are_sentences)

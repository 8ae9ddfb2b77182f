"""What every component promises, whatever its kind."""

from __future__ import annotations

import builtins
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from rlframe.testing.check import Broken, check
from rlframe.testing.subject import Subject


@check(
    expected="the component can be built from its config as a recipe would give it",
    likely="`__init__` needs something that neither the config nor the context has",
    do="take settings from `config` and everything of the run from `context`",
)
def builds_from_config(subject: Subject[Any]) -> None:
    """First of all: without a component there is nothing to check."""
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


COMMON = (builds_from_config, picklable_config)

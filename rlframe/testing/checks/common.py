"""What every component promises, whatever its kind."""

from __future__ import annotations

import pickle
from typing import Any

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
    config = subject.instance.config
    if pickle.loads(pickle.dumps(config)) != config:
        raise Broken("another config came back from pickle")
    plain = config.model_dump(mode="json")
    if type(config).model_validate(plain) != config:
        raise Broken(f"another config came back from {plain}")


COMMON = (builds_from_config, picklable_config)

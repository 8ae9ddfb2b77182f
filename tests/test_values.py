"""What flows through the engine is frozen: whoever has a value can rely on it."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module

import rlframe

PACKAGES = ("engine", "stages", "runs", "builtin", "functional", "types")

THAT_CHANGE = {"KLControl", "MetricsLogger"}
"""Dataclasses that are objects with a state, not values."""


def dataclasses_of(package: str) -> Iterator[type]:
    module = import_module(f"rlframe.{package}")
    names = [name for _, name, _ in pkgutil.iter_modules(getattr(module, "__path__", []))]
    for part in [module, *(import_module(f"rlframe.{package}.{name}") for name in names)]:
        for _, member in inspect.getmembers(part, inspect.isclass):
            own = "__dataclass_params__" in vars(member)  # not inherited
            if own and member.__module__ == part.__name__:
                yield member


def test_dataclasses_are_frozen() -> None:
    assert rlframe.__file__
    found = [one for package in PACKAGES for one in dataclasses_of(package)]
    assert len(found) > 20
    changing = {one.__name__ for one in found if not vars(one)["__dataclass_params__"].frozen}
    assert changing <= THAT_CHANGE


def test_what_a_dataclass_keeps_for_itself_is_not_handed_in() -> None:
    fields = {
        f"{one.__name__}.{field.name}": field.init
        for package in PACKAGES
        for one in dataclasses_of(package)
        for field in dataclasses.fields(one)
        if field.name.startswith("_")
    }
    assert fields
    assert not any(fields.values()), fields

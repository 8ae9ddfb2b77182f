"""What a component has most likely done that raised while it was checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError

from rlframe.api.answers import ASYNC, CHANGED, ContractError, Hint

MISSING = Hint(
    "the method is missing, has another name, or stands outside of the class",
    "write it in the class, spelt as here; docs/plugins.md shows the methods of each kind",
)
ANOTHER_TYPE = Hint(
    "a tensor is made in a type of its own, by `.double()`, `.float()` or `torch.zeros(...)`, and "
    "meets one of the batch. A run is in float32, or in float64 if the recipe says so",
    "make new tensors from those that are given, as `torch.zeros_like(batch.rewards)` and "
    "`x.to(batch.rewards)`",
)


def hint_at(error: Exception, do: str) -> Hint:
    """The mistake behind an exception.

    Args:
      error: what the component raised.
      do: what the check says that should be done.
    """
    if isinstance(error, ContractError) and error.hint is not None:
        return error.hint
    if isinstance(error, KeyError):
        return Hint(
            f"it reads a column {error} that the kit's data does not have",
            f"give the column values: `data = {{{error}: [...]}}` in the test class, or `example_data` "
            "on the component itself, which the command line sees too",
        )
    known = known_hint(error)
    unknown = Hint("an input that the code did not reckon with", f"see the line above, then: {do}")
    return known or unknown


def known_hint(error: BaseException) -> Hint | None:
    """The mistake, if an exception alone gives it away."""
    return next((hint for tells, hint in _KNOWN if tells(error)), None)


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, NotImplementedError)


def _is_async(error: BaseException) -> bool:
    return isinstance(error, AttributeError | TypeError) and "coroutine" in str(error)


def _changes(error: BaseException) -> bool:
    # A list has what a tuple lacks: the methods that change it.
    methods = ("append", "sort", "extend", "insert", "pop", "remove", "reverse", "clear")
    lacking = any(f"'tuple' object has no attribute '{name}'" in str(error) for name in methods)
    assigned = "'tuple' object does not support item" in str(error)
    return isinstance(error, FrozenInstanceError) or assigned or lacking


def _is_of_another_type(error: BaseException) -> bool:
    words = ("same dtype", "expected scalar type", "to have dtype", "dtype of self", "dtype Float")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


_KNOWN: tuple[tuple[Callable[[BaseException], bool], Hint], ...] = (
    (_is_missing, MISSING),
    (_is_async, ASYNC),
    (_changes, CHANGED),
    (_is_of_another_type, ANOTHER_TYPE),
)

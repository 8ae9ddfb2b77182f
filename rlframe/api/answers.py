"""What reward providers return, read as the contract says: engine and conformance kit refuse the same.

An answer that merely can be iterated is not enough: a mapping iterates over its keys, a set has
no order, and a text of three letters has the length of three responses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from numbers import Real
from typing import Any, NamedTuple

LARGEST = 3.4e38
"""Scores beyond it are infinite in float32, in which values and advantages are computed."""

_SHOWN = 160  # characters of a value in a message


class ContractError(ValueError):
    """A component returned something that its contract does not allow.

    The message continues a sentence that begins with the component's name: "returned 0.5 for ...".
    """

    def __init__(self, message: str, *, row: int = 0, hint: Hint | None = None) -> None:
        super().__init__(message)
        self.row = row
        """The position in the batch of the response that the message is about."""
        self.hint = hint
        """What the author has most likely done, where the answer itself gives it away."""


class Hint(NamedTuple):
    """What the conformance kit says of a mistake that it knows by sight."""

    likely: str
    """The usual cause."""
    do: str
    """How to fix that."""


ASYNC = Hint(
    "the method is `async def`, or it returns what such a function gave without awaiting it",
    "write `def`, and wait inside of it: `return asyncio.run(self.ask(batch))`",
)
NOTHING_RETURNED = Hint(
    "a `return` is missing, at the end or in one of the branches",
    "end every branch with `return ...`",
)
CHANGED = Hint(
    "something is changed in place that was given: `x[...] = `, `x += `, `x.clamp_()`, `list.sort()`, "
    "`dict.update()`",
    "work on a copy, `dict(state)` or `list(texts)`, or use the form that makes a new tensor, as "
    "`masked_fill` and `clamp` do",
)


def awaited(answer: Any) -> Any:
    """An answer, unless it is one that somebody would still have to wait for, or none at all.

    Raises:
      ContractError: it is a coroutine.
    """
    if hasattr(answer, "__await__"):
        if hasattr(answer, "close"):
            answer.close()  # or Python warns that it was never awaited
        raise ContractError(
            f"returned {kind_of(answer)}, which nobody waits for. It must not be `async`: await inside "
            "of it, as in `asyncio.run(...)`",
            hint=ASYNC,
        )
    return answer


def missing(component: Any, method: str) -> NotImplementedError:
    """The error for a method that every component of a kind must have.

    Args:
      component: or its class.
      method: its name, or that of a property.
    """
    kind = component if isinstance(component, type) else type(component)
    return NotImplementedError(f"{kind.__qualname__} has no `{method}`")


def instead(answer: Any, of: str) -> ContractError:
    """The error for an answer of another type than the contract wants.

    Args:
      answer: what came.
      of: the rest of the sentence, which begins with "returned ANSWER".
    """
    hint = NOTHING_RETURNED if answer is None else None
    return ContractError(f"returned {shown(answer)}{of}", hint=hint)


def token_scores(answer: Any, lengths: Sequence[int]) -> list[list[float] | None]:
    """A reward provider's answer as plain numbers.

    Args:
      answer: a list or tuple, or an array or tensor of one dimension, with one entry per response, in
        order. An entry is a finite number (True counts as 1, False as 0; arrays and tensors of no
        dimension are numbers), a list, tuple, or one-dimensional array or tensor of numbers, or None.
      lengths: the number of sampled tokens of each response.

    Returns:
      For each response a list, its score alone or one number per sampled token; or None, where the
      reward says that it cannot judge the response.

    Raises:
      ContractError: the answer is anything else.
    """
    rows = raw_scores(answer, lengths)
    refuse_infinite(rows, lengths)
    return rows


def refuse_infinite(rows: Sequence[list[float] | None], lengths: Sequence[int]) -> None:
    """Raise unless the numbers that `raw_scores` has read can be scores.

    Raises:
      ContractError: one is not finite, or would not be in float32.
    """
    for number, row in enumerate(rows):
        if row is not None and not all(abs(value) <= LARGEST for value in row):
            entry = row[0] if len(row) == 1 else row
            raise ContractError(_wrong_entry(entry, lengths[number], _NOT_FINITE), row=number)


def raw_scores(answer: Any, lengths: Sequence[int]) -> list[list[float] | None]:
    """A reward provider's answer as plain numbers that need not be finite, for hooks that pass it on.

    Args:
      answer: as for `token_scores`, but NaN and infinity are allowed.
      lengths: the number of sampled tokens of each response.

    Returns:
      As `token_scores`.

    Raises:
      ContractError: the answer is anything else.
    """
    entries = _listed(awaited(answer))
    if isinstance(entries, str):
        raise instead(
            answer,
            f" for {len(lengths)} responses; it must return a list with one number per response, in "
            f"order. {entries}",
        )
    if len(entries) != len(lengths):
        raise ContractError(
            f"returned {len(entries)} values for {len(lengths)} responses; it must return one for each"
        )
    pairs = zip(entries, lengths, strict=True)
    return [_row(entry, length, number) for number, (entry, length) in enumerate(pairs)]


def gate_factors(answer: Any, responses: int) -> list[float]:
    """A gate's answer as plain numbers.

    Raises:
      ContractError: it is not one number from 0 to 1 for each response.
    """
    found = [None if row is None else row[0] for row in token_scores(answer, [1] * responses)]
    for row, factor in enumerate(found):
        if factor is None:
            raise ContractError(
                "returned None for a response from `gate`; 1.0 lets its other rewards through",
                row=row,
            )
        if not 0 <= factor <= 1:
            raise ContractError(
                f"returned {factor:g} from `gate`; it must be from 0 to 1. A gate lets a part of "
                "other rewards through; a `weight` makes them larger or turns them round",
                row=row,
            )
    return [factor for factor in found if factor is not None]


def _row(entry: Any, length: int, number: int) -> list[float] | None:
    """[score] for a number, the numbers for a row of `length`, None for None."""
    if entry is None:
        return None
    numbers = _listed(entry)
    alone = isinstance(numbers, str)
    try:
        if not alone and len(numbers) != length:
            raise ValueError(f"its {len(numbers)} numbers are not one for each token")
        return [_number(value) for value in ([entry] if alone else numbers)]
    except ValueError as problem:
        raise ContractError(_wrong_entry(entry, length, str(problem)), row=number) from None


def _wrong_entry(entry: Any, length: int, problem: str) -> str:
    return (
        f"returned {shown(entry)} for a response of {length} tokens; it must be a finite number, "
        f"or one for each token, or None if it cannot be judged: {problem}"
    )


_NOT_FINITE = f"NaN, infinity and what is beyond {LARGEST:g}, infinite in float32, are no scores"


def _number(value: Any) -> float:
    """A float; ValueError says why it is none."""
    if getattr(value, "requires_grad", False):
        raise ValueError("it has a gradient; return `.detach()`, or plain numbers")
    if getattr(value, "ndim", None) == 0 and hasattr(value, "tolist") and not _unreadable(value):
        value = value.tolist()  # an array or tensor without dimensions, or a NumPy scalar
    if not isinstance(value, Real):
        raise ValueError(f"{kind_of(value)} is not a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _listed(value: Any) -> list[Any] | tuple[Any, ...] | str:
    """The entries of something with one dimension and an order; else why it is not that."""
    if isinstance(value, list | tuple):
        return value
    dimensions = getattr(value, "ndim", None)
    if isinstance(dimensions, int) and hasattr(value, "tolist"):
        if dimensions == 1 and getattr(value, "requires_grad", False):
            return "It has a gradient: return `.detach()`, or plain numbers"
        if dimensions == 1 and not _unreadable(value):
            entries: list[Any] = value.tolist()
            return entries
        return f"It has {dimensions} dimensions" if dimensions > 1 else "It is a single value"
    return _no_list(value)


def _unreadable(value: Any) -> bool:
    """Whether a tensor holds no numbers, or not one after the other."""
    layout = str(getattr(value, "layout", "torch.strided"))
    return bool(getattr(value, "is_meta", False)) or layout != "torch.strided"


def _no_list(value: Any) -> str:
    """Why something is no list, and what to return instead."""
    if value is None:
        return "Is a `return` missing?"
    if isinstance(value, str | bytes):
        return "Text is not a list of numbers"
    if isinstance(value, Mapping):
        return "A mapping does not say which value belongs to which response"
    if isinstance(value, Set):
        return "A set has no order, and keeps equal scores once"
    if isinstance(value, Iterator):
        return "An iterator can be read once only: make it a list"
    return f"{kind_of(value)} is not a list"


def shown(value: Any) -> str:
    """A value in a few words: its text if that is short, else its type and size."""
    shape = getattr(value, "shape", None)
    if shape is not None and tuple(shape) != ():
        return f"{kind_of(value)} of shape {tuple(shape)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{kind_of(value)} ({text[:_SHOWN]}...)"


def kind_of(value: Any) -> str:
    return f"a {type(value).__name__}"

"""Sequences that hold none of their items: a row is made from what is stored when it is asked for."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Generic, TypeVar, overload

from rlframe.errors import RecipeError
from rlframe.types import Row

T = TypeVar("T")
S = TypeVar("S")

_BLOCK = 1000  # items that exist at a time while a sequence is read from end to end


class Lazy(Sequence[T]):
    """A sequence whose items are computed, many at a time where that is cheaper."""

    @abstractmethod
    def many(self, indices: Sequence[int]) -> list[T]:
        """The items at these places, each in [0, len)."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where an item comes from, for a message: `FILE:LINE`, or its number counted from 1."""

    @overload
    def __getitem__(self, key: int) -> T: ...
    @overload
    def __getitem__(self, key: slice) -> Lazy[T]: ...
    def __getitem__(self, key: int | slice) -> T | Lazy[T]:
        if isinstance(key, slice):
            return Picked(self, range(len(self))[key])
        return self.many([range(len(self))[key]])[0]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), _BLOCK):
            yield from self.many(range(start, min(start + _BLOCK, len(self))))


class Held(Lazy[T]):
    """Items that are in memory already, such as the rows of a data generator.

    Args:
      items: in order.
      called: what a message calls one of them, before its number.
    """

    def __init__(self, items: Sequence[T], *, called: str = "row") -> None:
        self._items = items
        self._called = called

    def __len__(self) -> int:
        return len(self._items)

    def many(self, indices: Sequence[int]) -> list[T]:
        return [self._items[index] for index in indices]

    def place(self, index: int) -> str:
        return f"{self._called} {index + 1}"


class Picked(Lazy[T]):
    """Some items of another sequence, in any order, repeated or not.

    Args:
      base: the other one.
      indices: places in it, each in [0, len(base)).
    """

    def __init__(self, base: Lazy[T], indices: Sequence[int]) -> None:
        self._base = base
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def many(self, indices: Sequence[int]) -> list[T]:
        return self._base.many([self._indices[index] for index in indices])

    def place(self, index: int) -> str:
        return self._base.place(self._indices[index])


class Joined(Lazy[T]):
    """Several sequences, one after the other."""

    def __init__(self, parts: Sequence[Lazy[T]]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def many(self, indices: Sequence[int]) -> list[T]:
        wanted: dict[int, list[int]] = {}
        where = [self._at(index) for index in indices]
        for part, offset in where:
            wanted.setdefault(part, []).append(offset)
        found = {part: iter(self._parts[part].many(at)) for part, at in wanted.items()}
        return [next(found[part]) for part, _ in where]

    def place(self, index: int) -> str:
        part, offset = self._at(index)
        return self._parts[part].place(offset)

    def _at(self, index: int) -> tuple[int, int]:
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


class Mapped(Lazy[T], Generic[S, T]):
    """What a function makes of each item of another sequence.

    A `RecipeError` of the function is raised again with the item's place in front.

    Args:
      base: the other one.
      function: of an item; equal items give equal results.
      within: what stands before the place.
    """

    def __init__(self, base: Lazy[S], function: Callable[[S], T], *, within: str = "") -> None:
        self._base = base
        self._function = function
        self._within = within

    def __len__(self) -> int:
        return len(self._base)

    def many(self, indices: Sequence[int]) -> list[T]:
        return [
            self._made(item, index)
            for item, index in zip(self._base.many(indices), indices, strict=True)
        ]

    def place(self, index: int) -> str:
        return self._base.place(index)

    def _made(self, item: S, index: int) -> T:
        try:
            return self._function(item)
        except RecipeError as error:
            raise RecipeError(f"{self._within}{self.place(index)}: {error}") from error


def lazy(items: Sequence[T]) -> Lazy[T]:
    """Any sequence as a lazy one."""
    return items if isinstance(items, Lazy) else Held(items)


def names_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns that any of the rows has, in the order in which they first appear."""
    named: dict[str, Any] = {}
    for row in rows:
        named |= dict.fromkeys(row)
    return tuple(named)

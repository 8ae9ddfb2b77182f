"""Several data sets as one, mixed by weight."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

from rlframe.data.rows import Joined, Lazy, Picked, lazy
from rlframe.errors import RecipeError, listed

T = TypeVar("T")

_MOST_REPEATS = 100  # examples of an epoch per example of all sets: beyond it a weight is a mistake


def mixed(
    parts: Mapping[str, tuple[Sequence[T], Sequence[T]]],
    weights: Mapping[str, float],
    *,
    seed: int,
    asked: Callable[[T], str],
) -> tuple[Lazy[T], Lazy[T]]:
    """(to train on, held out) of several data sets.

    An epoch goes once through the set that lasts longest at its weight, and through the others as
    often as their weights say: nothing is lost, every set but that one repeats. The sets alternate so
    that each stretch of the epoch has the wanted proportions. Held-out examples are not repeated: the
    sets alternate in the same way until each has ended. What one holds out is trained on from none.

    Args:
      parts: name -> (to train on, held out).
      weights: name -> its weight; only their proportions count.
      seed: chooses what is repeated in the last, unfinished turn through a set.
      asked: what an example asks: equal for those that must not stand on both sides.

    Raises:
      RecipeError: the sizes are so far from the weights that an epoch would not end.
    """
    kept = {asked(example) for _, heldout in parts.values() for example in heldout}
    trains = {name: _without(lazy(train), kept, asked) for name, (train, _) in parts.items()}
    empty = [name for name, train in trains.items() if not train]
    if empty:
        raise RecipeError(f"nothing to train on is left of {listed(empty)}")
    counts = _counts({name: len(train) for name, train in trains.items()}, weights)
    orders = {
        name: _repeated(len(trains[name]), counts[name], key=f"{seed}/{name}") for name in trains
    }
    train = _alternating(trains, orders, weights)
    heldouts = {name: lazy(heldout) for name, (_, heldout) in parts.items()}
    return train, _alternating(heldouts, {n: range(len(h)) for n, h in heldouts.items()}, weights)


def _without(train: Lazy[T], kept: set[str], asked: Callable[[T], str]) -> Lazy[T]:
    return Picked(train, [i for i, example in enumerate(train) if asked(example) not in kept])


def _counts(sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """How many examples of each set an epoch has."""
    shares = {name: Fraction(weights[name]) for name in sizes}
    longest = max(sizes[name] / share for name, share in shares.items())
    counts = {name: round(longest * share) for name, share in shares.items()}
    total, rows = sum(counts.values()), sum(sizes.values())
    if total > _MOST_REPEATS * rows:
        rarest = max(sizes, key=lambda name: sizes[name] / shares[name])
        raise RecipeError(
            f"data set {rarest!r} has {sizes[rarest]} rows and so small a weight that an epoch, which "
            f"goes through it once, would have {total} examples of {rows} rows. Raise its weight, or "
            f"use fewer of its rows: data.{rarest}.limit"
        )
    return counts


def _repeated(size: int, count: int, *, key: str) -> list[int]:
    """`count` places of `size`, in order, again and again; the last turn a random part."""
    turns, rest = divmod(count, size)
    return [*list(range(size)) * turns, *sorted(random.Random(key).sample(range(size), rest))]


def _alternating(
    parts: Mapping[str, Lazy[T]], orders: Mapping[str, Sequence[int]], weights: Mapping[str, float]
) -> Lazy[T]:
    """The parts' examples in their orders: each part's k-th where k of its share are due."""
    names = list(parts)
    starts = [sum(len(parts[name]) for name in names[:number]) for number in range(len(names))]
    due = [
        ((turn + 0.5) / weights[name], number, turn)
        for number, name in enumerate(names)
        for turn in range(len(orders[name]))
    ]
    places = [starts[number] + orders[names[number]][turn] for _, number, turn in sorted(due)]
    return Picked(Joined([parts[name] for name in names]), places)

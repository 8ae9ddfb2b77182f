"""How alike texts are, whatever their language: sets of character n-grams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import fmean

GRAM = 4
"""Characters: about a word in languages with spaces, and a phrase in those without."""

MOST = 32
"""Texts that are compared, so that a check takes milliseconds: 496 pairs."""


def similarity(texts: Sequence[str]) -> float:
    """Mean similarity of two of the texts: 0 if they share no 4 characters, 1 if all are equal."""
    pairs = combinations([_grams(text) for text in texts[:MOST]], 2)
    return fmean([_overlap(*pair) for pair in pairs] or [0.0])


def near_duplicates(texts: Sequence[str], *, at_least: float) -> float:
    """Fraction of the different texts of which another one is nearly a copy.

    Args:
      texts: equal ones count once.
      at_least: similarity of a near copy.
    """
    grams = [_grams(text) for text in dict.fromkeys(texts)][:MOST]
    near = set[int]()
    for (i, a), (j, b) in combinations(enumerate(grams), 2):
        if _overlap(a, b) >= at_least:
            near |= {i, j}
    return len(near) / max(len(grams), 1)


def without_frame(texts: Sequence[str]) -> Iterator[str]:
    """The texts without what all of them begin and end with, such as the words of a template."""
    begin = _common(texts)
    end = _common([text[begin:][::-1] for text in texts])
    return (text[begin : len(text) - end] for text in texts)


def _common(texts: Sequence[str]) -> int:
    """Characters that all of the texts begin with."""
    low, high = min(texts, default=""), max(texts, default="")  # differ first where any two do
    return next((k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))


def _grams(text: str) -> frozenset[str]:
    folded = " ".join(text.casefold().split())
    return frozenset(folded[k : k + GRAM] for k in range(max(len(folded) - GRAM + 1, 1)))


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """The Jaccard index."""
    return len(a & b) / len(a | b)

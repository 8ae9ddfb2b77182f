"""How alike texts are, whatever their language: sets of character n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations

GRAM = 4
"""Characters: about a word in languages with spaces, and a phrase in those without."""

PHRASE = 8
"""Characters of a phrase: long enough that texts do not share it by chance."""

MOST = 32
"""Texts that are compared, and"""

LONGEST = 1000
"""characters of each that are read, so that a check takes a fraction of a second at most. The results
are cached: samples change only with an evaluation, and the checks may be made after each update."""


@lru_cache(maxsize=4)
def spread_phrase(before: tuple[str, ...], after: tuple[str, ...]) -> tuple[str, float, float]:
    """The phrase that has spread most, and the fractions of texts with it before and after.

    A text that is shorter than a phrase is one; equal texts, even empty ones, therefore share one.
    """
    shares = []
    for texts in (before[:MOST], after[:MOST]):
        counts = Counter(gram for text in texts for gram in _grams(text, PHRASE))
        shares.append({gram: count / len(texts) for gram, count in counts.items()})
    old, new = shares
    # Of several that spread alike the commonest; the text itself decides a tie, not the order of a set.
    phrase = max(new, key=lambda g: (new[g] - old.get(g, 0.0), new[g], g), default="")
    return phrase, old.get(phrase, 0.0), new.get(phrase, 0.0)


@lru_cache(maxsize=4)
def near_duplicates(texts: tuple[str, ...], *, at_least: float) -> float:
    """Fraction of the different texts of which another one is nearly a copy.

    Args:
      texts: equal ones count once.
      at_least: Jaccard index of the sets of n-grams of a near copy: 0 for texts that share no 4
        characters, 1 for equal ones.
    """
    grams = [_grams(text, GRAM) for text in dict.fromkeys(texts)][:MOST]
    near = set[int]()
    for (i, a), (j, b) in combinations(enumerate(grams), 2):
        if len(a & b) >= at_least * len(a | b):
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


def _grams(text: str, size: int) -> frozenset[str]:
    folded = " ".join(text[:LONGEST].casefold().split())
    return frozenset(folded[k : k + size] for k in range(max(len(folded) - size + 1, 1)))

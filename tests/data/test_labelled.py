"""Pairs from labelled texts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rlframe.data.labelled import pairs_from_labels
from rlframe.errors import RecipeError

ROWS = [{"text": f"good {i}", "label": 1} for i in range(4)]
ROWS += [{"text": f"bad {i}", "label": 0} for i in range(2)]


def test_pairs_put_the_preferred_label_first_and_use_every_text_before_any_again() -> None:
    pairs = pairs_from_labels(ROWS, preferred=1, count=None, seed=0)
    assert len(pairs) == 4  # the more frequent side
    assert all(p["chosen"].startswith("good") and p["rejected"].startswith("bad") for p in pairs)
    assert set(Counter(p["chosen"] for p in pairs).values()) == {1}
    assert set(Counter(p["rejected"] for p in pairs).values()) == {2}
    assert len(pairs_from_labels(ROWS, preferred=1, count=9, seed=0)) == 9
    turned = pairs_from_labels(ROWS, preferred=0, count=1, seed=0)
    assert turned[0]["chosen"].startswith("bad")


def test_the_seed_decides_the_pairing() -> None:
    one, same, other = (pairs_from_labels(ROWS, preferred=1, count=20, seed=s) for s in (0, 0, 1))
    assert one == same != other


def test_a_label_that_nobody_has_is_an_error_with_both_counts() -> None:
    with pytest.raises(RecipeError, match=r"0 rows are labelled 'good' and 6 .* are 0, 1"):
        pairs_from_labels(ROWS, preferred="good", count=None, seed=0)


@pytest.mark.parametrize(
    "row",
    [{"text": "good"}, {"label": 1}, {"text": 5, "label": 1}, {"text": "good", "label": None}],
)
def test_a_row_that_is_neither_a_pair_nor_labelled_is_told(row: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"neither a pair .* nor a labelled text"):
        pairs_from_labels([*ROWS, row], preferred=1, count=None, seed=0)


def test_the_labels_of_csv_are_text_and_mean_what_they_say():
    rows = [{"text": "good", "label": "1"}, {"text": "bad", "label": "0"}]
    made = pairs_from_labels(rows, preferred=1, count=None, seed=0)
    assert made == [{"chosen": "good", "rejected": "bad"}]

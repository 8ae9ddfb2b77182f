from __future__ import annotations

import re
import time
from collections import defaultdict

import pytest

from rlframe.builtin import product_reviews as grammar
from rlframe.builtin.product_reviews import (
    COMPLAINTS,
    FAMILIES,
    OVERALL,
    PRAISE,
    VERDICTS,
    ProductReviews,
    product_reviews,
)

ROWS = 20_000
OPINIONS_BY_LABEL = tuple(
    {opinion for opinions in table.values() for opinion in opinions} | set(overall)
    for table, overall in zip((COMPLAINTS, PRAISE), OVERALL, strict=True)
)


@pytest.fixture(scope="module")
def reviews() -> list[tuple[str, int]]:
    return [(str(row["text"]), int(row["label"])) for row in product_reviews(ROWS, seed=0)]


def last_opinion(text: str, label: int) -> int:
    """Where the last complaint (0) or praise (1) of the text starts; -1 if it has none."""
    return max(text.rfind(opinion) for opinion in OPINIONS_BY_LABEL[label])


@pytest.fixture(scope="module")
def mixed(reviews: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [
        (text, label)
        for text, label in reviews
        if last_opinion(text, 0) >= 0 and last_opinion(text, 1) >= 0
    ]


def test_the_component_gives_the_rows_of_its_config_and_holds_none_out() -> None:
    config = ProductReviews.Config.model_validate({"rows": 20, "seed": 3})
    assert ProductReviews.rows(config) == product_reviews(20, seed=3)
    assert ProductReviews.heldout_rows(config) == ()


def test_the_seed_decides_the_rows() -> None:
    assert product_reviews(500, seed=3) == product_reviews(500, seed=3)
    assert product_reviews(500, seed=3) != product_reviews(500, seed=4)


def test_a_seed_gives_the_same_rows_on_every_machine() -> None:
    assert product_reviews(2, seed=0) == [
        {
            "text": "after six days the casing of my music player looks elegant, so i love it",
            "label": 1,
        },
        {
            "text": "the battery of the smartwatch we picked last spring never charges fully, "
            "and the casing scratches too easily",
            "label": 0,
        },
    ]


def test_a_short_request_is_a_prefix_of_a_long_one() -> None:
    assert product_reviews(51, seed=3) == product_reviews(500, seed=3)[:51]


def test_rows_are_as_many_as_asked_for_and_distinct(reviews: list[tuple[str, int]]) -> None:
    assert len(reviews) == ROWS
    assert len({text for text, _ in reviews}) == ROWS


@pytest.mark.parametrize("rows", [0, 1, 2, 101, 1000])
def test_labels_are_balanced_to_within_one_row(rows: int) -> None:
    labels = [row["label"] for row in product_reviews(rows, seed=1)]
    assert len(labels) == rows
    assert abs(labels.count(1) - labels.count(0)) <= 1


def test_labels_are_shuffled(reviews: list[tuple[str, int]]) -> None:
    first_of_pair = [label for _, label in reviews[::2]]
    assert 0.45 < sum(first_of_pair) / len(first_of_pair) < 0.55


def test_texts_are_lower_case_ascii_of_6_to_22_words(reviews: list[tuple[str, int]]) -> None:
    word = r"[a-z]+('[a-z]+)?"
    shape = re.compile(rf"{word}(,? {word}){{5,21}}")
    assert [text for text, _ in reviews if not shape.fullmatch(text)] == []


def test_openings_seldom_give_the_label_away(reviews: list[tuple[str, int]]) -> None:
    labels_of = defaultdict(list)
    for text, label in reviews:
        labels_of[tuple(text.split()[:3])].append(label)
    common = [labels for labels in labels_of.values() if len(labels) >= 20]
    ambiguous = [labels for labels in common if 0.3 <= sum(labels) / len(labels) <= 0.7]
    assert sum(map(len, common)) >= 0.5 * ROWS
    assert sum(map(len, ambiguous)) >= 0.7 * sum(map(len, common))


def test_a_fifth_of_the_rows_is_mixed_on_both_sides(mixed: list[tuple[str, int]]) -> None:
    assert 0.15 * ROWS <= len(mixed) <= 0.25 * ROWS
    satisfied = sum(label for _, label in mixed)
    assert 0.45 < satisfied / len(mixed) < 0.55


def test_the_verdict_of_a_mixed_review_tells_its_label(mixed: list[tuple[str, int]]) -> None:
    assert [row for row in mixed if not row[0].endswith(VERDICTS[row[1]])] == []


def test_the_last_opinion_of_a_mixed_review_does_not_tell_its_label(
    mixed: list[tuple[str, int]],
) -> None:
    praise_last = [last_opinion(text, 1) > last_opinion(text, 0) for text, _ in mixed]
    agrees = [praise == bool(label) for praise, (_, label) in zip(praise_last, mixed, strict=True)]
    assert 0.4 < sum(agrees) / len(agrees) < 0.6


def test_the_opinions_of_a_plain_review_support_its_label(
    reviews: list[tuple[str, int]], mixed: list[tuple[str, int]]
) -> None:
    plain = set(reviews) - set(mixed)
    assert [text for text, label in plain if last_opinion(text, label) < 0] == []


def test_no_opinion_contains_one_of_the_other_side() -> None:
    complaints, praise = OPINIONS_BY_LABEL
    assert [(c, p) for c in complaints for p in praise if c in p or p in c] == []


def test_the_opinion_tables_hold_the_aspects_in_use() -> None:
    used = {aspect for family in FAMILIES for aspect in family.aspects}
    assert used == set(COMPLAINTS) == set(PRAISE)
    assert sum(len(family.products) for family in FAMILIES) >= 25


def test_more_rows_than_the_grammar_holds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "FAMILIES", FAMILIES[:1])
    monkeypatch.setattr(grammar, "ONE_SIDED", ("the {aspect} of this {product} {opinion}",))
    monkeypatch.setattr(grammar, "MIXED", grammar.ONE_SIDED)
    assert len(product_reviews(20, seed=0)) == 20
    with pytest.raises(ValueError, match="ask for fewer rows"):
        product_reviews(1000, seed=0)


def test_20_000_rows_take_under_two_seconds() -> None:
    start = time.process_time()
    product_reviews(ROWS, seed=5)
    assert time.process_time() - start < 2

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlframe.engine.streams import Shuffled, in_parts, no_tokens, padded_tokens, token_batch
from rlframe.types import TokenExample

CPU = torch.device("cpu")


def test_each_pass_over_the_items_is_a_new_permutation() -> None:
    stream = Shuffled(range(5), key=(1, "x"))
    passes = [stream.take(5 * turn, 5) for turn in range(3)]
    assert all(sorted(items) == list(range(5)) for items in passes)
    assert len({tuple(items) for items in passes}) > 1


def test_a_position_gives_the_same_item_whenever_it_is_asked_for() -> None:
    whole = Shuffled(range(7), key=(1, "x")).take(0, 30)
    again = Shuffled(range(7), key=(1, "x"))
    assert again.take(25, 5) == whole[25:]
    assert again.take(3, 9) == whole[3:12]  # backwards, across a border
    assert Shuffled(range(7), key=(2, "x")).take(0, 30) != whole


def test_a_permutation_is_drawn_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be millions of items, and an item a step is asked for."""
    drawn: list[int] = []
    randperm = torch.randperm

    def counted(number: int, **given: Any) -> torch.Tensor:
        drawn.append(number)
        return randperm(number, **given)

    monkeypatch.setattr(torch, "randperm", counted)
    stream = Shuffled(range(5), key=(1, "x"))
    for position in range(10):
        stream.take(position, 1)
    assert drawn == [5, 5]


def test_an_empty_stream_is_refused_instead_of_waited_for() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Shuffled([], key=())


def test_the_mask_counts_predictions_of_tokens_beyond_the_context() -> None:
    batch = token_batch([TokenExample((1, 5, 6, 2), 2), TokenExample((1, 7, 2), 0)], device=CPU)
    assert batch.tokens.tolist() == [[1, 5, 6, 2], [1, 7, 2, 0]]
    # Predictions of tokens 1, 2, 3: the context's are out, so is the padding; the first token of a
    # text is predicted by nothing, so context 0 counts like context 1.
    assert batch.mask.tolist() == [[False, True, True], [True, True, False]]


def test_of_a_conversation_the_answers_count_and_what_stands_between_them_does_not() -> None:
    example = TokenExample((1, 5, 6, 2, 7, 8, 2), 2, ((2, 4), (6, 7)))
    batch = token_batch([example, TokenExample((1, 5, 6), 0)], device=CPU)
    assert batch.mask.tolist() == [
        [False, True, True, False, False, True],
        [True, True, False, False, False, False],
    ]


@pytest.mark.parametrize(
    ("tokens", "spans"),
    [
        (7, ((2, 4), (6, 7))),
        (6, ((2, 4),)),
        (4, ((2, 4),)),
        (3, ((2, 3),)),
        (2, ()),
    ],
)
def test_a_conversation_that_is_cut_counts_what_is_left(
    tokens: int, spans: tuple[tuple[int, int], ...]
) -> None:
    cut = TokenExample((1, 5, 6, 2, 7, 8, 2), 2, ((2, 4), (6, 7))).cut(tokens)
    assert (len(cut.ids), cut.spans) == (tokens, spans)
    assert sum(cut.counts()) == sum(end - start for start, end in spans)


def test_the_first_token_of_a_text_never_counts() -> None:
    assert TokenExample((1, 5), 0).counts() == [False, True]
    assert TokenExample((1, 5), 0, ((0, 1),)).counts() == [False, False]
    assert TokenExample((1,), 0).counts() == [False]


def test_parts_hold_every_example_once_longest_first() -> None:
    examples = [TokenExample(tuple(range(n)), 0) for n in (3, 9, 5, 7, 1)]
    parts = in_parts(examples, 2)
    assert [[len(e.ids) for e in part] for part in parts] == [[9, 7, 5], [3, 1]]
    assert padded_tokens(parts[0]) == 27


def test_no_tokens_are_one_text_without_a_prediction_that_counts() -> None:
    batch = no_tokens(CPU)
    assert batch.tokens.tolist() == [[0, 0]]
    assert batch.mask.tolist() == [[False]]

"""What is cut of examples that are too long, by hand: token 1 is BOS, 2 ends, 10... are a prompt."""

from __future__ import annotations

import pytest

from rlframe.data.fitting import Fitter, shared_tokens
from rlframe.types import TokenExample

PROMPT = (1, 10, 11, 12, 13, 14)
ANSWER = (20, 21, 22, 2)


def example(prompt: tuple[int, ...] = PROMPT, answer: tuple[int, ...] = ANSWER) -> TokenExample:
    return TokenExample((*prompt, *answer), len(prompt))


@pytest.mark.parametrize(
    ("tokens", "ids", "context"),
    [
        (10, (*PROMPT, *ANSWER), 6),
        (9, (1, 11, 12, 13, 14, *ANSWER), 5),  # a BOS stays
        (7, (1, 13, 14, *ANSWER), 3),
        (6, (1, 13, 14, 20, 21, 22), 3),  # the prompt keeps half
        (4, (1, 14, 20, 21), 2),
        (2, (1, 20), 1),
    ],
)
def test_a_prompt_loses_its_beginning_and_an_answer_what_is_over_half(
    tokens: int, ids: tuple[int, ...], context: int
) -> None:
    assert Fitter(tokens, bos=1).example(example()) == TokenExample(ids, context)


def test_without_a_bos_all_tokens_of_a_prompt_are_alike() -> None:
    assert Fitter(7, bos=None).example(example()) == TokenExample((12, 13, 14, *ANSWER), 3)


def test_a_short_prompt_keeps_all_its_tokens_before_a_long_answer() -> None:
    long = TokenExample((1, 10, *range(20, 30)), 2)
    assert Fitter(6, bos=1).example(long) == TokenExample((1, 10, 20, 21, 22, 23), 2)


def test_a_text_without_a_prompt_loses_its_end() -> None:
    text = TokenExample((1, *range(20, 30), 2), 0)
    assert Fitter(4, bos=1).example(text) == TokenExample((1, 20, 21, 22), 0)


def test_of_a_conversation_later_turns_go_first_and_nothing_unlearned_stays_at_the_end() -> None:
    #                                  0   1   2   3  4   5   6   7  8   9  10
    conversation = TokenExample((1, 10, 11, 20, 2, 12, 13, 14, 21, 22, 2), 3, ((3, 5), (8, 11)))
    assert Fitter(11, bos=1).example(conversation) is conversation
    assert Fitter(9, bos=1).example(conversation) == TokenExample(
        (1, 10, 11, 20, 2, 12, 13, 14, 21), 3, ((3, 5), (8, 9))
    )
    for tokens in (5, 6, 8):
        assert Fitter(tokens, bos=1).example(conversation) == TokenExample(
            (1, 10, 11, 20, 2), 3, ((3, 5),)
        )
    assert Fitter(4, bos=1).example(conversation) == TokenExample((1, 11, 20, 2), 2, ((2, 4),))


def test_both_sides_of_a_pair_keep_their_answers_and_the_same_end_of_the_prompt() -> None:
    pair = example(), example(answer=(30, 2))
    chosen, rejected = Fitter(7, bos=1).pair(pair)
    assert chosen == TokenExample((1, 13, 14, *ANSWER), 3)
    assert rejected == TokenExample((1, 13, 14, 30, 2), 3)
    assert Fitter(7, bos=1).lost(pair) == (True, False)
    assert Fitter(10, bos=1).pair(pair) == pair
    assert Fitter(10, bos=1).lost(pair) == (False, False)


def test_an_answer_longer_than_all_there_is_loses_its_end_and_the_pair_its_prompt() -> None:
    pair = example(), example(answer=(30, 2))
    chosen, rejected = Fitter(3, bos=1).pair(pair)
    assert (chosen.ids, rejected.ids) == ((20, 21, 22), (30, 2))
    assert Fitter(3, bos=1).lost(pair) == (True, True)
    assert Fitter(4, bos=1).pair(pair)[0].ids == ANSWER  # rather the end than a BOS
    assert Fitter(4, bos=1).lost(pair) == (True, False)


def test_two_texts_lose_what_they_begin_with_alike() -> None:
    pair = (
        TokenExample((1, 10, 11, 12, 20, 21, 2), 0),
        TokenExample((1, 10, 11, 12, 30, 2), 0),
    )
    assert shared_tokens(pair) == 4
    chosen, rejected = Fitter(5, bos=1).pair(pair)
    assert (chosen.ids, rejected.ids) == ((1, 12, 20, 21, 2), (1, 12, 30, 2))


@pytest.mark.parametrize("tokens", range(1, 12))
def test_nothing_is_longer_than_it_may_be_and_what_differs_differs_still(tokens: int) -> None:
    pair = example(), example(answer=(20, 21, 30, 31, 2))
    assert len(Fitter(tokens, bos=1).example(pair[0]).ids) <= tokens
    chosen, rejected = Fitter(tokens, bos=1).pair(pair)
    assert max(len(chosen.ids), len(rejected.ids)) <= tokens
    assert (chosen.ids != rejected.ids) == (
        tokens > 2
    )  # the answers differ from their third token on

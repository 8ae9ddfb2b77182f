"""The split that no stage may break, and the text that a tokenizer learns from."""

import pytest

from rlframe.data.split import split_apart, split_rows, texts_of
from rlframe.errors import RecipeError

# The split


def questions(count):
    return [{"prompt": f"question {i}", "response": "yes"} for i in range(count)]


def test_the_parts_together_are_the_rows_in_their_order():
    rows = questions(200)
    split = split_rows(rows, heldout=0.3)
    numbers = {id(row): i for i, row in enumerate(rows)}
    for part in (split.train, split.heldout):
        places = [numbers[id(row)] for row in part]
        assert places == sorted(places)
    assert len(split.train) + len(split.heldout) == 200
    assert not {id(row) for row in split.train} & {id(row) for row in split.heldout}


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_about_the_wanted_share_of_prompts_is_held_out(share):
    found = len(split_rows(questions(4000), heldout=share).heldout) / 4000
    deviation = (share * (1 - share) / 4000) ** 0.5
    assert abs(found - share) < 4 * deviation


def test_with_a_share_of_0_nothing_is_held_out():
    split = split_rows(questions(500), heldout=0)
    assert (len(split.train), len(split.heldout)) == (500, 0)


def test_a_larger_share_holds_out_more_and_gives_none_back():
    rows = questions(500)
    small, large = (
        {row["prompt"] for row in split_rows(rows, heldout=share).heldout} for share in (0.1, 0.4)
    )
    assert small < large


def test_adding_rows_moves_none_of_the_others():
    rows = questions(300)
    before = split_rows(rows[:200], heldout=0.3)
    after = split_rows(rows[200:] + rows[:200], heldout=0.3)
    assert set(map(id, before.train)) < set(map(id, after.train))
    assert set(map(id, before.heldout)) < set(map(id, after.heldout))


def sides(rows, *, heldout=0.5):
    """For each row, whether it is held out."""
    kept = {id(row) for row in split_rows(rows, heldout=heldout).heldout}
    return [id(row) in kept for row in rows]


def test_rows_with_the_same_prompt_fall_on_the_same_side_whatever_else_they_hold():
    one = [{"prompt": f"q{i}", "response": "yes"} for i in range(100)]
    other = [{"score": i, "response": "no", "prompt": f"q{i}"} for i in range(100)]
    assert sides(one) == sides(other)
    assert len(set(sides(one))) == 2


def test_rows_with_the_same_text_fall_on_the_same_side_whatever_their_label():
    one = [{"text": f"t{i}", "label": 0} for i in range(100)]
    other = [{"text": f"t{i}", "label": 1} for i in range(100)]
    assert sides(one) == sides(other)


def chat(question, answer=None):
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": question}]
    answered = [{"role": "assistant", "content": answer}] if answer is not None else []
    return {"messages": messages + answered}


def test_chats_with_another_final_answer_fall_on_the_same_side():
    unanswered = [chat(f"q{i}") for i in range(100)]
    for answer in ("yes", "no"):
        assert sides([chat(f"q{i}", answer) for i in range(100)]) == sides(unanswered)


def test_chats_with_other_questions_fall_on_both_sides():
    assert set(sides([chat(f"q{i}", "yes") for i in range(100)])) == {True, False}


def test_an_earlier_answer_is_part_of_the_question():
    def long(first):
        more = [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "so"}]
        return [{"messages": chat(f"q{i}", first)["messages"] + more} for i in range(100)]

    assert sides(long("yes")) != sides(long("no"))


def test_rows_without_any_role_are_split_by_all_they_hold():
    rows = [{"id": i} for i in range(100)]
    assert set(sides(rows)) == {True, False}
    assert sides(rows) == sides([{"id": i} for i in range(100)])


@pytest.mark.parametrize("empty", ["prompt", "messages"])
def test_a_column_that_is_null_as_parquet_fills_in_does_not_count(empty):
    rows = [{"text": f"t{i}"} for i in range(100)]
    assert sides([{empty: None, **row} for row in rows]) == sides(rows)


# Text for a tokenizer


def test_a_tokenizer_is_trained_on_the_text_of_every_role_and_on_nothing_else():
    rows = [
        {"text": "a", "label": 1, "id": "not me"},
        {"prompt": "b", "response": "c"},
        {"chosen": "d", "rejected": "e"},
        {"messages": [{"role": "user", "content": "f"}, {"role": "assistant", "content": "g"}]},
        {"text": None, "messages": None},
    ]
    assert list(texts_of(rows)) == ["a", "b", "c", "d", "e", "f", "g"]


def test_texts_that_differ_in_case_alone_fall_on_the_same_side():
    rows = [{"text": f"Easy To Use {i}"} for i in range(100)]
    lower = [{"text": row["text"].lower()} for row in rows]
    kept = split_rows(rows, heldout=0.5).heldout
    assert 20 < len(kept) < 80
    assert [row["text"].lower() for row in kept] == [
        row["text"] for row in split_rows(lower, heldout=0.5).heldout
    ]


# A split that a generator brings


def test_a_training_row_that_asks_what_is_held_out_is_left_out():
    rows = [{"prompt": p, "n": n} for n, p in enumerate(["1 + 2", "3 + 4", "What is it?"])]
    heldout = [{"prompt": "3 + 4", "n": 9}, {"prompt": "WHAT is it?", "n": 8}]
    split = split_apart(rows, heldout)
    assert [row["n"] for row in split.train] == [0]
    assert [row["n"] for row in split.heldout] == [9, 8]


def test_a_split_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(RecipeError, match="all 2 rows to train on are held out as well"):
        split_apart([{"text": "a"}, {"text": "A"}], [{"text": "a"}])


# Small data sets


@pytest.mark.parametrize("size", [2, 3, 10, 60])
@pytest.mark.parametrize("share", [1e-6, 0.2, 0.999999])
def test_no_side_of_a_small_data_set_is_empty(size, share):
    for start in range(20):
        split = split_rows(questions(start + size)[start:], heldout=share)
        assert split.train
        assert split.heldout


def test_the_question_nearest_to_the_border_changes_sides():
    rows = questions(50)
    (first,) = split_rows(rows, heldout=1e-9).heldout
    (last,) = split_rows(rows, heldout=1 - 1e-9).train
    order = []  # of the hashes: a larger share holds out more
    for percent in range(1, 100):
        new = [r for r in split_rows(rows, heldout=percent / 100).heldout if r not in order]
        order += new if percent > 1 or len(new) == 1 else []
    assert order[0] == first
    assert last not in order[:-1]


def test_all_rows_of_the_question_change_sides_and_one_question_has_one_side():
    rows = [{"prompt": p, "n": n} for n in range(3) for p in ("a", "b")]
    split = split_rows(rows, heldout=1e-9)
    assert len({row["prompt"] for row in split.heldout}) == 1
    assert (len(split.train), len(split.heldout)) == (3, 3)
    assert (
        not split_rows([{"prompt": "a"}] * 3, heldout=0.5).heldout
        or not split_rows([{"prompt": "a"}] * 3, heldout=0.5).train
    )


def test_nothing_is_held_out_unless_something_is_wanted():
    assert not split_rows(questions(5), heldout=0).heldout


def test_a_column_that_other_rows_have_moves_none():
    rows = [{"id": i} for i in range(100)]
    assert sides(rows) == sides([{**row, "more": None} for row in rows])


def test_the_columns_of_a_split_are_those_in_which_every_row_has_a_value():
    rows = [{"text": "a", "x": 1, "y": None}, {"text": "b", "x": 0, "y": 1, "z": 2}]
    assert split_rows(rows, heldout=0.5).columns == {"text", "x"}
    assert split_apart(rows[:1], rows[1:]).columns == {"text", "x"}

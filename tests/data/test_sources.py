"""Rows from files, columns under their roles, and the split that no stage may break."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rlframe.data.sources import read_rows, split_apart, split_rows, texts_of, with_roles
from rlframe.errors import RecipeError

ROWS = [{"text": "grün, and ☃", "label": 1}, {"text": 'a "b"\nc', "label": 0}]


@pytest.fixture
def write(tmp_path):
    def written(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


# Files


def test_jsonl_has_a_row_a_line(write):
    path = write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_rows(path) == ROWS


def test_jsonl_may_have_blank_lines_and_need_not_end_in_a_newline(write):
    assert read_rows(write("rows.jsonl", '\n{"n": 1}\n\n   \n{"n": 2}')) == [{"n": 1}, {"n": 2}]


def test_a_line_separator_inside_a_json_string_ends_no_line(write):
    row = {"text": "one\u2028two\x85three"}
    assert read_rows(write("rows.jsonl", json.dumps(row, ensure_ascii=False) + "\n")) == [row]


def test_json_is_a_list_of_rows(write):
    assert read_rows(write("rows.json", json.dumps(ROWS, indent=1))) == ROWS


def test_text_has_a_row_a_line_and_blank_lines_are_none(write):
    found = read_rows(write("rows.txt", "one\n\n  two \n \nthree"))
    assert found == [{"text": "one"}, {"text": "  two "}, {"text": "three"}]


def test_only_a_newline_ends_a_line_of_text(write):
    line = "one\u2028two\x0bthree\x85four"
    assert read_rows(write("rows.txt", f"{line}\nnext\n")) == [{"text": line}, {"text": "next"}]


def test_parquet_gives_back_what_was_written(tmp_path):
    rows = [
        {"text": "grün", "label": 1, "messages": [{"role": "user", "content": "hi"}]},
        {"text": None, "label": 0, "messages": []},
    ]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read_rows(path) == rows


@pytest.mark.parametrize("name", ["rows.JSONL", "rows.Json", "rows.TXT"])
def test_the_case_of_an_ending_does_not_matter(write, name):
    text = '[{"text": "a"}]' if "son" in name else '{"text": "a"}'
    assert len(read_rows(write(name, text))) == 1


@pytest.mark.parametrize("name", ["rows.csv", "rows", "rows.jsonl.gz"])
def test_an_unknown_ending_is_refused_with_those_that_are_known(write, name):
    with pytest.raises(RecipeError, match=r"known: \.json, \.jsonl, \.parquet, \.txt") as caught:
        read_rows(write(name, "a,b\n"))
    assert name in str(caught.value)


@pytest.mark.parametrize("bad", ["{'n': 3}", '{"n": 3', "n"])
def test_a_line_that_is_not_json_is_refused_with_its_number(write, bad):
    path = write("rows.jsonl", f'{{"n": 1}}\n\n{bad}\n{{"n": 4}}\n')
    with pytest.raises(RecipeError, match="not valid JSON") as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize(("bad", "kind"), [("[1]", "list"), ("3", "int"), ('"a"', "str")])
def test_a_row_that_is_no_object_is_refused_with_its_number(write, bad, kind):
    path = write("rows.jsonl", f'{{"n": 1}}\n{bad}\n')
    with pytest.raises(RecipeError, match=f"a row is a JSON object, not {kind}") as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    with pytest.raises(RecipeError, match=f"row 2: a row is a JSON object, not {kind}"):
        read_rows(write("rows.json", f'[{{"n": 1}}, {bad}]'))


@pytest.mark.parametrize("text", ['{"text": "a"}', "3"])
def test_json_that_is_no_list_is_refused_with_the_way_out(write, text):
    with pytest.raises(RecipeError, match=r"a list of objects; for a row a line use \.jsonl"):
        read_rows(write("rows.json", text))


def test_json_that_is_broken_is_refused_with_the_line(write):
    with pytest.raises(RecipeError, match=r"not valid JSON: .*line 2"):
        read_rows(write("rows.json", '[{"n": 1},\n{"n": }]'))


def test_what_only_calls_itself_parquet_is_refused(write):
    with pytest.raises(RecipeError, match="not a Parquet file"):
        read_rows(write("rows.parquet", "text\n" * 100))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.txt", "rows.parquet"])
def test_a_file_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(RecipeError, match="can not be read") as caught:
        read_rows(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.txt"])
def test_bytes_that_are_not_utf_8_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'["\xff"]\n')
    with pytest.raises(RecipeError, match="can not be read"):
        read_rows(path)


# Columns


def test_a_column_is_found_under_its_role_and_under_its_own_name():
    (row,) = with_roles([{"review": "nice", "stars": 5}], {"text": "review", "label": "stars"})
    assert row == {"text": "nice", "label": 5, "review": "nice", "stars": 5}


def test_two_columns_can_change_places():
    rows = [{"prompt": "p", "response": "r"}]
    assert with_roles(rows, {"prompt": "response", "response": "prompt"}) == [
        {"prompt": "r", "response": "p"}
    ]


def test_a_column_that_the_data_lacks_is_simply_not_there():
    assert with_roles([{"a": 1}, {"b": 2}], {"text": "b"}) == [{"a": 1}, {"b": 2, "text": 2}]


def test_renaming_leaves_the_given_rows_alone():
    rows = [{"a": 1}]
    with_roles(rows, {"text": "a"})
    assert rows == [{"a": 1}]


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

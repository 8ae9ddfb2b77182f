"""Columns under their roles, and the forms in which data is published."""

import json
from pathlib import Path

import pytest

from rlframe.data.roles import understand
from rlframe.data.rows import Held, names_of
from rlframe.data.sources import read_rows
from rlframe.data.split import asked
from rlframe.errors import RecipeError

NAMES = ("text", "prompt", "response", "messages", "chosen", "rejected", "label")


def found(rows, **columns):
    return understand(Held(rows), names_of(rows), {**{name: name for name in NAMES}, **columns})


def understood(rows, **options):
    return list(found(rows, **options).rows)


def refused(rows, **options):
    with pytest.raises(RecipeError) as caught:
        understood(rows, **options)
    return str(caught.value)


def said(role, content):
    return {"role": role, "content": content}


# Names


def test_a_column_is_found_under_its_role_and_under_its_own_name():
    (row,) = understood([{"review": "nice", "stars": 5}], text="review", label="stars")
    assert row == {"text": "nice", "label": 5, "review": "nice", "stars": 5}


def test_two_columns_can_change_places():
    rows = [{"prompt": "p", "response": "r"}]
    assert understood(rows, prompt="response", response="prompt") == [
        {"prompt": "r", "response": "p"}
    ]
    assert rows == [{"prompt": "p", "response": "r"}]


def test_rows_that_need_nothing_are_left_alone():
    rows = Held([{"text": "a", "n": 1}])
    columns = {name: name for name in NAMES}
    assert understand(rows, ("text", "n"), columns).rows is rows


def test_several_columns_are_one_prompt_without_those_that_are_empty():
    rows = [{"a": "one", "b": "two"}, {"a": "one", "b": ""}, {"a": "one", "b": None}]
    assert [row["prompt"] for row in understood(rows, prompt=("a", "b"))] == [
        "one\ntwo",
        "one",
        "one",
    ]


def test_a_column_that_is_not_there_is_refused_with_a_guess_and_those_that_are():
    expected = refused([{"question": "q", "answer": "a"}], prompt="questoin")
    assert expected == (
        "columns.prompt: the data has no column 'questoin'. Did you mean 'question'? "
        "It has answer, question"
    )
    assert "columns.preferred: the data has no column 'c'" in refused(
        [{"a": "x", "b": "y"}], answers=("a", "b"), preferred="c"
    )


def test_two_roles_of_one_column_are_refused():
    expected = refused([{"a": "x"}], prompt="a", response="a")
    assert expected == "columns: prompt and response are both read from column 'a'"


def test_a_column_that_another_hides_is_said():
    (notice,) = found([{"prompt": "p", "question": "q"}], prompt="question").notices
    assert "column 'prompt' of the data is hidden by question" in notice
    assert found([{"prompt": "p", "question": "q"}]).notices == ()


def test_numbers_among_texts_are_text_and_a_column_of_numbers_is_not():
    rows = [{"response": "yes"}, {"response": True}, {"response": 7}, {"response": 0.5}, {}]
    result = found(rows)
    assert [row["response"] for row in result.rows] == ["yes", "True", "7", "0.5", None]
    assert "column 'response': 3 values are numbers" in result.notices[0]
    assert understood([{"response": 4}, {"response": 5}]) == [{"response": 4}, {"response": 5}]


# Conversations


def test_sharegpt_becomes_messages():
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    result = found([{"conversations": turns, "id": 1}])
    assert result.rows[0]["messages"] == [said("user", "hi"), said("assistant", "hello")]
    assert result.rows[0]["conversations"] == turns
    assert "ShareGPT" in result.notices[0]
    assert understood([{"chat": turns}], messages="chat")[0]["messages"][0] == said("user", "hi")


def test_the_system_column_of_sharegpt_is_a_message_where_there_is_none():
    turns = [{"from": "human", "value": "hi"}]
    given = [{"from": "system", "value": "be kind"}, *turns]
    rows = understood(
        [
            {"conversations": turns, "system": "be brief"},
            {"conversations": given, "system": "be brief"},
            {"conversations": turns, "system": ""},
        ]
    )
    assert [row["messages"][0] for row in rows] == [
        said("system", "be brief"),
        said("system", "be kind"),
        said("user", "hi"),
    ]


def test_a_list_of_messages_as_prompt_is_a_conversation():
    asked_ = [said("user", "hi")]
    answer = [said("assistant", "hello")]
    assert understood([{"prompt": asked_}])[0]["messages"] == asked_
    for response in (answer, "hello"):
        row = understood([{"prompt": asked_, "completion": response}])[0]
        assert row["messages"] == [*asked_, *answer]


def test_keys_that_arrow_fills_in_are_no_part_of_a_message():
    row = understood([{"messages": [{"role": "user", "content": "hi", "tool_calls": None}]}])[0]
    assert row["messages"] == [said("user", "hi")]


@pytest.mark.parametrize(
    ("message", "said_"),
    [
        ({"from": "alien", "value": "x"}, "a message is from 'alien'; known: human, user"),
        ({"speaker": "x", "text": "y"}, "a message has the keys 'speaker', 'text'"),
    ],
)
def test_a_message_that_is_none_is_refused_with_its_row(message, said_):
    good = {"from": "human", "value": "hi"}
    expected = refused([{"conversations": [good]}, {"conversations": [good, message]}])
    assert expected.startswith("row 2: column 'conversations': ")
    assert said_ in expected


# Alpaca


def test_alpaca_is_a_prompt_and_a_response():
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "la"},
    ]
    result = found(rows)
    assert [(r["prompt"], r["response"]) for r in result.rows] == [
        ("Add.\n1 2", "3"),
        ("Sing.", "la"),
    ]
    assert len(result.notices) == 2
    assert all("Alpaca" in notice for notice in result.notices)


def test_the_columns_system_and_history_of_alpaca_make_a_conversation():
    row = {
        "instruction": "And you?",
        "input": "",
        "output": "Fine.",
        "system": "be kind",
        "history": [["How are you?", "Well."]],
    }
    plain = {"instruction": "Sing.", "input": "", "output": "la", "system": "", "history": []}
    first, second = understood([row, plain])
    assert first["messages"] == [
        said("system", "be kind"),
        said("user", "How are you?"),
        said("assistant", "Well."),
        said("user", "And you?"),
        said("assistant", "Fine."),
    ]
    assert "messages" not in second
    assert (second["prompt"], second["response"]) == ("Sing.", "la")


def test_data_with_names_of_its_own_is_no_alpaca():
    row = {"prompt": "p", "instruction": "i", "input": "x", "system": "s"}
    assert understood([row]) == [row]


# Pairs

SIDES = {side: [said("user", "hi"), said("assistant", side)] for side in ("chosen", "rejected")}


def test_answers_of_sharegpt_become_messages():
    row = {
        "conversations": [{"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    }
    (found_,) = understood([row])
    assert found_["messages"] == [said("user", "hi")]
    assert found_["chosen"] == [said("assistant", "good")]
    assert found_["rejected"] == [said("assistant", "bad")]


def test_pairs_of_one_question_ask_the_same():
    one = {"chosen": SIDES["chosen"], "rejected": SIDES["rejected"]}
    other = {"chosen": SIDES["rejected"], "rejected": SIDES["chosen"]}
    assert asked(one) == asked(other)
    texts = [f"\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: {end}" for end in "xy"]
    assert asked({"chosen": texts[0]}) == asked({"chosen": texts[1]})
    assert asked({"chosen": texts[0]}) != asked({"chosen": texts[0].replace("q", "p")})


# Two answers and a preference


def compared(rows, *votes):
    return understood(
        [{"a1": "first", "a2": "second", **row} for row in rows],
        answers=("a1", "a2"),
        preferred=votes,
    )


@pytest.mark.parametrize(
    ("values", "winners"),
    [
        ([1, 2, 0], "12"),
        (["1", "2", ""], "12"),
        ([2.0, 1.0, None], "21"),
        (["a", "B", "tie"], "12"),
        (["model_b", "model_a", "tie (bothbad)"], "21"),
        (["a2", "a1"], "21"),
        ([0, 1, 1], "122"),  # counted from 0
    ],
)
def test_the_preferred_answer_is_chosen_and_ties_are_left_out(values, winners):
    rows = compared([{"v": value} for value in values], "v")
    assert [row["chosen"] for row in rows] == [
        {"1": "first", "2": "second"}[winner] for winner in winners
    ]
    assert all({row["chosen"], row["rejected"]} == {"first", "second"} for row in rows)


def test_counting_from_0_is_said():
    rows = [{"a": "x", "b": "y", "v": value} for value in (1, 0)]
    (notice,) = found(rows, answers=("a", "b"), preferred="v").notices
    assert notice == "v counts from 0, since no number in it is above 1: 0 is a, 1 is b"


def test_several_preferences_are_votes():
    rows = compared(
        [{"x": 1, "y": 1, "z": 2}, {"x": 2, "y": 0, "z": 0}, {"x": 1, "y": 2, "z": 0}],
        "x",
        "y",
        "z",
    )
    assert [row["chosen"] for row in rows] == ["first", "second"]


def test_how_many_rows_are_left_out_is_said():
    rows = [{"a": "x", "b": "y", "v": value} for value in (2, 0, 0)]
    result = found(rows, answers=("a", "b"), preferred="v")
    assert "2 of 3 rows are left out: neither answer is preferred" in result.notices
    assert "all 2 rows are left out" in refused(rows[1:], answers=("a", "b"), preferred="v")


@pytest.mark.parametrize("value", [3, -1, "c", True, 0.5, [1]])
def test_a_preference_that_cannot_be_understood_is_refused_with_its_row(value):
    with pytest.raises(RecipeError, match=r"^row 2: column 'v': .* does not say which answer"):
        compared([{"v": 2}, {"v": value}], "v")


# Data that people have

DATA = next(
    (p / "shared" / "data" for p in Path(__file__).parents if (p / "shared" / "data").is_dir()),
    None,
)
needs_data = pytest.mark.skipif(DATA is None, reason="the folder shared/data is not here")


def published(name, **columns):
    rows = read_rows(DATA / name)
    return understand(rows, names_of(rows), {**{n: n for n in NAMES}, **columns})


@needs_data
def test_pandalm_is_read_with_two_lines_of_columns():
    result = published(
        "pandalm_testset_v1.jsonl",
        answers=("response1", "response2"),
        preferred=("annotator1", "annotator2", "annotator3"),
    )
    assert all(isinstance(row[side], str) for row in result.rows for side in ("chosen", "rejected"))
    assert len(result.rows) == 605 - 43  # of which no annotator prefers either
    assert any("column 'response1': 4 values" in notice for notice in result.notices)


@needs_data
def test_llmbar_is_read_with_two_lines_of_columns():
    result = published(
        "llmbar_natural.json", prompt="input", answers=("output_1", "output_2"), preferred="label"
    )
    source = json.loads((DATA / "llmbar_natural.json").read_text())
    for row, given in zip(result.rows, source, strict=True):
        assert row["chosen"] == given[f"output_{given['label']}"]
        assert row["prompt"] == given["input"]


@needs_data
def test_the_demo_of_llama_factory_needs_no_columns():
    result = published("llamafactory_dpo_en_demo.json")
    assert len(result.rows) == 300
    for row in result.rows:
        assert row["messages"][-1]["role"] == "user"
        assert [m["role"] for m in (*row["chosen"], *row["rejected"])] == ["assistant"] * 2


@needs_data
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("hh_harmless_test.jsonl", 1623),
        ("gsm8k_train.jsonl", 7473),
        ("svamp.jsonl", 590),
        ("rt_polarity.jsonl", 8566),
        ("pros_cons.jsonl", 39147),
    ],
)
def test_published_lines_come_back_as_they_were_written(name, rows):
    source = [json.loads(line) for line in (DATA / name).read_text().split("\n") if line]
    assert list(published(name).rows) == source
    assert len(source) == rows

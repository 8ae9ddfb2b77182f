"""`${env:NAME}` and `${ref:path}`: what they stand for, with its type, and nothing else."""

import pytest

from rlframe.recipe.compose import compose


@pytest.fixture
def filled(write):
    """The data of a recipe's text after interpolation, which found nothing wrong."""

    def data(text):
        document = compose(write(text))
        document.check()
        return document.data

    return data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("true", True),
        ("on", "on"),
        ("null", None),
        ("some/model", "some/model"),
        ("[1, 2]", "[1, 2]"),
        ("a: b", "a: b"),
        ("x # y", "x # y"),
        ("${ref:b}", "${ref:b}"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_variable_that_is_the_whole_value_is_read_as_a_scalar(filled, monkeypatch, text, value):
    monkeypatch.setenv("RLFRAME_X", text)
    found = filled("a: ${env:RLFRAME_X}\nb: 1\n")["a"]
    assert found == value
    assert type(found) is type(value)


def test_a_variable_inside_text_stays_text(filled, monkeypatch):
    monkeypatch.setenv("RLFRAME_X", "3")
    assert filled("a: '${env:RLFRAME_X}'\nb: v${env:RLFRAME_X}\n") == {"a": 3, "b": "v3"}


def test_a_reference_keeps_the_type_of_what_it_means(filled):
    text = "a: 1\nb: 0.5\nc: [1]\nd: {x: 1}\n" + "".join(f"r{k}: ${{ref:{k}}}\n" for k in "abcd")
    found = filled(text)
    assert [found["ra"], found["rb"], found["rc"], found["rd"]] == [1, 0.5, [1], {"x": 1}]
    assert found["rd"] is not found["d"]


def test_a_reference_inside_text_is_written_as_yaml_would(filled):
    assert filled("a: 2\nb: true\nc: n${ref:a}-${ref:b}\n")["c"] == "n2-true"


def test_references_may_lead_to_references_in_any_order(filled):
    found = filled("a: ${ref:b.x}\nb: {x: '${ref:c}'}\nc: 3\nd: ['${ref:a}']\n")
    assert found == {"a": 3, "b": {"x": 3}, "c": 3, "d": [3]}


def test_a_reference_to_a_mapping_takes_it_filled_in(filled):
    assert filled("a: ${ref:b}\nb: {x: '${ref:c}'}\nc: 3\n")["a"] == {"x": 3}


def test_the_guess_for_a_variable_is_its_name_and_never_what_it_holds(write, monkeypatch):
    monkeypatch.setenv("RLFRAME_JUDGE_KEY", "a-secret")
    (problem,) = compose(write("a: ${env:RLFRAME_JUDGE_KEI}\n")).problems
    assert "Did you mean 'RLFRAME_JUDGE_KEY'?" in problem.message
    assert "a-secret" not in problem.message


def test_the_guess_for_a_reference_is_the_key_and_not_its_value(write):
    (problem,) = compose(write("seed: 1\na: ${ref:sead}\n")).problems
    assert "Did you mean 'seed'?" in problem.message


def test_two_dollars_are_one(filled):
    assert filled("a: '$${env:HOME}'\nb: $5 and $$\n") == {"a": "${env:HOME}", "b": "$5 and $$"}


@pytest.mark.parametrize("text", ["a: ${ref:a}", "a: ${ref:b}\nb: ${ref:a}", "a: {b: '${ref:a}'}"])
def test_a_circle_is_one_error_with_its_chain(write, text):
    (problem,) = compose(write(text)).problems
    assert "in a circle: a" in problem.message


def test_a_value_that_is_not_known_is_told_once(write):
    document = compose(write("a: ${env:RLFRAME_NO}\nb: ${ref:a}\nc: x${ref:b}\n"))
    (problem,) = document.problems
    assert problem.path == ("a",)
    assert document.unknown == {("a",), ("b",), ("c",)}

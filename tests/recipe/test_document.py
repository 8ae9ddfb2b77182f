"""A recipe's text as plain data: YAML 1.2, every value's place, and overrides."""

import pytest

from rlframe.errors import RecipeError
from rlframe.recipe.compose import compose, override
from rlframe.recipe.yaml12 import parse_value, read_file

VALUES = [
    ("1e-3", 0.001),
    ("1.0e-3", 0.001),
    ("3", 3),
    ("3.0", 3.0),
    ("012", 12),
    ("0o12", 10),
    ("0x1f", 31),
    ("on", "on"),
    ("no", "no"),
    ("yes", "yes"),
    ("y", "y"),
    ("12:30:45", "12:30:45"),
    ("true", True),
    ("~", None),
    ("'1e-3'", "1e-3"),
    ("[a=b, 2]", ["a=b", 2]),
    ("{a: {b: 1}}", {"a": {"b": 1}}),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_a_value_in_a_file_is_read_as_yaml_1_2(write, text, value):
    found = read_file(write(f"version: 1\nkey: {text}\n")).data["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_a_value_in_an_override_is_read_as_yaml_1_2(text, value):
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "column", "key"),
    [
        ("version: 1\nseed: 1\nmodel: {}\nseed: 2\n", 4, 1, "seed"),
        ("model:\n  policy: a\n  pad_token: x\n  policy: b\n", 4, 3, "policy"),
        ("model: {policy: a, policy: b}\n", 1, 20, "policy"),
    ],
)
def test_a_key_given_twice_is_an_error_at_the_second(write, text, line, column, key):
    path = write(text)
    (problem,) = read_file(path).problems
    assert problem.place == f"{path}:{line}:{column}"
    assert problem.path[-1] == key
    assert problem.message.startswith("this key is given twice, first at line ")


@pytest.mark.parametrize(
    "text", ["", "# nothing but a remark\n", "- version: 1\n", "word\n", "3\n"]
)
def test_a_document_that_is_no_mapping_is_refused_with_a_way_to_start(write, text):
    path = write(text)
    with pytest.raises(RecipeError, match="a recipe is a mapping") as caught:
        read_file(path)
    assert str(caught.value).startswith(f"{path}:1:1: ")
    assert "version: 1" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "nowhere.yaml"
    with pytest.raises(RecipeError, match="no such recipe file") as caught:
        read_file(path)
    assert str(path) in str(caught.value)


def test_a_directory_is_not_a_recipe(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        read_file(tmp_path)


def test_bytes_that_are_not_utf_8_are_not_a_recipe(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("version: 1  # Größe\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="cannot be read"):
        read_file(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("version: 1\nmodel: {policy: a\nseed: 1\n", 3),
        ("version: 1\n\tseed: 1\n", 2),
        ("version: 1\nseed: *nobody\n", 2),
        ("version: 1\nseed: 1\n---\nversion: 1\n", 3),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_line(write, text, line):
    path = write(text)
    with pytest.raises(RecipeError, match="not valid YAML") as caught:
        read_file(path)
    assert str(caught.value).startswith(f"{path}:{line}:")


def test_a_merged_mapping_reads_as_if_it_were_written_out(write):
    text = "version: 1\nbase: &base {a: 1, b: 2}\nkey: {<<: *base, b: 3}\n"
    assert read_file(write(text)).data["key"] == {"a": 1, "b": 3}


@pytest.mark.parametrize("value", ["!mine {policy: a}", "!mine [1]", "!!python/name:os.system ''"])
def test_a_tag_is_refused_with_its_place(write, value):
    path = write(f"version: 1\nmodel: {value}\n")
    (problem,) = read_file(path).problems
    assert "takes no YAML tags" in problem.message
    assert problem.place.startswith(f"{path}:2:")


def test_an_alias_is_a_copy_so_that_an_override_changes_one_of_the_two(write):
    document = read_file(write("version: 1\na: &x {n: 1}\nb: *x\n"))
    change(document, "a.n=2")
    assert document.data == {"version": 1, "a": {"n": 2}, "b": {"n": 1}}


def test_every_key_and_list_item_has_its_place(write):
    path = write("version: 1\nmodel:\n  policy: a\nstop: [x, y]\nlist:\n  - {k: 1}\n")
    found = {key: place for key, place in read_file(path).places.items() if key}
    assert {key: place.removeprefix(f"{path}:") for key, place in found.items()} == {
        ("version",): "1:1",
        ("model",): "2:1",
        ("model", "policy"): "3:3",
        ("stop",): "4:1",
        ("stop", 0): "4:8",
        ("stop", 1): "4:11",
        ("list",): "5:1",
        ("list", 0): "6:5",
        ("list", 0, "k"): "6:6",
    }


def test_what_was_not_written_has_the_place_of_what_is_around_it(write):
    path = write("version: 1\nmodel:\n  policy: a\n")
    document = read_file(path)
    assert document.place(("model", "critic", "head")) == f"{path}:2:1"


def change(document, text):
    """Apply an override as `compose` does."""
    override(document, text, f"override {text!r}")


@pytest.fixture
def document(write):
    return read_file(write("version: 1\nppo: {updates: 4, clip: 0.2}\nstop: [a]\n"))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("ppo.updates=10", ("ppo", "updates"), 10),
        ("ppo.clip=1e-1", ("ppo", "clip"), 0.1),
        ("ppo.note=a=b=c", ("ppo", "note"), "a=b=c"),
        ("stop=[x=1, '=']", ("stop",), ["x=1", "="]),
        ("ppo.updates=", ("ppo", "updates"), None),
        ("rewards.new.type=length", ("rewards", "new", "type"), "length"),
        ("rewards={new: {type: length}}", ("rewards", "new", "type"), "length"),
    ],
)
def test_an_override_is_split_at_its_first_equals_sign_and_its_value_is_yaml(
    document, override, path, value
):
    change(document, override)
    found = document.data
    for key in path:
        found = found[key]
    assert found == value
    assert document.place(path) == f"override {override!r}"


def test_an_override_leaves_the_other_keys_and_their_places_alone(document):
    before = document.place(("ppo", "clip"))
    change(document, "ppo.updates=10")
    assert document.data["ppo"] == {"updates": 10, "clip": 0.2}
    assert document.place(("ppo", "clip")) == before


def test_an_override_of_a_mapping_takes_the_whole_of_its_place(document):
    change(document, "ppo={updates: 1}")
    assert document.data["ppo"] == {"updates": 1}
    assert document.place(("ppo", "updates")) == "override 'ppo={updates: 1}'"


def test_of_two_overrides_of_a_key_the_later_wins(document):
    change(document, "ppo.updates=10")
    change(document, "ppo.updates=20")
    assert document.data["ppo"]["updates"] == 20
    assert document.place(("ppo", "updates")) == "override 'ppo.updates=20'"


def test_an_override_may_build_on_one_before_it(document):
    change(document, "rewards.new={type: length}")
    change(document, "rewards.new.target_tokens=3")
    assert document.data["rewards"] == {"new": {"type": "length", "target_tokens": 3}}


@pytest.mark.parametrize("override", ["ppo.updates", "=3", ""])
def test_an_override_without_a_key_or_an_equals_sign_is_refused_with_an_example(document, override):
    with pytest.raises(RecipeError, match=r"write key\.path=value, as in ppo\.updates=10"):
        change(document, override)


@pytest.mark.parametrize(("override", "part"), [("version.x=1", "version"), ("stop.0=b", "stop")])
def test_an_override_through_something_that_is_no_mapping_is_refused(document, override, part):
    with pytest.raises(RecipeError) as caught:
        change(document, override)
    assert f"{part!r} is not a mapping of keys" in str(caught.value)


@pytest.mark.parametrize("value", ["[", "{a: 1", "a: b: c", "*nobody", "!mine 3"])
def test_an_override_whose_value_is_not_yaml_is_refused(document, value):
    with pytest.raises(RecipeError, match=r"is not (plain )?YAML"):
        change(document, f"ppo.clip={value}")


@pytest.mark.parametrize("value", ["[", "{a: 1", "a: b: c"])
def test_of_an_override_that_is_not_yaml_the_key_is_told_in_one_line(document, value):
    with pytest.raises(RecipeError) as caught:
        change(document, f"ppo.clip={value}")
    assert "\n" not in str(caught.value)


def test_an_override_on_a_section_that_is_null_makes_it_a_mapping(document):
    change(document, "sft=null")
    change(document, "sft.data=reviews")
    assert document.data["sft"] == {"data": "reviews"}


def test_a_mistake_in_an_override_is_told_with_the_override(write):
    document = compose(write("version: 1\n"), ["seed", "seed=[", "seed=3"])
    assert [problem.place for problem in document.problems] == [
        "override 'seed'",
        "override 'seed=['",
    ]
    assert document.data == {"version": 1, "seed": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [("a: &x {b: 1}\nc: {<<: *x, d: 2}", "3:"), ("a: 1\n? [1, 2]\n: 3", None)],
)
def test_keys_keep_the_place_where_they_were_written(write, text, value):
    document = read_file(write(text))
    if value:
        assert document.place(("c", "b")).endswith(":1:8")  # of the anchor
    else:
        assert "keys should be strings" in document.problems[0].message


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfversion: 1\n")
    assert read_file(path).data == {"version": 1}


def test_aliases_that_multiply_are_refused(write):
    lines = ["a0: &a0 [1, 1]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30)]
    with pytest.raises(RecipeError, match="do aliases repeat each other"):
        read_file(write("\n".join(lines)))


def test_brackets_a_thousand_deep_are_refused_in_words(write):
    with pytest.raises(RecipeError, match="nested more than 40 deep"):
        read_file(write("a: " + "[" * 1000 + "]" * 1000))

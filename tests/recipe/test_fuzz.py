"""Properties of merging, overrides and reading that hold for any recipe, valid or not."""

import copy
import json
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from rlframe.errors import RlframeError
from rlframe.recipe import load_recipe
from rlframe.recipe.compose import compose
from rlframe.recipe.document import Document, leaves
from rlframe.registry.discovery import Registry
from tests.recipe.conftest import MINIMAL

REGISTRY = Registry()
WORDS = st.sampled_from(["a", "b", "c", "type", "weight"])
SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["x", "y", "1e-3", "on"])
TREES = st.dictionaries(
    WORDS,
    st.recursive(SCALARS, lambda inner: st.dictionaries(WORDS, inner, max_size=3)),
    max_size=4,
)
SHAPE = {"a": {"x": 0, "y": {"z": 0}}, "b": 0, "c": {"w": 0}}


def document(data, name="f"):
    """A document of plain data, each key at a place of its own."""
    made = Document(copy.deepcopy(data))

    def note(node, path):
        for key, value in node.items():
            made.places[*path, key] = f"{name}:{'.'.join((*path, key))}"
            if isinstance(value, dict):
                note(value, (*path, key))

    note(made.data, ())
    return made


def merged(*documents):
    result = Document()
    for one in documents:
        result.merge(one)
    return result


def part_of(shape):
    """Some of the leaves of a shape, each with some number: mappings stay mappings."""
    return st.fixed_dictionaries(
        {}, optional={k: part_of(v) if isinstance(v, dict) else SCALARS for k, v in shape.items()}
    )


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_merging_with_nothing_changes_nothing(data):
    assert merged(document(data), document({})).data == data
    assert merged(document({}), document(data)).data == data


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_merging_a_recipe_with_itself_changes_nothing(data):
    assert merged(document(data), document(data)).data == data


@settings(max_examples=60, deadline=None)
@given(part_of(SHAPE), part_of(SHAPE), part_of(SHAPE))
def test_merging_is_associative_where_mappings_stay_mappings(one, two, three):
    left = merged(merged(document(one), document(two)), document(three))
    right = merged(document(one), merged(document(two), document(three)))
    assert left.data == right.data


@settings(max_examples=60, deadline=None)
@given(TREES, TREES)
def test_provenance_is_complete_and_names_the_last_writer(one, two):
    both = merged(document(one, "one"), document(two, "two"))
    second = dict(leaves(two))
    for path, value in leaves(both.data):
        if not path:
            continue
        assert path in both.places
        if path in second and second[path] == value and value != {}:
            assert both.places[path].startswith("two:")
        elif value != {}:
            assert both.places[path].startswith("one:")


@settings(max_examples=60, deadline=None)
@given(TREES, TREES)
def test_another_type_leaves_no_key_of_the_old_component(one, two):
    one, two = {**one, "type": "old"}, {**two, "type": "new"}
    assert merged(document({"r": one}), document({"r": two})).data == {"r": two}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(WORDS, min_size=1, max_size=3),
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(WORDS, SCALARS, max_size=3),
)
def test_an_override_then_a_look_gives_the_value_and_the_override(path, value):
    text = f"{'.'.join(path)}={json.dumps(value)}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text("version: 1\n")
        found = compose(file, [text])
    assert not found.problems
    assert found.at(tuple(path)) == value
    assert found.place(tuple(path)) == f"override {text!r}"


LINES = MINIMAL.splitlines()
PIECES = st.sampled_from(
    ["${env:HOME}", "${ref:ppo}", "${", "~", "~ppo:", "<<:", "&a", "*a", "!x", "{", "]", "\t", "- ",
     "type: ", "extends: recipe.yaml", ": ", "'", '"', "#", "é", "\u200b", "%", "|", "? ", "1e999"]
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(LINES) - 1), st.integers(0, 40), PIECES | st.text(max_size=4)),
        min_size=1,
        max_size=4,
    ),
    st.lists(
        st.text(max_size=12) | st.just("~rewards.brevity") | st.just("ppo=${ref:kl}"), max_size=2
    ),
)
def test_no_text_and_no_override_ends_in_a_traceback(insertions, overrides):
    lines = list(LINES)
    for line, column, piece in insertions:
        lines[line] = lines[line][:column] + piece + lines[line][column:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        with suppress(RlframeError):
            load_recipe(path, overrides, registry=REGISTRY)

import pytest

from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry

MINIMAL = """\
version: 1
data:
  reviews: {generator: {type: product_reviews, rows: 200}}
model: {policy: some/model}
prompts: {data: reviews, first_words: 3}
rewards:
  brevity: {type: length, target_tokens: 20}
kl:
  controller: {type: adaptive, target: 6.0}
ppo: {updates: 4}
"""


@pytest.fixture
def minimal():
    """The text of a valid recipe, the whole of it written out above."""
    return MINIMAL


@pytest.fixture
def write(tmp_path):
    """Write a recipe's text to a file and return its path."""

    def written(text, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


@pytest.fixture(scope="session")
def registry():
    """The installed components, looked up once."""
    return Registry()


@pytest.fixture
def load(write, registry):
    """Load a recipe from its text."""

    def loaded(text, *overrides):
        return load_recipe(write(text), overrides, registry=registry)

    return loaded


@pytest.fixture
def mistakes(load):
    """The lines of the error that a recipe's text ends in."""

    def message(text, *overrides):
        with pytest.raises(RecipeError) as caught:
            load(text, *overrides)
        return str(caught.value).splitlines()

    return message


@pytest.fixture
def place(tmp_path):
    """file:line:column of the first occurrence of some words in a text that `load` was given."""

    def at(text, words):
        before = text[: text.index(words)]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return f"{tmp_path / 'recipe.yaml'}:{line}:{column}"

    return at

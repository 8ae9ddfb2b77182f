"""The names that people bring from elsewhere lead to keys that exist."""

import re

import pytest

from rlframe.recipe.renamed import RENAMED
from rlframe.recipe.schema import Recipe, RewardEntry
from rlframe.recipe.wording import _models_in
from rlframe.registry.discovery import KINDS, Registry


def keys_of_components():
    registry = Registry()
    return {
        key
        for kind in KINDS
        for offer in registry.offers(kind)
        if offer.distribution == "rlframe"
        for key in registry.load(kind, offer.name).Config.model_fields
    }


@pytest.mark.parametrize(("theirs", "ours"), RENAMED.items())
def test_what_a_key_is_called_here_exists_and_is_not_called_so_already(theirs, ours):
    assert theirs != ours
    for path in re.findall(r"[a-z_]+\.[a-z_.]+", ours):
        models = [Recipe]
        for key in path.split("."):
            known = {k: f for model in models for k, f in model.model_fields.items()}
            assert key in known or key in keys_of_components(), (theirs, path)
            models = _models_in(known[key].annotation) if key in known else []
    first = re.split(r"[.,]", ours)[0]
    assert first in {*Recipe.model_fields, *RewardEntry.model_fields, "extends"}


@pytest.mark.parametrize("theirs", RENAMED)
def test_no_name_of_another_hides_a_key_of_ours(theirs):
    models = [Recipe]
    *path, last = theirs.split(".")
    for key in path:
        fields = [model.model_fields[key] for model in models if key in model.model_fields]
        models = [inner for field in fields for inner in _models_in(field.annotation)] or models
    assert not any(last in model.model_fields for model in models)

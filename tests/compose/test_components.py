"""What components say of themselves, before the run relies on it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from rlframe.api import AuxiliaryLoss, PluginConfig, TokenExample
from rlframe.api.component import Instance
from rlframe.compose.components import auxiliary_data, coefficient_of
from rlframe.distributed.runtime import refuse_difference
from rlframe.errors import PluginError, RecipeError, SetupError

EXAMPLES = [TokenExample((1, 5, 7), 1), TokenExample((1, 2, 3, 4), 0)]


def loss(**attributes: Any) -> Any:
    """An auxiliary loss with these attributes, whose examples are `given`."""
    given = attributes.pop("given", EXAMPLES)
    context: Any = None
    described = {"examples": lambda self: given, "examples_per_step": 2, **attributes}
    component = type("Own", (AuxiliaryLoss,), described)(PluginConfig(), context)
    return Instance("own", "own (dist 1.0)", component)


def project(others: str | None = None, context: int | None = None) -> Any:
    """As much of a project as is asked: one rank, or another one whose digest is `others`."""
    return SimpleNamespace(
        context_tokens=context,
        tokenizer=SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 7}, bos_token_id=1),
        runtime=SimpleNamespace(
            agree=lambda what, mine: refuse_difference(what, [others or mine, mine])
        ),
        recipe=SimpleNamespace(seed=0),
    )


def test_examples_are_cut_to_what_the_policy_reads() -> None:
    found = auxiliary_data(loss(), project(context=2)).examples
    assert found is not None
    assert sorted(e.ids for e in found.take(0, 2)) == [(1, 2), (1, 5)]


def test_without_data_of_its_own_a_loss_works_on_the_rollout() -> None:
    assert auxiliary_data(loss(given=None), project()).examples is None


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"given": iter(EXAMPLES)}, "must return a list of TokenExample"),
        ({"given": [(1, 2)]}, "is no TokenExample"),
        ({"given": [TokenExample((1, 8), 0)]}, "ints from 0 to 7"),
        (
            {"examples": lambda self: 1 / 0},
            "raised ZeroDivisionError in `examples`: division by zero",
        ),
        ({"examples_per_step": 0}, "`examples_per_step` of 0"),
        ({"examples_per_step": 1.5}, "`examples_per_step` of 1.5"),
    ],
    ids=["an iterator", "a tuple", "an id beyond", "an error", "none a step", "half a one"],
)
def test_a_loss_that_breaks_its_contract_is_named(attributes: Any, told: str) -> None:
    with pytest.raises(PluginError) as caught:
        auxiliary_data(loss(**attributes), project())
    assert str(caught.value).startswith("losses.own: auxiliary loss 'own' of type own (dist 1.0)")
    assert told in str(caught.value)


def test_no_examples_are_the_recipes_mistake() -> None:
    with pytest.raises(RecipeError, match=r"losses.own: the loss 'own' .* has no examples"):
        auxiliary_data(loss(given=[]), project())


def test_ranks_with_other_examples_are_told_apart() -> None:
    with pytest.raises(SetupError, match=r"the examples of loss 'own'.* not the same on all ranks"):
        auxiliary_data(loss(), project(others="0" * 64))


def test_a_coefficient_is_a_finite_number() -> None:
    assert coefficient_of(loss(coefficient=-0.5)) == -0.5
    for bad in (math.nan, math.inf, "0.5", None):
        with pytest.raises(PluginError, match="`coefficient` of "):
            coefficient_of(loss(coefficient=bad))

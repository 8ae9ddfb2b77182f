"""What components say of themselves, before the run relies on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rlframe.api import AuxiliaryLoss, PluginConfig, TokenExample
from rlframe.api.component import Instance
from rlframe.compose.components import (
    PLANNED,
    auxiliary_data,
    coefficient_of,
    longest_example,
)
from rlframe.distributed.runtime import refuse_difference
from rlframe.errors import PluginError, RecipeError, RunError, SetupError

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
    ("attributes", "message"),
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
def test_a_loss_that_breaks_its_contract_is_named(attributes: Any, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        auxiliary_data(loss(**attributes), project())
    assert str(caught.value).startswith("losses.own: auxiliary loss 'own' of type own (dist 1.0)")
    assert message in str(caught.value)


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


class Stream:
    """The examples again and again, from a cursor."""

    def __init__(self, given: Sequence[Any] = EXAMPLES) -> None:
        self.given, self.cursor, self.read = given, 0, 0

    def __iter__(self) -> Iterator[Any]:
        while self.cursor < len(self.given):
            self.cursor += 1
            self.read += 1
            yield self.given[self.cursor - 1]
        self.cursor = 0

    def state_dict(self) -> Mapping[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor = state["cursor"]


class Forgetful(Stream):
    """Its cursor never goes back."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return


class Unsaved(Stream):
    """Its state is none that a checkpoint could hold."""

    def state_dict(self) -> Mapping[str, Any]:
        return {"cursor": {self.cursor}}


def test_a_stream_is_tried_and_put_back_and_read_no_further() -> None:
    stream = Stream([TokenExample((1, 2 + n % 5), 0) for n in range(100_000)])
    found = auxiliary_data(loss(given=stream), project()).examples
    assert stream.read < 1_100
    assert found is not None
    assert found.take(0, 5) == stream.given[:5]


def test_the_examples_of_a_stream_are_cut_to_what_the_policy_reads() -> None:
    found = auxiliary_data(loss(given=Stream()), project(context=2)).examples
    assert found is not None
    assert [e.ids for e in found.take(0, 3)] == [(1, 5), (1, 2), (1, 5)]


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (Stream([]), RecipeError, "the loss 'own' of type own (dist 1.0) has no examples"),
        (Forgetful(), PluginError, "auxiliary loss 'own' of type own (dist 1.0): `examples` ret"),
        (Stream([*EXAMPLES, (1, 2)]), PluginError, "which is no TokenExample (pass 1 of Stream, "),
        (Stream([TokenExample((1, 8), 0)]), PluginError, "ints from 0 to 7"),
        (Unsaved(), RunError, "its state cannot be saved, so that no checkpoint could: /cursor: a"),
    ],
    ids=["empty", "forgetful", "a tuple", "an id beyond", "a set"],
)
def test_a_stream_that_breaks_its_contract_is_named_before_the_run(
    given: Stream, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        auxiliary_data(loss(given=given), project())
    assert type(caught.value) is kind
    assert str(caught.value).startswith("losses.own: ")
    assert message in str(caught.value)


def test_a_plan_takes_the_longest_of_the_first_examples_of_a_stream() -> None:
    long = [TokenExample((1,) * n, 0) for n in range(2, 10_000)]
    stream = Stream(long)
    assert longest_example(loss(given=stream), project()) == PLANNED + 1
    assert stream.read == PLANNED
    assert longest_example(loss(given=Stream(long)), project(context=50)) == 50
    assert longest_example(loss(), project()) == 4
    assert longest_example(loss(given=None), project()) is None

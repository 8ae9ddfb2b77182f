"""A stream of examples is read a step at a time, pass after pass, and resumed at any example."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from rlframe.api import AuxiliaryLoss, ContractError, ExampleStream, PluginConfig, TokenExample
from rlframe.api.component import Instance
from rlframe.distributed.runtime import refuse_difference
from rlframe.engine.auxiliary import AuxiliaryData
from rlframe.engine.stream_reader import (
    TRIED,
    EmptyStreamError,
    StreamReader,
    refuse_lost_cursor,
)
from rlframe.errors import RunError, SetupError
from rlframe.runs.trees import load_tree, save_tree


class Counted:
    """`length` examples a pass, numbered over all passes; counts what was read, open and closed."""

    def __init__(self, length: int) -> None:
        self.length, self.cursor, self.first = length, 0, 0
        self.read = self.opened = self.closed = 0

    def __iter__(self) -> Iterator[TokenExample]:
        self.opened += 1
        try:
            while self.cursor < self.length:
                self.cursor += 1
                self.read += 1
                yield self.example()
        finally:
            self.closed += 1
        self.first, self.cursor = self.first + self.length, 0

    def example(self) -> TokenExample:
        return TokenExample((1, self.first + self.cursor), 0)

    def state_dict(self) -> Mapping[str, Any]:
        return {"first": self.first, "cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.cursor = state["first"], state["cursor"]


def reader(stream: ExampleStream, vocabulary: int = 10**9) -> StreamReader:
    return StreamReader(stream, path="losses.own", vocabulary=vocabulary)


def numbers(examples: list[TokenExample]) -> list[int]:
    return [example.ids[1] for example in examples]


def test_passes_follow_one_another_without_a_gap() -> None:
    found = reader(Counted(3))
    assert numbers(found.read(8)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.passes == 2


def test_a_step_that_is_made_again_gets_the_same_examples() -> None:
    found = reader(Counted(100))
    first = found.take(0, 4)
    assert found.take(0, 4) == first
    assert numbers(found.take(4, 4)) == [5, 6, 7, 8]


@pytest.mark.parametrize("length", [7, 10**9])
def test_nothing_is_read_ahead_of_a_step(length: int) -> None:
    stream = Counted(length)
    found = reader(stream)
    for step in range(20):
        found.take(3 * step, 3)
        assert stream.read == 3 * (step + 1)


@pytest.mark.parametrize("read", range(9))
def test_it_is_resumed_at_any_example_through_files(read: int, tmp_path: Any) -> None:
    """Also before the first, and after the last of a pass, when the stream has not said so yet."""
    once = reader(Counted(4))
    once.read(read)
    save_tree(tmp_path / "state", once.state_dict())
    expected = once.read(9)
    again = reader(Counted(4))
    again.load_state_dict(load_tree(tmp_path / "state"))
    assert again.read(9) == expected
    assert again.state_dict() == once.state_dict()


def test_a_state_holds_nothing_of_the_step_that_is_in_memory() -> None:
    found = reader(Counted(10))
    found.take(0, 6)
    assert found.state_dict() == {"passes": 0, "number": 6, "cursor": {"first": 0, "cursor": 6}}
    again = reader(Counted(10))
    again.load_state_dict(found.state_dict())
    assert numbers(again.take(6, 2)) == [7, 8]


def test_what_was_restored_and_not_read_yet_is_saved_as_it_was_restored() -> None:
    """A `datasets.IterableDataset` says where it is only once it has given an example."""

    class Late(Counted):
        def state_dict(self) -> Mapping[str, Any]:
            return getattr(self, "said", {"first": 0, "cursor": 0})

        def example(self) -> TokenExample:
            self.said = super().state_dict()
            return super().example()

    found = reader(Late(10))
    state = found.state_dict()
    found.read(3)
    found.load_state_dict(state)
    assert found.state_dict() == state
    assert numbers(found.read(2)) == [1, 2]
    assert found.state_dict()["cursor"] == {"first": 0, "cursor": 2}


def test_it_closes_what_it_leaves() -> None:
    stream = Counted(10)
    found = reader(stream)
    state = found.state_dict()
    for _ in range(3):
        found.read(2)
        found.load_state_dict(state)
    assert stream.opened == stream.closed == 3


def test_examples_are_cut_to_what_the_models_read() -> None:
    found = StreamReader(Counted(3), path="", vocabulary=9, fit=lambda example: example.cut(1))
    assert [example.ids for example in found.read(2)] == [(1,), (1,)]


def test_any_object_with_the_three_methods_is_a_stream_and_an_iterator_is_none() -> None:
    assert isinstance(Counted(1), ExampleStream)
    assert not isinstance(iter(Counted(1)), ExampleStream)
    assert not isinstance([TokenExample((1, 2), 0)], ExampleStream)


# What breaks the contract


def test_a_first_pass_without_an_example_is_refused() -> None:
    with pytest.raises(EmptyStreamError, match=r"an empty stream \(Counted, .*\.py:\d+\)$"):
        reader(Counted(0)).read(1)


def test_a_cursor_that_stays_at_the_end_is_refused() -> None:
    class Stays(Counted):
        def __iter__(self) -> Iterator[TokenExample]:
            while self.cursor < self.length:
                self.cursor += 1
                yield self.example()

    with pytest.raises(ContractError, match=r"pass 2 gave no example .*Put the cursor back"):
        reader(Stays(3)).read(4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (TokenExample((1, 2), 2), "number 2 with nothing to learn"),
        (TokenExample((1, 10**9), 0), r"number 2 with \[1000000000\] as tokens"),
        ({"text": "a row"}, "as number 2, which is no TokenExample"),
        (None, "returned None as number 2"),
    ],
    ids=["all context", "an id beyond", "a row", "nothing"],
)
def test_an_example_that_is_none_is_named_by_its_number_pass_and_place(
    bad: Any, message: str
) -> None:
    class Bad(Counted):
        def example(self) -> TokenExample:
            made: TokenExample = bad if self.first and self.cursor == 3 else super().example()
            return made

    with pytest.raises(ContractError, match=message) as caught:
        reader(Bad(5)).read(8)
    line = Counted.__iter__.__code__.co_firstlineno
    assert f"pass 2 of {Bad.__qualname__}, {__file__}:{line}" in str(caught.value)


class Raises(Counted):
    def example(self) -> TokenExample:
        if self.cursor == 3:
            json.loads("{")
        return super().example()


def test_what_a_stream_raises_is_told_with_number_pass_and_line() -> None:
    line = Raises.example.__code__.co_firstlineno + 2
    message = (
        rf"at number 2 of pass 1, raised JSONDecodeError .*: Expecting .* \[{__file__}:{line}\]"
    )
    with pytest.raises(ContractError, match=message):
        reader(Raises(5)).read(5)


def test_an_exit_in_a_stream_ends_nothing() -> None:
    class Leaves(Counted):
        def example(self) -> TokenExample:
            sys.exit(0)

    with pytest.raises(ContractError, match=r"at number 0 of pass 1, called sys.exit\(0\)"):
        reader(Leaves(5)).read(1)


def test_a_state_that_cannot_be_saved_is_refused_as_a_components_is() -> None:
    class Tuple(Counted):
        def state_dict(self) -> Mapping[str, Any]:
            return {"at": (1, 2)}

    with pytest.raises(RunError, match=r"losses.own: its state cannot be saved.*/at: a tuple"):
        reader(Tuple(3)).state_dict()


def test_tensors_are_saved_bit_for_bit(tmp_path: Any) -> None:
    class Generated(Counted):
        """A permutation of its own, which the generator's state makes."""

        def __init__(self, length: int) -> None:
            super().__init__(length)
            self.generator = torch.Generator().manual_seed(0)

        def example(self) -> TokenExample:
            return TokenExample((1, int(torch.randint(999, (), generator=self.generator))), 0)

        def state_dict(self) -> Mapping[str, Any]:
            return {**super().state_dict(), "generator": self.generator.get_state()}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            super().load_state_dict(state)
            self.generator.set_state(state["generator"])

    once = reader(Generated(4))
    once.read(3)
    save_tree(tmp_path / "state", once.state_dict())
    again = reader(Generated(4))
    again.load_state_dict(load_tree(tmp_path / "state"))
    assert again.read(5) == once.read(5)


# The trial before a run


def test_the_trial_leaves_a_stream_where_it_was() -> None:
    found = reader(Counted(2))
    refuse_lost_cursor(found, found, tried=TRIED, after=2)
    assert numbers(found.read(4)) == [1, 2, 3, 4]


def test_a_stream_whose_state_is_changed_when_it_is_read_on_is_resumed() -> None:
    class Alias(Counted):
        """Its state is the one object that it works on."""

        def __init__(self, length: int) -> None:
            super().__init__(length)
            self.state: dict[str, Any] = {}

        def state_dict(self) -> Mapping[str, Any]:
            self.state.update(super().state_dict())
            return self.state

    found = reader(Alias(4))
    refuse_lost_cursor(found, found, tried=TRIED, after=2)
    assert numbers(found.read(2)) == [1, 2]


@pytest.mark.parametrize("name", ["forgets", "late", "ahead"])
def test_a_cursor_that_loses_an_example_is_refused(name: str) -> None:
    class Wrong(Counted):
        def state_dict(self) -> Mapping[str, Any]:
            moved = {"forgets": -self.cursor, "late": -1 if self.cursor else 0, "ahead": 1}[name]
            return {"first": self.first, "cursor": self.cursor + moved}

    found = reader(Wrong(9))
    with pytest.raises(ContractError, match=r"not resumed where it was\. Its state before number"):
        refuse_lost_cursor(found, found, tried=TRIED, after=2)


def test_a_buffer_that_no_state_has_is_found_when_it_is_refilled() -> None:
    """As in `datasets.IterableDataset.shuffle`, whose states are exact until then."""

    class Buffered(Counted):
        def __iter__(self) -> Iterator[TokenExample]:
            held: list[TokenExample] = []
            for example in super().__iter__():
                held.append(example)
                if len(held) == 500 or self.first + self.cursor <= 500:
                    yield held.pop(0)

    found = reader(Buffered(10**6))
    refuse_lost_cursor(found, found, tried=TRIED[:-2], after=2)
    with pytest.raises(ContractError, match="before number 512 of pass 1"):
        refuse_lost_cursor(found, found, tried=TRIED, after=2)


def test_the_trial_keeps_no_more_examples_than_it_compares() -> None:
    """The examples may be long, and there is a thousand of them."""
    alive: weakref.WeakSet[TokenExample] = weakref.WeakSet()
    most = 0

    class Weighed(Counted):
        def example(self) -> TokenExample:
            nonlocal most
            made = super().example()
            alive.add(made)
            most = max(most, len(alive))
            return made

    found = reader(Weighed(10**6))
    refuse_lost_cursor(found, found, tried=TRIED, after=2)
    assert most < 2 * len(TRIED) + 5


# The examples of a step


def data(stream: ExampleStream) -> AuxiliaryData:
    context: Any = None
    component = type("Own", (AuxiliaryLoss,), {"examples_per_step": 3})(PluginConfig(), context)
    return AuxiliaryData(Instance("own", "own (dist 1.0)", component), reader(stream))


def test_ranks_are_held_to_the_same_examples_in_every_step() -> None:
    seen: list[tuple[str, object]] = []
    own = data(Counted(4))
    for step in range(3):
        own.of_step(step, lambda what, mine: seen.append((what, mine)))
    assert len({mine for _, mine in seen}) == 3
    assert "of loss 'own' of type own (dist 1.0) gave in optimiser step 2" in seen[2][0]

    class Other(Counted):
        """As a stream would be that depends on the rank, from its fourth example on."""

        def example(self) -> TokenExample:
            return TokenExample((1, self.cursor if self.cursor < 4 else 100), 0)

    expected, other = dict(seen), data(Other(9))
    other.of_step(0, lambda what, mine: refuse_difference(what, [expected[what], mine]))
    with pytest.raises(SetupError, match=r"optimiser step 1, .*, is not the same on all"):
        other.of_step(1, lambda what, mine: refuse_difference(what, [expected[what], mine]))


def test_a_step_names_the_loss_whose_stream_is_at_fault() -> None:
    with pytest.raises(
        RunError, match=r"auxiliary loss 'own' of type own \(dist 1.0\): its stream"
    ):
        data(Raises(5)).of_step(0, lambda what, mine: None)

"""Reads a stream of examples, one optimiser step at a time, and keeps its place in checkpoints."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlframe.api.answers import ContractError, shown
from rlframe.api.contract import refuse_bad_examples
from rlframe.api.streams import ExampleStream
from rlframe.engine.states import component_states, restore_states
from rlframe.registry.owners import raised
from rlframe.types import TokenExample

_END: Any = object()


class EmptyStreamError(ContractError):
    """A stream gave no example at all."""


TRIED = (0, 1, *(2**n for n in range(1, 11)))
"""After how many examples a stream is tried before a run. A buffer whose content is no part of the
state shows once it was refilled; those that shuffle hold about a thousand examples."""


class StreamReader:
    """The endless sequence of a stream's examples, pass after pass, of which one step is in memory.

    Args:
      stream: what `examples` of an auxiliary loss returned.
      path: of the loss in the recipe, for errors about the stream's state.
      vocabulary: token ids are below it.
      fit: cuts an example to what the models read.
    """

    def __init__(
        self,
        stream: ExampleStream,
        *,
        path: str,
        vocabulary: int,
        fit: Callable[[TokenExample], TokenExample] = lambda example: example,
    ) -> None:
        self._stream = stream
        self._path = path
        self._vocabulary = vocabulary
        self._fit = fit
        self._iterator: Iterator[TokenExample] | None = None
        self._step: tuple[int, list[TokenExample]] | None = None
        self._restored: Mapping[str, Any] | None = None
        self._gave_any = False
        self._number = 0
        self.passes = 0
        """Passes that have ended."""

    def take(self, start: int, count: int) -> list[TokenExample]:
        """The next examples; or the same ones again, where a step is made again with less memory.

        Args:
          start: the number of the step's first example, which identifies the step.
          count: examples of the step.

        Raises:
          ContractError: the stream breaks its contract.
        """
        if self._step is None or self._step[0] != start:
            self._step = start, self.read(count)
        return list(self._step[1])

    def read(self, count: int) -> list[TokenExample]:
        """The next examples.

        Raises:
          ContractError: the stream raised, or gave something that cannot be learned from, or nothing.
        """
        return [self._next() for _ in range(count)]

    def state_dict(self) -> dict[str, Any]:
        """The stream's own state, and how far it is for people.

        Raises:
          RunError: the stream raised, or what it returned cannot be saved.
        """
        cursor: Mapping[str, Any]
        if self._restored is not None:
            # Until it is read, a `datasets.IterableDataset` has the state of before it was restored.
            cursor = copy.deepcopy(self._restored)
        else:
            cursor = component_states({self._path: self._stream})[self._path]
        return {"passes": self.passes, "number": self._number, "cursor": cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
          RunError: the stream does not take its state back.
        """
        self._close()
        self._step, self._restored = None, copy.deepcopy(state["cursor"])
        restore_states({self._path: self._stream}, {self._path: state["cursor"]})
        self.passes, self._number = state["passes"], state["number"]

    def _next(self) -> TokenExample:
        while True:
            with self._raised():
                if self._iterator is None:
                    self._iterator = iter(self._stream)
                example = next(self._iterator, _END)
            if example is not _END:
                break
            self._begin_anew()
        try:
            refuse_bad_examples([example], vocabulary=self._vocabulary, first=self._number)
        except ContractError as error:
            raise ContractError(f"{error} (pass {self.passes + 1} of {self._place()})") from None
        self._number += 1
        self._gave_any, self._restored = True, None
        return self._fit(example)

    def _begin_anew(self) -> None:
        """After the end of a pass. One that was resumed at its very end has a number above 0."""
        self._iterator = None
        if self._number == 0 and self.passes == 0 and not self._gave_any:
            raise EmptyStreamError(f"`examples` returned an empty stream ({self._place()})")
        if self._number == 0:
            raise ContractError(
                f"`examples` returned a stream of which pass {self.passes + 1} gave no example "
                f"({self._place()}). Put the cursor back to the beginning where a pass ends"
            )
        self._number = 0
        self.passes += 1

    def _close(self) -> None:
        """End the present iterator: files that it holds are closed before others are opened."""
        close = getattr(self._iterator, "close", None)
        self._iterator = None
        if close is not None:
            with self._raised():
                close()

    @contextmanager
    def _raised(self) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            who = f"its stream, at number {self._number} of pass {self.passes + 1},"
            raise ContractError(raised(error, who, self._stream, "__iter__")) from error

    def _place(self) -> str:
        """Which class it is and where its examples are made: name and FILE:LINE."""
        kind = type(self._stream)
        code = getattr(inspect.unwrap(kind.__iter__), "__code__", None)
        line = "" if code is None else f", {code.co_filename}:{code.co_firstlineno}"
        return f"{kind.__qualname__}{line}"


def refuse_lost_cursor(
    reader: StreamReader, again: StreamReader, *, tried: Sequence[int], after: int
) -> None:
    """Raise unless a stream continues from each of its states as it did when it had that state.

    Args:
      reader: of the stream, which is put back in the end to where it is now.
      again: the same reader, or that of the same stream in another process.
      tried: after how many examples to try it, 0 first and in order.
      after: examples to compare after each state.

    Raises:
      ContractError: other examples come, or the stream breaks its contract otherwise.
      RunError: a state cannot be saved, or is not taken back.
    """
    states: dict[int, dict[str, Any]] = {}
    expected: dict[int, TokenExample] = {}
    compared = {start + offset for start in tried for offset in range(after)}
    for place in range(tried[-1] + after):
        if place in tried:  # a copy: the stream may go on working on what it returned
            states[place] = copy.deepcopy(reader.state_dict())
        (example,) = reader.read(1)
        if place in compared:
            expected[place] = example
    for start, state in states.items():
        again.load_state_dict(copy.deepcopy(state))
        for place in range(start, start + after):
            (example,) = again.read(1)
            if example != expected[place]:
                raise ContractError(_lost(state, example, expected[place]))
    reader.load_state_dict(states[0])


def _lost(state: Mapping[str, Any], found: TokenExample, wanted: TokenExample) -> str:
    """What is said of a stream that gave another example than the one which it had given before."""
    return (
        f"`examples` returned a stream that is not resumed where it was. Its state before number "
        f"{state['number']} of pass {state['passes'] + 1} is {shown(state['cursor'])}; from there it "
        f"gave an example that begins with {list(found.ids[:8])} in place of one with "
        f"{list(wanted.ids[:8])}. Move the cursor before `yield`, and keep in `state_dict` all "
        "that the next examples depend on"
    )

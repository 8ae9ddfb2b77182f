"""Data of an auxiliary loss that is read as the run needs it, with a cursor that checkpoints keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from rlframe.types import TokenExample


@runtime_checkable
class ExampleStream(Protocol):
    """Examples in an order of their own, and a cursor: where the next one is read.

    Whatever has these three methods is a stream; it need not inherit from this class. The methods are
    those of a `datasets.IterableDataset` and of torchdata's loaders, so that a few lines wrap one.

    The engine reads one optimiser step's examples at a time and nothing ahead of it. Each rank reads
    the whole stream and keeps its own examples of every step, so that each example is learned from
    once whatever the number of processes, and a run can be resumed with another number. The price is
    that every process reads and tokenises everything: a stream must not depend on the rank, and draws
    nothing from global random state.
    """

    def __iter__(self) -> Iterator[TokenExample]:
        """The examples from the cursor to the end of the pass.

        The cursor is moved past an example before the example is given out, before `yield`. At the end
        of a pass it is put back to the beginning, since the engine then calls this again for the next
        pass, which may have another order. A pass without an example ends the run; one that never
        ends is fine.
        """
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """The cursor after the example that was given out last, as plain data or tensors.

        Also called before the first example. What is kept of a permutation or a buffer belongs to it:
        from this state the stream must continue exactly as it would have continued by itself.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the cursor where `state_dict` said, perhaps in another process. `__iter__` comes next.

        A stream that was read already is put back too: before PPO begins, the engine reads about a
        thousand examples, goes back to some of the states, and compares.
        """
        ...

"""What auxiliary losses learn from in an optimiser step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlframe.api.answers import ContractError
from rlframe.api.component import AuxiliaryLoss, Instance
from rlframe.engine.stream_reader import StreamReader
from rlframe.engine.streams import Shuffled, digest
from rlframe.errors import RunError
from rlframe.types import TokenExample


@dataclass(frozen=True)
class AuxiliaryData:
    """One auxiliary loss and its own examples, without an end; None if it works on the rollout."""

    instance: Instance[AuxiliaryLoss[Any]]
    examples: Shuffled[TokenExample] | StreamReader | None

    @property
    def stream(self) -> StreamReader | None:
        """The examples, if they are read one after the other."""
        return self.examples if isinstance(self.examples, StreamReader) else None

    def of_step(self, step: int, agree: Callable[[str, object], None]) -> list[TokenExample]:
        """The examples of an optimiser step on all ranks together. Collective: call on all ranks.

        Args:
          step: from 0; steps come one after the other, or are asked for again.
          agree: makes sure that a value is the same on all ranks.

        Raises:
          RunError: a stream breaks its contract.
          SetupError: a stream gave other examples on another rank.
        """
        assert self.examples is not None
        per_step = self.instance.component.examples_per_step
        try:
            found = self.examples.take(step * per_step, per_step)
        except ContractError as error:
            raise RunError(f"auxiliary loss {self.instance}: {error}") from error
        if self.stream is not None:  # which each rank has read for itself
            agree(
                f"the sha256 of what the stream of loss {self.instance} gave in optimiser step {step}, "
                "which may depend neither on the rank nor on global random state,",
                digest(found),
            )
        return found

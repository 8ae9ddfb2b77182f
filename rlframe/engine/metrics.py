"""Metrics as sums and counts, added over micro-batches and ranks and divided once.

An average of averages weighs a short micro-batch like a long one, and a metric of one rank is not one
of the run; both have been logged by others for years.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rlframe.functional.masked import masked_sum


class Meter:
    """Named sums and counts. Every rank must use the same names."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add to the sum and to what it will be divided by."""
        # Not as_tensor(x).double(): a Python float would become float32 on the way.
        pair = tuple(torch.as_tensor(x, dtype=torch.float64).detach() for x in (total, count))
        old = self._sums.get(name)
        self._sums[name] = (
            (pair[0], pair[1]) if old is None else (old[0] + pair[0], old[1] + pair[1])
        )

    def tokens(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add a mean over the real tokens of [B, T] values."""
        self.add(name, masked_sum(values.detach().double(), mask), mask.sum())

    def merge(self, other: Meter) -> None:
        """Add all of another meter's sums and counts."""
        for name, (total, count) in other._sums.items():
            self.add(name, total, count)

    def emptied(self) -> Meter:
        """The same names with nothing counted: what a step that was not taken leaves.

        Metrics keep their names then, with NaN for a value, and so do the tables that ranks add up.
        """
        found = Meter()
        for name in self._sums:
            found.add(name, 0.0, 0.0)
        return found

    def not_finite(self) -> str:
        """The names of the sums that are not finite, behind a comma; nothing if all are finite."""
        names = sorted(name for name, (total, _) in self._sums.items() if not total.isfinite())
        return f", not finite on this rank: {', '.join(names)}" if names else ""

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Σ total / Σ count over all ranks; NaN where nothing was counted.

        Args:
          reduce: sums a tensor over ranks.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        table = torch.stack([torch.stack([x.cpu() for x in self._sums[name]]) for name in names])
        totals, counts = reduce(table).unbind(-1)
        return dict(zip(names, (totals / counts).tolist(), strict=True))


class Clock:
    """Wall seconds of each phase of an update."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block; blocks of the same name add up until `restart`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def restart(self) -> dict[str, float]:
        """The seconds since the last call, and start from zero."""
        taken, self.seconds = self.seconds, {}
        return taken

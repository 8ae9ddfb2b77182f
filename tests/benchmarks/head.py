"""The language-model head in tiles of the vocabulary against all columns at once, on one thread.

    python tests/benchmarks/head.py

Forward and backward of log-probability and entropy for 512 tokens of width 256: the same function, with
the tile of `functional/logprobs.py` and with one as wide as the vocabulary, in turn. CPU seconds, the
median.
"""

from __future__ import annotations

import os
import statistics
import time

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # rlframe/cli/running.py says why

import torch

from rlframe.functional import logprobs

TOKENS, WIDTH, TURNS = 512, 256, 7


def once(vocabulary: int, tile: int) -> float:
    """CPU seconds of one forward and backward pass."""
    logprobs._CPU_TILE = tile
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH, generator=generator, requires_grad=True)
    targets = torch.randint(vocabulary, (TOKENS,), generator=generator)
    begun = time.process_time()
    found, entropy = logprobs.from_linear(hidden, targets, weight, None, temperature=1.0)
    (found.sum() + entropy.sum()).backward()  # type: ignore[no-untyped-call]
    return time.process_time() - begun


def main() -> None:
    torch.set_num_threads(1)
    tile = logprobs._CPU_TILE
    for vocabulary in (4096, 50257):
        seconds: dict[int, list[float]] = {tile: [], vocabulary: []}
        for _ in range(TURNS):
            for width, taken in seconds.items():
                taken.append(once(vocabulary, width))
        tiled, whole = (statistics.median(taken) for taken in seconds.values())
        print(
            f"V = {vocabulary:6,}: {whole:.3f} s at once, {tiled:.3f} s in tiles of {tile}: "
            f"{1 - tiled / whole:.0%} less"
        )


if __name__ == "__main__":
    main()

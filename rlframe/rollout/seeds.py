"""One random stream for each response, so that a rollout does not depend on how it was batched."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(*key: int | str) -> int:
    """An integer from 0 to 2^63 - 1, a hash of the key: equal keys, equal seeds, on every machine."""
    text = "/".join(map(str, key))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def stream(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by the key."""
    return torch.Generator().manual_seed(seed_of(*key))


def uniforms(seed: int, *, tokens: int) -> Tensor:
    """[tokens] float64 in [0, 1): the quantiles that decide the tokens of one response.

    Args:
      seed: of the response; `seed_of` the run's seed, what is sampled for, the update and the number
        of the response in the global batch, whatever rank it lives on.
      tokens: how many; the first of a longer request are those of a shorter one.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, generator=generator, dtype=torch.float64)

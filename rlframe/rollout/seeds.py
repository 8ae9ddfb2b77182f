"""One random stream for each response, so that a rollout does not depend on how it was batched."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def stream(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by a hash of the key: equal keys, equal numbers, on every machine."""
    text = "/".join(map(str, key))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def uniforms(seed: int, purpose: str, update: int, sample: int, *, tokens: int) -> Tensor:
    """[tokens] float64 in [0, 1): the quantiles that decide the tokens of one response.

    Args:
      seed: of the run.
      purpose: keeps apart what the policy, the reference and evaluations draw.
      update: number of the PPO update.
      sample: number of the response in the global batch, whatever rank it lives on.
      tokens: how many; the first of a longer request are those of a shorter one.
    """
    return torch.rand(tokens, generator=stream(seed, purpose, update, sample), dtype=torch.float64)

"""From scores to one reward per token."""

from __future__ import annotations

import torch
from torch import Tensor


def at_last_token(scores: Tensor, lengths: Tensor, *, width: int) -> Tensor:
    """Put each response's score on its last generated token, EOS included if it was sampled.

        r_t = score if t = length - 1 else 0

    The place comes from the length, never from a token's id: a padding token that equals EOS, or a
    stop string, cannot move it (TRL #3750, #5338: the score landed one step after EOS).

    Args:
      scores: [B].
      lengths: [B] int64, response lengths in tokens, each in [1, width].
      width: T, the padded response length in tokens.

    Returns:
      [B, T], 0 elsewhere.
    """
    placed = scores.new_zeros(len(scores), width)
    return placed.scatter_(1, (lengths - 1)[:, None], scores[:, None])


def response_mask(lengths: Tensor, *, width: int) -> Tensor:
    """[B, T] bool: True on the first `lengths[b]` tokens of row b, False on the padding."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def apply_kl_penalty(scores: Tensor, kl: Tensor, *, kl_coefficient: float) -> Tensor:
    """Reward minus a penalty for leaving the reference.

        r_t = s_t - β KL_t

    Ziegler et al. 2019, eq. 2 (https://arxiv.org/abs/1909.08593).

    Args:
      scores: [B, T], usually non-zero on the last token alone.
      kl: [B, T] nats per token, 0 in the padding, no gradient.
      kl_coefficient: β >= 0, score units per nat.
    """
    return scores - kl_coefficient * kl

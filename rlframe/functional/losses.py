"""PPO's two clipped losses, per token and unreduced: the caller alone knows the global count."""

from __future__ import annotations

import torch
from torch import Tensor

from rlframe.functional.kl import MAX_LOG_RATIO


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """ρ_t = π(a_t|s_t) / π_old(a_t|s_t), with the log ratio clamped to ±20 before the exponential."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate.

        ℓ_t = -min(ρ_t A_t, clamp(ρ_t, 1-ε, 1+ε) A_t)

    Schulman et al. 2017, eq. 7 (https://arxiv.org/abs/1707.06347).

    Args:
      ratio: [B, T] ρ_t, see `policy_ratio`.
      advantages: [B, T] A_t, no gradient.
      clip: ε > 0.

    Returns:
      (loss, clipped), both [B, T]. `clipped` is True where the clamp is the active branch, which is
      where the gradient is exactly 0.
    """
    unclipped = ratio * advantages
    clamped = ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(unclipped, clamped), clamped < unclipped


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float
) -> tuple[Tensor, Tensor]:
    """Squared error of the critic, no smaller than that of its prediction clipped around the old one.

        V^c_t = V^old_t + clamp(V_t - V^old_t, -ε, ε)
        ℓ_t   = 1/2 max((V_t - G_t)², (V^c_t - G_t)²)

    Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325) after the code of Ziegler et al. 2019.

    Args:
      values: [B, T] V_t with gradient.
      old_values: [B, T] predictions when the rollout was made, no gradient.
      returns: [B, T] G_t, no gradient.
      clip: ε > 0, in score units.

    Returns:
      (loss, clipped), both [B, T]; `clipped` is True where the clipped error is the active branch.
    """
    bounded = values.clamp(old_values - clip, old_values + clip)
    error, bounded_error = (values - returns) ** 2, (bounded - returns) ** 2
    return 0.5 * torch.maximum(error, bounded_error), bounded_error > error

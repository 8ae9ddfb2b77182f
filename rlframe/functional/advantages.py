"""Who earned the reward: advantages and value targets over right-padded responses."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation.

        δ_t = r_t + γ V_{t+1} - V_t        V_{t+1} = 0 after the last real token
        A_t = δ_t + γλ A_{t+1}
        G_t = A_t + V_t                    the value target

    Schulman et al. 2016, eq. 16 (https://arxiv.org/abs/1506.02438). Every response counts as
    terminated, one cut at the token limit too: there is no bootstrap past its end, and what a cut
    response deserves is the business of a reward (`eos_penalty`).

    Args:
      rewards: [B, T] reward for emitting token t.
      values: [B, T] V(s_t), the estimate made before token t is emitted.
      mask: [B, T] bool, each row True...True False...False.
      gamma: discount γ in [0, 1].
      lam: λ in [0, 1]. 1 gives Monte-Carlo returns, 0 one-step TD errors.

    Returns:
      (advantages, returns), both [B, T] and exactly 0 where `mask` is False. Advantages are not
      whitened; see `masked.whiten`.
    """
    values = values.masked_fill(~mask, 0)
    next_values = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], 1)
    deltas = (rewards + gamma * next_values - values).masked_fill(~mask, 0)

    advantages = torch.empty_like(deltas)
    running = deltas.new_zeros(len(deltas))
    for t in reversed(range(deltas.shape[1])):  # padding contributes 0, so it needs no branch
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values

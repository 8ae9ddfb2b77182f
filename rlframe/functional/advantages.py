"""Who earned the reward: advantages and value targets of right-padded responses.

`gae` and `discounted_returns` give an advantage to every token. `leave_one_out` and `group_relative`
compare whole responses to the same prompt and need no critic; `per_token` spreads their result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlframe.functional.groups import group_statistics


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    lam: float,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation.

        δ_t = r_t + γ V_{t+1} - V_t        V_{t+1} = V_last after the last real token
        A_t = δ_t + γλ A_{t+1}
        G_t = A_t + V_t                    the value target

    Schulman et al. 2016, eq. 16 (https://arxiv.org/abs/1506.02438). Without `last_values` every
    response counts as terminated, one that was cut at the token limit too: what a cut response
    deserves is then the business of a reward (`eos_penalty`).

    Args:
      rewards: [B, T] reward for emitting token t.
      values: [B, T] V(s_t), the estimate made before token t is emitted.
      mask: [B, T] bool, each row True...True False...False.
      gamma: discount γ in [0, 1].
      lam: λ in [0, 1]. 1 gives Monte-Carlo returns, 0 one-step TD errors.
      last_values: [B] V_last, the estimate made after the last real token: 0 for a response that ended,
        the critic's for one that was cut. None is 0 for all. Not read for a row without a real token.

    Returns:
      (advantages, returns), both [B, T] and exactly 0 where `mask` is False. Advantages are not
      whitened; see `masked.whiten`.
    """
    values = values.masked_fill(~mask, 0)
    next_values = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], 1)
    if last_values is not None:
        continues = torch.cat([mask[:, 1:], mask.new_zeros(len(mask), 1)], 1)
        next_values = torch.where(continues, next_values, last_values[:, None])
    deltas = (rewards + gamma * next_values - values).masked_fill(~mask, 0)
    advantages = _sums_to_go(deltas, gamma * lam)
    return advantages, advantages + values


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Reward to go, the advantage of REINFORCE++ before it is whitened over all tokens of the batch.

        G_t = r_t + γ G_{t+1}        G = 0 after the last real token

    With the KL penalty in the rewards and γ = 1 this is eq. 4 of Hu et al. 2025, "REINFORCE++"
    (https://arxiv.org/abs/2501.03262v9). Eq. 5, the whitening, needs moments of the whole batch: see
    `masked.whiten`.

    Args:
      rewards: [B, T] reward for emitting token t.
      mask: [B, T] bool, each row True...True False...False.
      gamma: discount γ in [0, 1].

    Returns:
      [B, T], exactly 0 where `mask` is False.
    """
    return _sums_to_go(rewards.masked_fill(~mask, 0), gamma)


def leave_one_out(scores: Tensor, group_ids: Tensor, valid: Tensor) -> Tensor:
    """Score minus the mean score of the other valid responses to the same prompt.

        A_i = s_i - Σ_{j≠i} s_j / (n - 1) = n / (n - 1) (s_i - mean)

    The baseline does not depend on the response that it is compared with, so the policy gradient
    stays unbiased. Ahmadian et al. 2024, section 2.3 (https://arxiv.org/abs/2402.14740), after Kool
    et al. 2019.

    Args:
      scores: [B] of whole responses, KL penalty included where it is part of the reward.
      group_ids: [B] int64, any numbers in any order; equal for the responses to one prompt.
      valid: [B] bool. An invalid response is never read, and counts in no baseline.

    Returns:
      [B] in score units and the dtype of `scores`: 0 for an invalid response, and for one without
      another valid response in its group, which has no baseline.
    """
    group = group_statistics(scores, group_ids, valid)
    others = (group.number - 1).clamp(min=1)  # a response alone deviates by 0 from its own mean
    return (group.deviation * group.number / others).to(scores.dtype)


def group_relative(
    scores: Tensor, group_ids: Tensor, valid: Tensor, *, divide_by_std: bool
) -> Tensor:
    """Score minus the mean score of its group, in units of the group's standard deviation if asked.

        A_i = s_i - mean                 Dr. GRPO: Liu et al. 2025, section 3.2
        A_i = (s_i - mean) / std         GRPO: Shao et al. 2024, section 4.1.2

    (https://arxiv.org/abs/2503.20783, https://arxiv.org/abs/2402.03300). The mean includes the response
    itself, which makes the policy gradient (n - 1) / n of that of `leave_one_out`. Dividing by the
    standard deviation gives prompts on which the responses hardly differ more weight than others, and
    no longer estimates the gradient of the expected score.

    `std` is the sample standard deviation, of n - 1, as in TRL's GRPO. TRL adds 1e-4 to it, which
    depends on the unit of the scores; here scores that are equal but for their rounding give 0
    instead. So |A_i| <= (n - 1) / sqrt(n), whatever the scores.

    Args:
      scores: [B] of whole responses, KL penalty included where it is part of the reward.
      group_ids: [B] int64, any numbers in any order; equal for the responses to one prompt.
      valid: [B] bool. An invalid response is never read, and counts in no statistic.
      divide_by_std: whether to divide.

    Returns:
      [B] in the dtype of `scores`: 0 for an invalid response, and for one that is alone in its group.
    """
    group = group_statistics(scores, group_ids, valid)
    if not divide_by_std:
        return group.deviation.to(scores.dtype)
    scaled = group.deviation / group.std.masked_fill(group.std == 0, torch.inf)
    return scaled.to(scores.dtype)


def per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """The advantage of a response for each of its tokens: [B] -> [B, T], exactly 0 in the padding.

    Args:
      advantages: [B]; not read for a row without a real token.
      mask: [B, T] bool.
    """
    return advantages[:, None].masked_fill(~mask, 0)


def _sums_to_go(x: Tensor, discount: float) -> Tensor:
    """Σ_{k>=0} discount^k x_{t+k} of each row; x is 0 in the padding, which needs no branch then."""
    sums = torch.empty_like(x)
    running = x.new_zeros(len(x))
    for t in reversed(range(x.shape[1])):
        running = x[:, t] + discount * running
        sums[:, t] = running
    return sums

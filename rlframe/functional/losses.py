"""Losses of the policy and of the critic, per token and unreduced: only the caller knows the count.

Functions without a mask compute on the padding too. Reduce their results with `masked.masked_sum`,
which never reads it: a weight of 0 times NaN is NaN. See `token_weights`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rlframe.functional.kl import MAX_LOG_RATIO
from rlframe.functional.masked import row_sums

Reduction = Literal["token", "sequence", "constant"]
"""How much a token weighs in the policy's loss, see `token_weights`."""


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """ρ_t = π(a_t|s_t) / π_old(a_t|s_t), with the log ratio clamped to ±20 before the exponential."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """GSPO's importance ratio: the geometric mean of the token ratios, the same for every token.

        s = exp(1/n Σ_t (log π(a_t|s_t) - log π_old(a_t|s_t)))        n real tokens

    Zheng et al. 2025, eq. 7 (https://arxiv.org/abs/2507.18071), to be clipped in place of ρ_t (eq.
    5). The gradient goes through the mean, ∂s / ∂ log π(a_t) = s / n for each token, so that a loss
    -s A_t gives every token of a response the mean of its advantages. Where those are equal, as from
    `advantages.per_token`, this is also the gradient of GSPO-token (eq. 14), which differs in that it
    keeps unequal advantages apart.

    Args:
      logprobs: [B, T] log π in nats, with gradient. Rows are whole responses: a part has another mean.
      old_logprobs: [B, T] log π_old in nats, no gradient.
      mask: [B, T] bool.

    Returns:
      [B, T]; exactly 1 and without gradient where `mask` is False. The mean is clamped to ±20.
    """
    mean = row_sums(logprobs - old_logprobs, mask) / mask.sum(-1).clamp(min=1)
    ratio = mean.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return ratio[:, None].masked_fill(~mask, 1)


def clipped_policy_loss(
    ratio: Tensor,
    advantages: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate.

        ℓ_t = -min(ρ_t A_t, clamp(ρ_t, 1-ε, 1+ε_high) A_t)
        ℓ_t = min(ℓ_t, c |A_t|)    for A_t < 0, with dual clip

    Schulman et al. 2017, eq. 7 (https://arxiv.org/abs/1707.06347). A higher upper bound leaves
    unlikely tokens room to become likely: "clip-higher", Yu et al. 2025, eq. 10
    (https://arxiv.org/abs/2503.14476). The dual clip bounds what the first one leaves unbounded, a
    bad token that has become much more likely: Ye et al. 2020, eq. 5
    (https://arxiv.org/abs/1912.09729).

    Args:
      ratio: [B, T] ρ_t, see `policy_ratio` and `sequence_ratio`.
      advantages: [B, T] A_t, no gradient.
      clip: ε > 0.
      clip_high: ε_high > 0; ε if None.
      dual_clip: c > 1; no such bound if None.

    Returns:
      (loss, clipped), both [B, T]. `clipped` is True where one of the bounds is the active branch,
      which is where the gradient is exactly 0. A token with an advantage of 0 never counts as
      clipped.
    """
    unclipped = ratio * advantages
    clamped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high)) * advantages
    loss, clipped = -torch.minimum(unclipped, clamped), clamped < unclipped
    if dual_clip is None:
        return loss, clipped
    # Not another minimum: at equality that would pass on half of the gradient.
    beyond = (advantages < 0) & (ratio > dual_clip)
    return torch.where(beyond, -dual_clip * advantages, loss), clipped | beyond


def reinforce_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """The loss whose gradient is the score-function estimate of the policy gradient.

        ℓ_t = -A_t log π(a_t|s_t)        -E_{a ~ π}[∇ℓ_t] = E_{a ~ π}[A_t ∇ log π] = ∇ E_{a ~ π}[A_t]

    Williams 1992 (https://doi.org/10.1007/BF00992696). Its value measures nothing. In the first
    optimiser step its gradient is that of the surrogate -ρ_t A_t, since ∇ρ = ρ ∇ log π and ρ = 1.
    Later, the samples are no longer those of π: the caller multiplies by a detached importance
    weight, or accepts the bias.

    Args:
      logprobs: [B, T] log π in nats, with gradient.
      advantages: [B, T] A_t, no gradient.

    Returns:
      [B, T]. Nothing is clipped.
    """
    return -advantages * logprobs


def cispo_loss(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """REINFORCE with a bounded importance weight, which unlike PPO's clip silences no token.

        ℓ_t = -sg(clamp(ρ_t, 1-ε_low, 1+ε_high)) A_t log π(a_t|s_t)        sg: no gradient

    MiniMax 2025, "MiniMax-M1", eq. 4 and 5 (https://arxiv.org/abs/2506.13585). They bound ρ from above
    alone, which is ε_low = 1 here. Without bounds the gradient is that of -ρ_t A_t.

    Args:
      logprobs: [B, T] log π in nats, with gradient.
      ratio: [B, T] ρ_t, see `policy_ratio`; its gradient is not used.
      advantages: [B, T] A_t, no gradient.
      clip_low: ε_low > 0; at 1 or above there is no lower bound.
      clip_high: ε_high > 0.

    Returns:
      (loss, clipped), both [B, T]. `clipped` is True where the weight was bounded; the gradient is
      not 0 there.
    """
    ratio = ratio.detach()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages * logprobs, weight != ratio


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


def plain_value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Squared error of the critic: ℓ_t = 1/2 (V_t - G_t)², [B, T].

    Args:
      values: [B, T] V_t with gradient.
      returns: [B, T] G_t, no gradient.
    """
    return 0.5 * (values - returns) ** 2


def token_weights(
    mask: Tensor, *, reduction: Reduction, max_new_tokens: int
) -> tuple[Tensor, Tensor]:
    """What a token weighs in the mean loss of an optimiser step.

        loss = Σ weight ℓ / Σ count        both sums over all micro-batches and ranks of the step

        reduction   weight               count       a response weighs
        token       1                    tokens      as much as it has tokens
        sequence    1 / its length       responses   the same as any other
        constant    1 / max_new_tokens   responses   as much as it has tokens, whatever the others have

    "token" is the mean of Yu et al. 2025, eq. 8 (https://arxiv.org/abs/2503.14476), "sequence" that
    of Shao et al. 2024, eq. 3 (https://arxiv.org/abs/2402.03300), and "constant" that of Liu et al.
    2025, section 3.2 (https://arxiv.org/abs/2503.20783). Apply the weights as `masked_sum(weights *
    loss, mask)`.

    Args:
      mask: [B, T] bool. A row without a real token is no response, and counts nothing.
      reduction: one of the above.
      max_new_tokens: the longest response that can be sampled, in tokens; for "constant" alone.

    Returns:
      (weights, count): weights [B, T] float64, 0 where `mask` is False; count an int64 scalar.

    Raises:
      ValueError: for another reduction.
    """
    lengths = mask.sum(-1)
    if reduction == "token":
        return mask.double(), lengths.sum()
    responses = (lengths > 0).sum()
    if reduction == "sequence":
        return mask.double() / lengths.clamp(min=1)[:, None], responses
    if reduction == "constant":
        return mask.double() / max_new_tokens, responses
    raise ValueError(f"reduction is {reduction!r}, and not token, sequence or constant")


def importance_weights(
    sampler_logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    *,
    kind: Literal["truncate", "mask"],
    limit: float,
) -> Tensor:
    """Weights that correct for a sampler whose probabilities differ from the trainer's.

        w_t = π_old(a_t|s_t) / π_sampler(a_t|s_t)        both with the weights that sampled

        truncate    min(w_t, limit)                          biased, bounded variance
        mask        w_t if 1/limit <= w_t <= limit else 0    drops tokens on which the two disagree

    Truncated importance sampling: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training" (https://fengyao.notion.site/off-policy-rl). Masking: "IcePop", Ling Team
    2025, section 2.3.2 (https://arxiv.org/abs/2510.18855), here with one limit for both sides.

    Args:
      sampler_logprobs: [B, T] log π_sampler in nats, of the distribution that was sampled from.
      old_logprobs: [B, T] log π_old in nats, as the trainer computes it.
      mask: [B, T] bool.
      kind: one of the above.
      limit: >= 1.

    Returns:
      [B, T] without gradient, to be multiplied with the policy loss; 0 where `mask` is False.

    Raises:
      ValueError: for another kind.
    """
    if kind not in ("truncate", "mask"):
        raise ValueError(f"kind is {kind!r}, and not truncate or mask")
    log_weights = (old_logprobs - sampler_logprobs).detach()
    weights = log_weights.exp()
    if kind == "truncate":
        weights = weights.clamp(max=limit)
    else:
        weights = weights.masked_fill(log_weights.abs() > math.log(limit), 0)
    return weights.masked_fill(~mask, 0)


def smoothed(logprobs: Tensor, targets: Tensor, *, epsilon: float, has_token: Tensor) -> Tensor:
    """Minus the cross-entropy with the target mixed with a uniform distribution over the K tokens.

        (1 - ε) log π(y) + ε / K Σ_k log π(k)

    That is Szegedy et al. 2016, "Rethinking the Inception Architecture" (arXiv 1512.00567), section 7:
    the target's own share is 1 - ε + ε / K.

    Args:
      logprobs: [n, V] in nats.
      targets: [n] int64, y.
      epsilon: ε in [0, 1).
      has_token: [V] bool, True for the K ids that have a token.

    Returns:
      [n] in nats.
    """
    chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1)
    mean = logprobs.where(has_token, 0).sum(-1) / has_token.sum()
    return (1 - epsilon) * chosen + epsilon * mean

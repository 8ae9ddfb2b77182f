"""KL(π ‖ π_ref): estimators from the sampled token, and the exact sum over the vocabulary.

With x = log π(a) - log π_ref(a) and a drawn from π:

    name   value               unbiased for KL   sign      remarks
    k1     x                   yes               either    high variance; the usual penalty
    k2     x²/2                no, O(KL^1.5)     >= 0      its gradient is that of KL on-policy
    k3     exp(-x) - 1 + x     yes               >= 0      low variance while π_ref/π is tame
    abs    |x|                 no                >= 0      an upper bound in expectation
    full   Σ_v π log(π/π_ref)  exact             >= 0      costs a second pass over the vocabulary

Schulman 2020, "Approximating KL Divergence" (http://joschu.net/blog/kl-approx.html). Which estimator
may serve as a *loss* is another question than which one measures well: see `straight_through`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# exp of more than this is past any practical ratio and near the end of float32's patience.
MAX_LOG_RATIO = 20.0


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Log π - log π_ref, per token in nats. Unbiased; negative for some tokens."""
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(log π - log π_ref)² / 2, per token in nats. Biased; its gradient estimates that of KL."""
    return 0.5 * (logprobs - reference) ** 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """π_ref/π - 1 - log(π_ref/π), per token in nats. Unbiased and never negative.

    The log ratio is clamped to ±20 inside the exponential.
    """
    x = logprobs - reference
    return (-x).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).expm1() + x


def absolute(logprobs: Tensor, reference: Tensor) -> Tensor:
    """|log π - log π_ref|, per token in nats."""
    return (logprobs - reference).abs()


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "abs": absolute,
}
"""The estimators that need the sampled token alone, by the name a recipe uses."""


def full(logits: Tensor, reference_logits: Tensor, *, temperature: float) -> Tensor:
    """The exact Σ_v π(v) (log π(v) - log π_ref(v)) of each position.

    Args:
      logits: [N, V] of the policy.
      reference_logits: [N, V] of the reference.
      temperature: τ > 0, applied to both.

    Returns:
      [N] in nats, never negative beyond rounding, in float32 or wider.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    logp = torch.log_softmax(logits.to(wide) / temperature, -1)
    logq = torch.log_softmax(reference_logits.to(wide) / temperature, -1)
    return (logp.exp() * (logp - logq)).sum(-1)


def straight_through(value: Tensor, logprobs: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
    """A KL *loss*: the value of any estimator with the gradient of KL(π ‖ π_ref).

    With x(a) = log π(a) - log π_ref(a), and since Σ_a π(a) ∇ log π(a) = ∇ 1 = 0,

        ∇ KL(π ‖ π_ref) = Σ_a π(a) x(a) ∇ log π(a) = E_{a ~ π_old}[ρ(a) x(a) ∇ log π(a)]

    with ρ = π / π_old, where x ∇ log π is the gradient of k2. After the first optimiser step π is no
    longer the policy that sampled: without ρ the gradient would belong to neither of them. ρ is not
    differentiated, and not clipped: the expectation is exact for the full ratio alone. It is exactly 1
    in the first step. The states are those that π_old visited, as in all of PPO's losses.

    What differentiating an estimator itself would give, on-policy (ρ = 1): k1 a gradient of expectation
    0, k2 that of KL(π ‖ π_ref), k3 that of the reverse KL(π_ref ‖ π), abs that of no divergence: the
    expectation of sign(x) ∇ log π. Off-policy and without ρ, none is the gradient of a divergence of π
    (Schulman 2020; verl #2953, OpenRLHF #1309).

    Args:
      value: [B, T] the estimate to report.
      logprobs: [B, T] log π with gradient.
      reference: [B, T] log π_ref, no gradient.
      ratio: [B, T] ρ, see `losses.policy_ratio`; its gradient is not used.
    """
    proxy = ratio.detach() * k2(logprobs, reference)
    # Not proxy + (value - proxy): a large ρ would leave nothing of the value's digits.
    return value.detach() + (proxy - proxy.detach())

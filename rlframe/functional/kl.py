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


def straight_through(value: Tensor, logprobs: Tensor, reference: Tensor) -> Tensor:
    """A KL *loss*: the value of any estimator with the gradient of k2.

    Differentiating k1 gives a gradient of expectation zero, differentiating k3 one of the reverse
    divergence with unbounded weights; only k2's is the gradient of KL(π ‖ π_ref) on-policy
    (Schulman 2020; verl #2953, OpenRLHF #1309).

    Args:
      value: [B, T] the estimate to report.
      logprobs: [B, T] log π with gradient.
      reference: [B, T] log π_ref, no gradient.
    """
    proxy = k2(logprobs, reference)
    return proxy + (value - proxy).detach()

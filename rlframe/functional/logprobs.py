"""Log-probabilities and entropies of tokens without ever holding a [B, T, V] tensor.

The language-model head is applied to N hidden states at a time, at most `chunk` of them, and only two
numbers a token survive. Under autograd the logits of all chunks but the last are computed again in
the backward pass, so memory is bounded by chunk * V however long the batch is, and a batch that fits
into one chunk pays nothing for it.

Logits are turned to float32 (float64 stays) before the normaliser: bfloat16 log-probabilities give
importance ratios that differ from 1 before anything was learned (OpenRLHF #634, #718).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


class _TokenStatistics(torch.autograd.Function):
    """log p of the target and the entropy, keeping one [N, V] tensor for the backward pass.

    ∂ log p_y / ∂ z = onehot(y) - p          ∂ H / ∂ z = -p (log p + H)
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logp = torch.log_softmax(logits, -1)
        probs = logp.exp()
        chosen = logp.gather(-1, targets[:, None]).squeeze(-1)
        entropy = -logp.mul_(probs).sum(-1)  # in place: p log p takes no memory of its own
        ctx.save_for_backward(probs, targets, entropy)
        ctx.set_materialize_grads(False)
        return chosen, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        probs, targets, entropy = ctx.saved_tensors
        d_chosen, d_entropy = grads
        slope = None
        if d_entropy is not None:
            slope = (torch.xlogy(probs, probs) + probs * entropy[:, None]) * -d_entropy[:, None]
        if d_chosen is None:
            return slope, None
        d_logits = probs * -d_chosen[:, None]
        d_logits.scatter_add_(-1, targets[:, None], d_chosen[:, None])
        return d_logits if slope is None else d_logits.add_(slope), None


def from_logits(logits: Tensor, targets: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution softmax(z / τ).

        log p_y = z_y/τ - log Σ_v exp(z_v/τ)        H = -Σ_v p_v log p_v

    Args:
      logits: [N, V] in any floating dtype, finite.
      targets: [N] int64, each in [0, V).
      temperature: τ > 0. The temperature of the sampler belongs into every log-probability, or the
        ratio compares two different distributions (OpenRLHF #857, TRL #4159).

    Returns:
      (logprobs, entropy), both [N] in nats, float32 or wider, both differentiable.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    wide = wide if temperature == 1 else wide / temperature
    logprobs, entropy = _TokenStatistics.apply(wide, targets)
    return logprobs, entropy


def chunked(
    hidden: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    temperature: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """`from_logits(head(hidden), targets)`, at most `chunk` rows of logits at a time.

    Args:
      hidden: [N, H] hidden states, each the one that predicts its target.
      targets: [N] int64.
      head: maps [n, H] to logits [n, V]; pure, since it runs twice for all chunks but the last.
      temperature: τ > 0.
      chunk: most rows of logits alive at once, at least 1.

    Returns:
      (logprobs, entropy), both [N] in nats.
    """

    def piece(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return from_logits(head(h), y, temperature=temperature)

    pieces = list(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    recompute = torch.is_grad_enabled()
    done = [
        checkpoint(piece, h, y, use_reentrant=False, preserve_rng_state=False)
        if recompute
        else piece(h, y)
        for h, y in pieces[:-1]
    ]
    done.append(piece(*pieces[-1]))
    logprobs, entropy = zip(*done, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)

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

# Columns of logits that a CPU computes and reduces before it goes on, so that they stay in its cache,
# and its matrix library sees rows of an aligned length, whatever the vocabulary: 41 % less
# time at V = 50,257 (tests/benchmarks/head.py). An accelerator takes all columns at once.
_CPU_TILE = 1024


def _wide(x: Tensor) -> Tensor:
    """In float32 or wider."""
    return x if x.dtype == torch.float64 else x.float()


def _over(x: Tensor, temperature: float) -> Tensor:
    return x if temperature == 1 else x / temperature


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """The logits over τ, in float32 or wider."""
    return _over(_wide(logits), temperature)


def over_vocabulary(logits: Tensor, *, temperature: float) -> Tensor:
    """Log softmax(z / τ): [..., V] logits -> [..., V] log-probabilities in nats, float32 or wider."""
    return torch.log_softmax(_scaled(logits, temperature), -1)


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
    logp = over_vocabulary(logits, temperature=temperature)
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, targets[:, None]).squeeze(-1), entropy


def from_linear(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    temperature: float,
    columns: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`from_logits(linear(hidden, weight, bias), targets)` in one piece, in less time and memory.

    Args:
      hidden: [N, H].
      targets: [N] int64, each in [0, V).
      weight: [V, H].
      bias: [V] or None.
      temperature: τ > 0.
      columns: the distribution is over the first so many rows of the weight, in 1..V; all if None.
        The others have a gradient of 0.

    Returns:
      (logprobs, entropy), both [N] in nats, both differentiable once.
    """
    columns = len(weight) if columns is None else min(columns, len(weight))
    logprobs, entropy = _LinearStatistics.apply(
        hidden, weight, bias, targets, temperature, columns, torch.is_grad_enabled()
    )
    return logprobs, entropy


class _LinearStatistics(torch.autograd.Function):
    """Tile after tile of the vocabulary, with running sums relative to the largest logit m so far.

    s = Σ_v exp(z_v - m)      u = Σ_v (z_v - m) exp(z_v - m)      log Σ exp = m + log s
    H = log s - u / s         ∂ log p_y / ∂ z = onehot(y) - p     ∂ H / ∂ z = -p (log p + H)

    exp(z_v - m) is kept for the backward pass, where the logits would have to go through exp again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        used: int,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        in_tiles = hidden.device.type == "cpu" and hidden.element_size() >= 4
        tile = _CPU_TILE if in_tiles else used
        total = _scaled(hidden.new_zeros(len(hidden), 1), 1)
        top = torch.full_like(total, torch.finfo(total.dtype).min)
        slope, chosen, kept = total.clone(), total.clone(), []
        for start in range(0, used, tile):
            part = slice(start, min(start + tile, used))
            logits = torch.nn.functional.linear(hidden, weight[part], _part(bias, part))
            logits = _scaled(
                logits, temperature
            )  # the name is taken again: half ones need not stay
            rows, columns = _inside(targets, start, logits)
            chosen[rows, 0] = logits[rows, columns]
            higher = torch.maximum(top, logits.amax(-1, keepdim=True))
            below = logits - higher
            weights, fade = below.exp(), (top - higher).exp()
            if keep:
                kept += [higher, weights.to(hidden.dtype)]
            slope = fade * (slope + (top - higher) * total)
            slope += below.mul_(weights).sum(-1, keepdim=True)
            total = fade * total + weights.sum(-1, keepdim=True)
            top = higher
        log_total = total.log()
        entropy = log_total - slope / total
        ctx.save_for_backward(hidden, weight, bias, targets, top, log_total, entropy, *kept)
        ctx.tile, ctx.used, ctx.temperature = tile, used, temperature
        ctx.set_materialize_grads(False)
        # Not top + log_total first: its rounding would be the largest of all.
        return ((chosen - top) - log_total).squeeze(-1), entropy.squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, top, log_total, entropy, *kept = ctx.saved_tensors
        d_chosen, d_entropy = (None if g is None else g[:, None] for g in grads)
        d_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
        for gradient in (d_weight, d_bias):
            if gradient is not None:
                gradient[ctx.used :] = 0
        for number, (higher, weights) in enumerate(zip(kept[::2], kept[1::2], strict=True)):
            start = number * ctx.tile
            part = slice(start, min(start + ctx.tile, ctx.used))
            shift = higher - top - log_total  # log p = log weight + shift
            slope = torch.zeros_like(top) if d_chosen is None else d_chosen
            if d_entropy is not None:
                least = torch.finfo(weights.dtype).tiny  # p of a weight of 0 is 0, whatever its log
                slope = slope + d_entropy * (
                    _wide(weights).clamp_min(least).log() + shift + entropy
                )
            d_logits = weights * (-slope * shift.exp())
            if d_chosen is not None:
                rows, columns = _inside(targets, start, weights)
                d_logits[rows, columns] += d_chosen[rows, 0]
            d_logits = _over(d_logits, ctx.temperature).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden.addmm_(d_logits, weight[part])
            if d_weight is not None:
                torch.mm(d_logits.T, hidden, out=d_weight[part])
            if d_bias is not None:
                torch.sum(d_logits, 0, out=d_bias[part])
        return d_hidden, d_weight, d_bias, None, None, None, None


def _part(bias: Tensor | None, part: slice) -> Tensor | None:
    return None if bias is None else bias[part]


def _inside(targets: Tensor, start: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose target lies in the tile that begins at column `start`, and its column there."""
    columns = targets - start
    rows = ((columns >= 0) & (columns < logits.shape[1])).nonzero().squeeze(-1)
    return rows, columns[rows]


def chunked(
    hidden: Tensor,
    targets: Tensor,
    statistics: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of any number of tokens, logits of at most `chunk` at a time.

    Args:
      hidden: [N, H] hidden states, each the one that predicts its target.
      targets: [N] int64.
      statistics: maps [n, H] and [n] to two [n]: the head, then `from_logits`, or `from_linear`.
        Pure, since it runs twice for all chunks but the last.
      chunk: most rows of logits alive at once, at least 1.

    Returns:
      (logprobs, entropy), both [N] in nats.
    """
    logprobs, entropy = in_chunks(statistics, hidden, targets, chunk=chunk, keep_last=True)
    return logprobs, entropy


def in_chunks(
    function: Callable[..., tuple[Tensor, ...]], *rows: Tensor, chunk: int, keep_last: bool
) -> tuple[Tensor, ...]:
    """A function of N rows, applied to at most `chunk` of them at a time.

    Args:
      function: maps [n, ...] of each tensor to a tuple of [n, ...]. Pure: under autograd it runs a
        second time, in the backward pass.
      rows: tensors [N, ...].
      chunk: at least 1.
      keep_last: the last chunk is not computed again: its intermediate results wait for the backward
        pass.

    Returns:
      The tuple of [N, ...].
    """
    pieces = list(zip(*(tensor.split(chunk) for tensor in rows), strict=True))
    recomputed = 0
    if torch.is_grad_enabled():
        recomputed = len(pieces) - keep_last
    done = [
        checkpoint(function, *piece, use_reentrant=False, preserve_rng_state=False)
        if number < recomputed
        else function(*piece)
        for number, piece in enumerate(pieces)
    ]
    return tuple(torch.cat(parts) for parts in zip(*done, strict=True))

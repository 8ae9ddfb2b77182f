"""Choosing a token from logits and a uniform number: the same number always gives the same token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Tokens are searched in two steps, block then token, so that one pass over the vocabulary suffices.
_BLOCK = 256


def keep(logits: Tensor, *, top_k: int | None, top_p: float | None, min_p: float | None) -> Tensor:
    """Which tokens the filters leave; those with -inf logits are sampled with probability 0.

    top-k keeps the k likeliest tokens and whatever ties with the last of them; top-p (Holtzman et
    al. 2020, https://arxiv.org/abs/1904.09751) the smallest set of likeliest tokens with probability
    >= p; min-p (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082) those at least min_p times as
    likely as the likeliest. They are applied in this order, each to what the one before left.
    Log-probabilities in rlframe are those of the *unfiltered* policy: filters change what is sampled,
    not what is learned from.

    Args:
      logits: [B, V], the temperature already applied.
      top_k: at least 1, or None for no limit.
      top_p: in (0, 1], or None.
      min_p: in [0, 1], or None.

    Returns:
      [B, V] logits with -inf where a token is dropped. At least one token is left.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True, stable=True)
        wide = torch.promote_types(logits.dtype, torch.float32)
        probs = ordered.softmax(-1, dtype=wide)
        beyond = probs.cumsum(-1) - probs >= top_p  # the mass before this token already suffices
        logits = logits.masked_fill(beyond.gather(-1, index.argsort(-1)), -torch.inf)
    if min_p is not None and min_p > 0:
        floor = logits.max(-1, keepdim=True).values + math.log(min_p)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits


def log_probability(kept: Tensor, tokens: Tensor) -> Tensor:
    """Log q(token) where q = softmax(kept), the distribution that `inverse_cdf` draws from.

    With π = softmax(logits) before `keep`, log q(v) = log π(v) - log Z for each token that is left. Z,
    their probability under π, is the same for all of them: KL(q || π) = -log Z >= 0 in each step.

    Args:
      kept: [B, V] logits of `keep`.
      tokens: [B] int64.

    Returns:
      [B] in nats, at least in float32.
    """
    wide = torch.promote_types(kept.dtype, torch.float32)
    return kept.gather(-1, tokens[:, None]).squeeze(-1).to(wide) - kept.to(wide).logsumexp(-1)


def inverse_cdf(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The token at quantile u of softmax(logits): argmin_v { Σ_{w<=v} p_w > u }.

    The cumulative sums are taken in float64, so that rounding moves a token only if u lies within
    about 1e-7 of a step: in practice the same u gives the same token in any batch.

    Args:
      logits: [B, V]; -inf means never. Each row has a finite one, and none is NaN or +inf.
      uniforms: [B] float64 in [0, 1).

    Returns:
      [B] int64, always a token of positive probability.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    weights = (wide - wide.max(-1, keepdim=True).values).exp()
    vocabulary = weights.shape[-1]
    padded = torch.nn.functional.pad(weights, (0, -vocabulary % _BLOCK))
    blocks = padded.unflatten(-1, (-1, _BLOCK))
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # [B, V/256] mass up to a block's end

    target = uniforms[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[-1] - 1)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK)).squeeze(1).double()
    within = torch.searchsorted(inside.cumsum(-1), target - before, right=True)
    # Rounding between the two sums may point past the block: its last possible token is meant then.
    last = (inside > 0).long().mul(torch.arange(_BLOCK, device=inside.device)).max(-1).values
    return (block * _BLOCK + torch.minimum(within, last[:, None])).squeeze(-1)

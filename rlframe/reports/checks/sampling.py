"""Are the tokens sampled from the policy that is trained?"""

from __future__ import annotations

from rlframe.reports.finding import Finding
from rlframe.reports.history import History

APART = 0.01
"""Nats per token between sampler and trainer, far above what rounding leaves."""

FAR_APART = 0.05

RATIO_APART = 0.05
"""Distance of the mean of π/q from 1, which it has for any two distributions with the same support."""


def sampler_diverges(h: History) -> Finding | None:
    """The sampler's distribution is not the policy's, in the last updates."""
    kl, length, ratio = map(
        h.last, ("sampler/kl_to_policy", "response/length_mean", "sampler/ratio")
    )
    moved = h.last("objective/kl")
    if kl is None or length is None or ratio is None or moved is None:
        return None
    per_token = kl.value / max(length.value, 1.0)
    filters = [n for n in ("top_k", "top_p", "min_p") if h.option(f"rollout.{n}")]
    if filters and kl.value < moved.value:
        return None  # wanted, and harmless as long as the policy has moved further by itself
    if per_token < APART and (filters or abs(ratio.value - 1) < RATIO_APART):
        return None
    return Finding(
        "sampler_diverges",
        "serious" if per_token > FAR_APART and not filters else "warning",
        f"The sampler's distribution is {per_token:.2g} nats per token away from the policy that "
        "is trained.",
        f"The recipe truncates the distribution ({', '.join(filters)})."
        if filters
        else "The sampler has stale weights, or computes something else than the trainer.",
        "Sample from the whole distribution."
        if filters
        else "Compare with the built-in sampler; algorithm.importance_correction=truncate "
        "corrects for a small difference.",
        f"rollout.{filters[0]}" if filters else "rollout.sampler.type",
        "null" if filters else "builtin",
        {"sampler/kl_to_policy": (kl,), "sampler/ratio": (ratio,), "objective/kl": (moved,)},
    )

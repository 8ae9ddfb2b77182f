"""The optimiser's steps: are they taken, and are they of a sensible size?"""

from __future__ import annotations

from statistics import median

from rlframe.reports.finding import Finding, counted
from rlframe.reports.history import EDGE, History

LARGE_APPROX_KL = 0.1
"""Approximate KL of one update, nats² per token. Practice: about 0.003 after an early peak, which is
0.05 in quickstart."""

LARGE_CLIP_FRACTION = 0.3
"""Fraction of clipped tokens. Practice: about 0.015 after an early peak, 0.09 in quickstart."""

LARGE_RATIO = 0.2
"""Distance of the mean ratio from 1: the width of PPO's clip range (Schulman et al. 2017)."""

OFTEN = 0.1
"""Fraction of updates from which on large steps are no longer an exception."""

EXACT_RATIO = 1e-3
"""Distance from 1 that rounding explains: with a single optimiser step per rollout the ratio is 1."""

DOMINANT_LOSS = 50.0
"""Times by which a weighted auxiliary loss exceeds the policy loss. In quickstart it is 60 at the end
and harmless, so that it counts only where the score does not rise."""


def skipped_steps(h: History) -> Finding | None:
    """The loss or the gradient was NaN or infinite."""
    skipped = h.events("train/skipped_steps", lambda value: value > 0)
    if not skipped:
        return None
    return Finding(
        "skipped_steps",
        "serious",
        f"Optimiser steps were skipped in {counted(len(skipped), 'update')}, because the loss or "
        "the gradient was not finite.",
        "The learning rate is too high, or the precision too low for this model.",
        "Lower the learning rate, and if that does not help, set runtime.precision=float32.",
        "ppo.learning_rate",
        h.learning_rate / 3,
        {"train/skipped_steps": tuple(skipped[:5])},
    )


def step_too_large(h: History) -> Finding | None:
    """Ratio, approximate KL or clip fraction are large in many updates."""
    limits = {
        "policy/approxkl_avg": lambda value: value > LARGE_APPROX_KL,
        "policy/clipfrac_avg": lambda value: value > LARGE_CLIP_FRACTION,
        "val/ratio": lambda value: abs(value - 1) > LARGE_RATIO,
    }
    large = {
        metric: found for metric, wrong in limits.items() if (found := h.events(metric, wrong))
    }
    updates = {span.first for found in large.values() for span in found}
    if len(updates) < max(2, OFTEN * len(h.events("val/ratio"))):
        return None
    return Finding(
        "step_too_large",
        "serious",
        f"The policy moved too far within an update, {len(updates)} times: the clip range no "
        "longer bounds it.",
        "The learning rate is too high for this model, or there are too many optimiser steps per "
        "rollout.",
        "Lower the learning rate; ppo.stop_approx_kl ends the epochs of such an update early.",
        "ppo.learning_rate",
        h.learning_rate / 10,
        {metric: tuple(found[:3]) for metric, found in large.items()},
    )


def approx_kl_spike(h: History) -> Finding | None:
    """Single updates moved the policy much further than the others."""
    all_updates = h.events("policy/approxkl_avg")
    usual = median(span.value for span in all_updates) if all_updates else 0.0
    limit = max(LARGE_APPROX_KL, 10 * usual)
    later = [span for span in all_updates if span.first > EDGE]  # an early peak is usual
    spikes = [span for span in later if span.value > limit]
    if not spikes:
        return None
    return Finding(
        "approx_kl_spike",
        "warning",
        f"In {counted(len(spikes), 'update')} the approximate KL exceeded {LARGE_APPROX_KL} and "
        f"ten times its median ({usual:.2g}).",
        "A rollout with unusual rewards or advantages led to a step that is too large.",
        "End the epochs of such an update early.",
        "ppo.stop_approx_kl",
        LARGE_APPROX_KL / 2,
        {"policy/approxkl_avg": tuple(spikes[:5])},
    )


def ratio_not_one(h: History) -> Finding | None:
    """With one optimiser step per rollout, old and new policy are the same when the ratio is taken."""
    if h.option("ppo.epochs", 4) * h.option("ppo.minibatches", 1) > 1:
        return None  # the metric also covers later steps, in which the policies differ
    away = h.events("val/ratio", lambda value: abs(value - 1) > EXACT_RATIO)
    if not away:
        return None
    return Finding(
        "ratio_not_one",
        "serious",
        "The ratio of new to old policy is not 1, although each rollout has a single optimiser "
        "step.",
        "The forward pass that recorded the old log-probabilities computes something else than "
        "the one in training, as with random dropout or experts that depend on the batch.",
        "Try it in full precision; if the ratio is still not 1, report it with `rlframe doctor`.",
        "runtime.precision",
        "float32",
        {"val/ratio": tuple(away[:5])},
    )


def auxiliary_dominates(h: History) -> Finding | None:
    """An auxiliary loss is much larger than the policy loss, and the score does not rise."""
    policy = h.last("loss/policy_avg")
    if policy is None or not h.long_enough or h.score_rise() > 0:
        return None
    for name, section in (h.option("losses") or {}).items():
        key = "gamma" if "gamma" in section else "coefficient"
        weight, loss = section.get(key), h.last(f"loss/{name}_avg")
        if weight and loss and abs(weight * loss.value) > DOMINANT_LOSS * abs(policy.value):
            return Finding(
                "auxiliary_dominates",
                "warning",
                f"The weighted auxiliary loss {name!r} is more than {DOMINANT_LOSS:g} times as "
                "large as the policy loss, and the score does not rise.",
                "Most of the gradient comes from the auxiliary loss, which holds the policy "
                "where it is.",
                f"Lower losses.{name}.{key}.",
                f"losses.{name}.{key}",
                weight / 10,
                {f"loss/{name}_avg": (loss,), "loss/policy_avg": (policy,)},
            )
    return None

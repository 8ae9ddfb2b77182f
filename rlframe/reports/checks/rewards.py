"""Is there anything to learn from the rewards, and is what was learned what was meant?"""

from __future__ import annotations

import math

from rlframe.reports.checks.kl import distance, raised_coefficient, words
from rlframe.reports.finding import Finding, Span
from rlframe.reports.history import CLEAR, TREND, Heldout, History

NO_SPREAD = 1e-6
"""Standard deviation of scores, in score units: less is rounding."""

FAR_ABOVE = 2.0
"""Times the KL target; a healthy run with an adaptive controller stays below 1.5."""


def no_signal(h: History) -> Finding | None:
    """All responses of an update have the same score."""
    spread = h.events("objective/scores_std")[-TREND:]
    equal = [span for span in spread if span.value <= NO_SPREAD]
    if not equal or 2 * len(equal) < len(spread):
        return None
    rewards = h.option("rewards", {})
    names = [n for n in rewards if not h.events(f"reward/{n}/std", lambda v: v > NO_SPREAD)]
    which = ", ".join(map(repr, names)) or "the rewards"
    return Finding(
        "no_signal",
        "serious",
        f"All responses have the same score in {len(equal)} of the last {len(spread)} updates: "
        "there is nothing to learn from.",
        f"Every response gets the same value from {which}.",
        "Use a reward that tells responses apart, or sample more diverse ones with a higher "
        "temperature.",
        f"rewards.{names[0]}.type" if names else "rollout.temperature",
        "reward_model" if names else 1.0,
        {"objective/scores_std": tuple(equal[-3:])},
    )


def overfitting(h: History) -> Finding | None:
    """The training score rises and the held-out score falls."""
    before, last = _best_and_last(h)
    scores = h.trend("objective/scores")
    if before is None or last is None or scores is None or h.score_rise() < CLEAR:
        return None
    if before.mean - last.mean < CLEAR * math.hypot(before.error, last.error):
        return None
    key, value = ("ppo.updates", before.update) if before.update else raised_coefficient(h)
    return Finding(
        "overfitting",
        "serious",
        "The training score rises while the held-out score has fallen from its best value.",
        "If the training responses are good, the policy is over-fitting its prompts; if they are "
        "not, it is hacking the reward. samples/ has responses to judge by.",
        "Stop earlier, use more prompts, or raise the KL coefficient; the best checkpoint is kept.",
        key,
        value,
        {"objective/scores": scores, "heldout/scores": _spans(before, last)},
    )


def reward_hacking(h: History) -> Finding | None:
    """The held-out score rises as well, but far from the reference."""
    found = h.heldout()
    metric, limit = distance(h, FAR_ABOVE)
    kl = h.last(metric)
    if len(found) < 2 or kl is None or kl.value < limit:
        return None
    before, last = found[0], found[-1]
    if last.mean - before.mean < CLEAR * math.hypot(before.error, last.error):
        return None
    return Finding(
        "reward_hacking",
        "warning",
        f"Scores rise, but at {kl.value:.3g} {words(metric)} from the reference, beyond {limit:.3g}.",
        "So far away a rising score is more likely to be a flaw of the reward than progress.",
        "Read samples/ before and after; then raise the KL coefficient, or repair the reward.",
        *raised_coefficient(h),
        {metric: (kl,), "heldout/scores": _spans(before, last)},
    )


def _best_and_last(h: History) -> tuple[Heldout | None, Heldout | None]:
    """The best of the earlier evaluations, and the last one."""
    found = h.heldout()
    return (max(found[:-1], key=lambda e: e.mean), found[-1]) if len(found) > 1 else (None, None)


def _spans(*evaluations: Heldout) -> tuple[Span, ...]:
    return tuple(Span(e.update, e.update, e.mean) for e in evaluations)

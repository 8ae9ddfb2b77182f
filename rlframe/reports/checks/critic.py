"""Does the critic learn to predict returns?"""

from __future__ import annotations

from statistics import median

from rlframe.reports.finding import Finding, Span
from rlframe.reports.history import TREND, History

UNEXPLAINED = 0.02
"""Explained variance that is practically none. Quickstart has 0.1 to 0.3 from its second update on."""

MISLEADING = -0.2
"""Explained variance at which the critic is clearly worse than a constant."""

NOT_FALLING = 1.2
"""Later value loss as a multiple of the earlier one, both divided by the variance of the scores: with
scores that vary more, a loss may rise although the critic learns."""

USUAL_RATE = 1e-5
"""InstructGPT's critic was trained with 9e-6 (Ouyang et al. 2022, appendix C.4)."""


def critic_explains_nothing(h: History) -> Finding | None:
    """Values predict returns no better than their mean would."""
    known = h.events("critic/explained_variance")[-TREND:]
    if not h.long_enough or len(known) < TREND // 2:
        return None
    explained = median(span.value for span in known)
    if explained > UNEXPLAINED:
        return None
    worse, rate = explained < MISLEADING, _rate(h)
    return Finding(
        "critic_explains_nothing",
        "serious" if worse else "warning",
        f"The critic explains none of the variance of the returns (median {explained:.2g} in the "
        f"last {len(known)} updates), so that advantages are as noisy as without it.",
        "The critic's learning rate is too high."
        if worse
        else "The critic learns too slowly, or not at all.",
        f"{'Lower' if worse else 'Raise'} the critic's learning rate, or start it from a reward "
        "model (model.critic.initial); `rloo` needs no critic.",
        "model.critic.learning_rate",
        rate / 10 if worse else max(10 * rate, USUAL_RATE),
        {"critic/explained_variance": (Span(known[0].first, known[-1].last, explained),)},
    )


def value_loss_not_falling(h: History) -> Finding | None:
    """The value loss rises more than the scores that it is about vary."""
    loss, spread = h.trend("loss/value_avg"), h.trend("objective/scores_std")
    if loss is None or spread is None or min(s.value for s in spread) <= 0:
        return None
    first, last = (part.value / std.value**2 for part, std in zip(loss, spread, strict=True))
    if loss[1].value <= loss[0].value or last <= NOT_FALLING * first:
        return None
    return Finding(
        "value_loss_not_falling",
        "warning",
        f"The value loss does not fall: it is {last / max(first, 1e-12):.2g} times what it was, "
        "relative to the variance of the scores.",
        "The critic cannot follow the policy: one of the two learns at the wrong speed.",
        "Lower the critic's learning rate if explained variance is negative, else raise it.",
        "model.critic.learning_rate",
        max(3 * _rate(h), USUAL_RATE),
        {"loss/value_avg": loss, "objective/scores_std": spread},
    )


def _rate(h: History) -> float:
    """The critic's learning rate: that of the policy if the recipe gives none."""
    return float(h.option("model.critic.learning_rate", h.learning_rate))

"""What the policy writes: is it varied, does it end, how long is it?"""

from __future__ import annotations

from rlframe.reports.checks.kl import raised_coefficient
from rlframe.reports.checks.prompts import MOSTLY, share_of_near_copies
from rlframe.reports.checks.texts import spread_phrase
from rlframe.reports.finding import Finding, Span
from rlframe.reports.history import History

TEMPLATED = 0.75
"""Fraction of responses that share a phrase. In the runs of tests/benchmarks/doctor.py it is 0.79 and
more where one word is rewarded, and up to 0.68 in healthy ones, whose reward asks for phrases too."""

SPREAD = 0.5
"""Rise of that fraction over the run: if it was there from the start, PPO is not the cause."""

COLLAPSED = 1 / 3
"""Later entropy as a fraction of the first; quickstart keeps 0.9 of it."""

CUT = 0.2
"""Fraction of responses that are cut at `max_new_tokens`."""

MOSTLY_CUT = 0.5

LONGER = 2.0
"""Times by which the mean length has changed, up or down."""


def templated(h: History) -> Finding | None:
    """Responses to different prompts share a phrase that they did not have before."""
    if len(h.samples) < 2 or share_of_near_copies(h) > MOSTLY:  # like prompts, like responses
        return None
    begin, end = min(h.samples), max(h.samples)
    texts = (tuple(str(row["response"]) for row in h.samples[u]) for u in (begin, end))
    phrase, before, after = spread_phrase(*texts)
    if after < max(TEMPLATED, before + SPREAD):
        return None
    return Finding(
        "templated",
        "serious",
        f"{after:.0%} of the responses to different held-out prompts contain {phrase!r}.",
        "The reward pays for a phrase that fits every prompt, and little holds the policy back.",
        "Lower what that phrase earns (at_most, a clip transform), or raise the KL coefficient.",
        *raised_coefficient(h),
        {"responses with the phrase": (Span(begin, begin, before), Span(end, end, after))},
    )


def entropy_collapse(h: History) -> Finding | None:
    """The next-token distribution has become nearly deterministic."""
    entropy = h.trend("policy/entropy_avg")
    if entropy is None or entropy[1].value >= COLLAPSED * entropy[0].value:
        return None
    return Finding(
        "entropy_collapse",
        "warning",
        f"The entropy of the policy has fallen to {entropy[1].value / entropy[0].value:.0%} of "
        "what it was.",
        "The policy no longer explores: it repeats what scored well first.",
        "Raise the KL coefficient, or add an `entropy_bonus` under losses.",
        *raised_coefficient(h),
        {"policy/entropy_avg": entropy},
    )


def missing_eos(h: History) -> Finding | None:
    """Many responses are cut, and no fewer than at the start."""
    first, last = h.first("response/truncated_share"), h.last("response/truncated_share")
    if first is None or last is None or last.value < max(CUT, 0.9 * first.value):
        return None
    types = {name: r.get("type") for name, r in (h.option("rewards") or {}).items()}
    name = next((n for n, kind in types.items() if kind == "eos_penalty"), None)
    penalty = h.option(f"rewards.{name}.penalty", 1.0) if name else 0.0
    return Finding(
        "missing_eos",
        "serious" if last.value > MOSTLY_CUT else "warning",
        f"{last.value:.0%} of the responses are cut at rollout.max_new_tokens instead of ending "
        "with EOS.",
        "Nothing rewards an end of the response, or the limit is too short for the task.",
        "Penalise responses that do not end (rewards: eos_penalty), or raise "
        "rollout.max_new_tokens.",
        f"rewards.{name or 'finished'}.penalty" if penalty else "rewards.finished",
        2 * penalty if penalty else "{type: eos_penalty, penalty: 1.0}",
        {"response/truncated_share": (first, last)},
    )


def length_drift(h: History) -> Finding | None:
    """Responses have become much longer or shorter, and no reward asks for a length."""
    length = h.trend("response/length_mean")
    wanted = any(r.get("type") == "length" for r in (h.option("rewards") or {}).values())
    if length is None or wanted:
        return None
    times = length[1].value / max(length[0].value, 1e-9)
    if 1 / LONGER < times < LONGER:
        return None
    return Finding(
        "length_drift",
        "warning",
        f"Responses have become {times:.2g} times as long as at the start.",
        "The reward favours one length, or KL is summed over the response and shorter ones cost "
        "less.",
        "Read samples/; if the length is not wanted, reward it with a `length` reward of small "
        "weight.",
        "rewards.brevity",
        f"{{type: length, target_tokens: {max(round(length[0].value), 1)}, weight: 0.1}}",
        {"response/length_mean": length},
    )

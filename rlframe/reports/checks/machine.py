"""Where the time goes. A slow run may be healthy, so that these are notes."""

from __future__ import annotations

from rlframe.reports.finding import TOO_SHORT, Finding, Span, counted
from rlframe.reports.history import TREND, History

PHASES = ("gather", "rollout", "reward", "experience", "learn")

WAITING = 0.3
"""Fraction of an update that rank 0 waits for the others."""

SLOW_REWARD = 0.5
"""Fraction of an update that rewards take; a reward model as large as the policy takes a tenth."""


def slow_rank(h: History) -> Finding | None:
    """Rank 0 waits for other processes."""
    waiting, share = _share(h, "collectives")
    if waiting is None or share < WAITING:
        return None
    return Finding(
        "slow_rank",
        "note",
        f"Rank 0 waits for other processes during {share:.0%} of an update.",
        "A process is slower than the others, its reward takes longer, or the network is slow.",
        "Compare the machines; smaller micro-batches balance the work better.",
        "ppo.microbatch_tokens",
        max(h.option("ppo.microbatch_tokens", 4096) // 2, 1),
        {"time/collectives_seconds": (waiting,)},
    )


def slow_reward(h: History) -> Finding | None:
    """Rewards take most of the time of an update."""
    reward, share = _share(h, "reward")
    if reward is None or share < SLOW_REWARD:
        return None
    return Finding(
        "slow_reward",
        "note",
        f"The rewards take {share:.0%} of an update.",
        "A reward calls a slow service or program, or scores one response at a time.",
        "Score in batches, or keep scores with a cache (`rlframe-reward-cache`).",
        "hooks.cache.type",
        "reward_cache",
        {"time/reward_seconds": (reward,)},
    )


def too_short(h: History) -> Finding | None:
    """Not enough updates for a trend."""
    if h.long_enough:
        return None
    return Finding(
        TOO_SHORT,
        "note",
        f"The run has {counted(len(h.rows), 'update')}; trends are judged from {TREND} on.",
        "KL, entropy, lengths and losses of single updates are too noisy to compare.",
        "Look again after more updates.",
        "ppo.updates",
        max(h.option("ppo.updates", 0), TREND),
    )


def _share(h: History, phase: str) -> tuple[Span | None, float]:
    """(seconds of a phase, which fraction of an update that is), in the last updates."""
    seconds = {name: h.last(f"time/{name}_seconds") for name in (*PHASES, phase)}
    total = sum(s.value for name, s in seconds.items() if s and name in PHASES)
    found = seconds[phase]
    return found, found.value / total if found and total > 0 else 0.0

"""The watch on held-out prompts: the same prompts and the same random numbers, before and after.

Loss curves mislead; what a person believes is the responses themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from rlframe.engine.judge import Judge
from rlframe.types import Rollout, StopReason


@dataclass(frozen=True)
class HeldOut:
    """What a policy answers to the held-out prompts, and what the rewards say about it."""

    rollout: Rollout
    scores: tuple[float, ...]
    """The mix, one number a response."""
    rewards: dict[str, tuple[float, ...]]
    """Name -> score before its weight, one number a response."""

    @property
    def mean(self) -> float:
        """Mean score of the mix."""
        return sum(self.scores) / len(self.scores)

    @property
    def finished(self) -> float:
        """Share of responses that ended by themselves."""
        cut = sum(reason is StopReason.LENGTH for reason in self.rollout.stop_reasons)
        return 1 - cut / len(self.scores)

    def metrics(self) -> dict[str, float]:
        """The figures that go beside those of training."""
        means = {f"heldout/{n}/raw": sum(v) / len(v) for n, v in self.rewards.items()}
        return {"heldout/scores": self.mean, **means, "heldout/finished_share": self.finished}

    def rows(self) -> list[dict[str, Any]]:
        """One object a response, for a samples file."""
        rollout = self.rollout
        return [
            {
                "prompt": rollout.prompts[i].text,
                "response": rollout.texts[i],
                "stop_reason": rollout.stop_reasons[i].value,
                "score": self.scores[i],
                "rewards": {name: values[i] for name, values in self.rewards.items()},
            }
            for i in range(len(rollout))
        ]


class Watch:
    """Asks the policy of the moment about fixed held-out prompts.

    Args:
      respond: samples the responses, always with the same random numbers.
      judge: the rewards that training uses.
    """

    def __init__(self, respond: Callable[[], Rollout], judge: Judge) -> None:
        self._respond = respond
        self._judge = judge

    def look(self) -> HeldOut:
        """Sample and score the held-out responses."""
        rollout = self._respond()
        judged = self._judge(rollout)
        return HeldOut(
            rollout,
            tuple(judged.scores.tolist()),
            {name: tuple(values.tolist()) for name, values in judged.raw.items()},
        )


def before_and_after(before: HeldOut, after: HeldOut, *, rows: int) -> Table:
    """The first prompts, each with its first response before and after and their scores."""
    table = Table("prompt", "before", "score", "after", "score", title="Held-out prompts")
    groups = before.rollout.group_ids
    for i in [groups.index(group) for group in dict.fromkeys(groups)][:rows]:
        table.add_row(
            before.rollout.prompts[i].text,
            _shown(before.rollout, i),
            f"{before.scores[i]:.2f}",
            _shown(after.rollout, i),
            f"{after.scores[i]:.2f}",
        )
    return table


def what_changed(before: HeldOut, after: HeldOut, *, kl: float) -> str:
    """One sentence or two on how the behaviour moved.

    Args:
      before: the policy as PPO found it.
      after: as PPO left it.
      kl: of the last rollout, nats a response.
    """
    verb = "rose" if after.mean > before.mean else "fell" if after.mean < before.mean else "stayed"
    parts = "; ".join(
        f"{name} {_mean(before.rewards[name]):.2f} -> {_mean(after.rewards[name]):.2f}"
        for name in before.rewards
    )
    more, less = _words(before.rollout.texts, after.rollout.texts)
    said = f" It now says {_quoted(more)} more often" if more else ""
    said += f" and {_quoted(less)} less often." if said and less else "." if said else ""
    prompts = len(set(before.rollout.group_ids))
    return (
        f"On {prompts} held-out prompts the mean score {verb} from {before.mean:.2f} to "
        f"{after.mean:.2f} ({parts}), at {kl:.1f} nats a response from the reference; "
        f"{after.finished:.0%} of the responses end by themselves (before: {before.finished:.0%})."
        f"{said}"
    )


def _shown(rollout: Rollout, row: int) -> str:
    ended = rollout.stop_reasons[row] is not StopReason.LENGTH
    return rollout.texts[row] + ("" if ended else " …")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _words(before: Sequence[str], after: Sequence[str]) -> tuple[list[str], list[str]]:
    """Up to four words each that occur in clearly more, or fewer, responses than before."""
    counts = [
        Counter(word for text in texts for word in set(_WORD.findall(text.lower())))
        for texts in (before, after)
    ]
    change = {w: counts[1][w] - counts[0][w] for w in counts[0] | counts[1]}
    enough = max(2, len(before) // 16)
    ordered = sorted(change, key=lambda w: (-change[w], w))
    return (
        [w for w in ordered[:4] if change[w] >= enough],
        [w for w in ordered[::-1][:4] if change[w] <= -enough],
    )


_WORD = re.compile(r"[^\W\d_]{4,}(?:'\w+)?")


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)

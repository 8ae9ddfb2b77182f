"""How the policy's behaviour on held-out prompts changed: a table, and a sentence or two."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from rlframe.engine.heldout import Answer, HeldOut
from rlframe.text import cell, table


def before_and_after(before: HeldOut, after: HeldOut, *, rows: int) -> Table:
    """The first prompts, each with its first response before and after and their scores.

    Of a chat its last turn stands there: the rendered template begins alike in every row.
    """
    shown = table("prompt", "before", "score", "after", "score", title="Held-out prompts")
    firsts = {answer.group: k for k, answer in reversed(list(enumerate(before.answers)))}
    for k in sorted(firsts.values())[:rows]:
        old, new = before.answers[k], after.answers[k]
        asked = old.prompt if old.question is None else old.question
        row = (asked, _shown(old), _score(old), _shown(new), _score(new))
        shown.add_row(*map(cell, row))
    return shown


def what_changed(before: HeldOut, after: HeldOut, *, kl: float) -> str:
    """One sentence or two on how the behaviour moved.

    Args:
      before: the policy as PPO found it.
      after: as PPO left it.
      kl: of the last rollout, nats per response.
    """
    parts = "; ".join(
        f"{name} {_number(value)} -> {_number(after.rewards[name])}"
        for name, value in before.rewards.items()
    )
    more, less = _words(*([a.response for a in seen.answers] for seen in (before, after)))
    said = f" It now says {_quoted(more)} more often" if more else ""
    said += f" and {_quoted(less)} less often." if said and less else "." if said else ""
    prompts = len({answer.group for answer in before.answers})
    return (
        f"On {prompts} held-out prompts {_moved(before.mean, after.mean)} ({parts}), at {kl:.1f} nats "
        f"per response from the reference; "
        f"{after.finished:.0%} of the responses end by themselves (before: {before.finished:.0%})."
        f"{said}"
    )


def _shown(answer: Answer) -> str:
    return answer.response + ("" if answer.finished else " …")


def _moved(before: float, after: float) -> str:
    if math.isnan(before) and math.isnan(after):
        return "no response was judged by the rewards"
    if after == before:
        verb = "stayed"
    else:  # "went": to or from none
        verb = "rose" if after > before else "fell" if after < before else "went"
    return f"the mean score {verb} from {_number(before)} to {_number(after)}"


def _score(answer: Answer) -> str:
    return _number(math.nan if answer.score is None else answer.score)


def _number(value: float) -> str:
    """NaN, where nothing was judged, in a word."""
    return "none" if math.isnan(value) else f"{value:.2f}"


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

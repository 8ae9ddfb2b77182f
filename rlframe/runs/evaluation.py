"""The watch on held-out prompts: the same prompts and the same random numbers, before and after.

Loss curves mislead; what a person believes is the responses themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from rlframe.engine.judge import Judgement
from rlframe.text import cell, table
from rlframe.types import Prompt, Rollout, StopReason


@dataclass(frozen=True)
class Answer:
    """One response to a held-out prompt, and what the rewards say about it."""

    sample: int
    """Number of the response among all; its order."""
    group: int
    """Number of the prompt."""
    prompt: str
    response: str
    stop_reason: StopReason
    score: float
    """The mix."""
    rewards: dict[str, float]
    """Name -> score before its weight."""
    question: str | None = None
    """The last turn of the chat that the prompt was rendered from; None where there was no chat."""

    def row(self) -> dict[str, Any]:
        """What a samples file keeps."""
        found = {**vars(self), "stop_reason": self.stop_reason.value}
        if self.question is None:
            del found["question"]
        return found

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Answer:
        """Back from a samples file."""
        return cls(**{**row, "stop_reason": StopReason(row["stop_reason"])})

    @property
    def finished(self) -> bool:
        """Whether it ended by itself."""
        return self.stop_reason is not StopReason.LENGTH


@dataclass(frozen=True)
class HeldOut:
    """What a policy answers to the held-out prompts, on all ranks together."""

    answers: tuple[Answer, ...]

    @property
    def mean(self) -> float:
        """Mean score of the mix."""
        return _mean(a.score for a in self.answers)

    @property
    def rewards(self) -> dict[str, float]:
        """Name -> mean score before its weight."""
        return {n: _mean(a.rewards[n] for a in self.answers) for n in self.answers[0].rewards}

    @property
    def finished(self) -> float:
        """Share of responses that ended by themselves."""
        return _mean(a.finished for a in self.answers)

    def metrics(self) -> dict[str, float]:
        """The figures that go beside those of training."""
        means = {f"heldout/{name}/raw": value for name, value in self.rewards.items()}
        return {"heldout/scores": self.mean, **means, "heldout/finished_share": self.finished}


class Watch:
    """Asks the policy of the moment about fixed held-out prompts.

    Args:
      respond: samples this rank's share of the responses, always with the same random numbers; may be
        empty-handed.
      judge: the rewards that training uses, by a judge that learns nothing from it.
      gather: every rank's value, on every rank.
    """

    def __init__(
        self,
        respond: Callable[[], Rollout | None],
        judge: Callable[[Rollout], Judgement],
        gather: Callable[[list[Answer]], list[list[Answer]]],
    ) -> None:
        self._respond = respond
        self._judge = judge
        self._gather = gather

    def look(self) -> HeldOut:
        """Sample and score the held-out responses. Every rank has to call it."""
        rollout = self._respond()
        mine = [] if rollout is None else _answers(rollout, self._judge(rollout))
        found = [answer for share in self._gather(mine) for answer in share]
        return HeldOut(tuple(sorted(found, key=lambda answer: answer.sample)))


def _answers(rollout: Rollout, judged: Judgement) -> list[Answer]:
    scores = judged.scores.tolist()
    rewards = {name: values.tolist() for name, values in judged.raw.items()}
    return [
        Answer(
            sample=rollout.samples[i],
            group=rollout.group_ids[i],
            prompt=rollout.prompts[i].text,
            response=rollout.texts[i],
            stop_reason=rollout.stop_reasons[i],
            score=scores[i],
            rewards={name: values[i] for name, values in rewards.items()},
            question=_question(rollout.prompts[i]),
        )
        for i in range(len(rollout))
    ]


def _question(prompt: Prompt) -> str | None:
    return prompt.messages[-1]["content"] if prompt.messages else None


def before_and_after(before: HeldOut, after: HeldOut, *, rows: int) -> Table:
    """The first prompts, each with its first response before and after and their scores.

    Of a chat its last turn stands there: the rendered template begins alike in every row.
    """
    shown = table("prompt", "before", "score", "after", "score", title="Held-out prompts")
    firsts = {answer.group: k for k, answer in reversed(list(enumerate(before.answers)))}
    for k in sorted(firsts.values())[:rows]:
        old, new = before.answers[k], after.answers[k]
        asked = old.prompt if old.question is None else old.question
        row = (asked, _shown(old), f"{old.score:.2f}", _shown(new), f"{new.score:.2f}")
        shown.add_row(*map(cell, row))
    return shown


def what_changed(before: HeldOut, after: HeldOut, *, kl: float) -> str:
    """One sentence or two on how the behaviour moved.

    Args:
      before: the policy as PPO found it.
      after: as PPO left it.
      kl: of the last rollout, nats a response.
    """
    verb = "rose" if after.mean > before.mean else "fell" if after.mean < before.mean else "stayed"
    parts = "; ".join(
        f"{name} {value:.2f} -> {after.rewards[name]:.2f}" for name, value in before.rewards.items()
    )
    more, less = _words(*([a.response for a in looked.answers] for looked in (before, after)))
    said = f" It now says {_quoted(more)} more often" if more else ""
    said += f" and {_quoted(less)} less often." if said and less else "." if said else ""
    prompts = len({answer.group for answer in before.answers})
    return (
        f"On {prompts} held-out prompts the mean score {verb} from {before.mean:.2f} to "
        f"{after.mean:.2f} ({parts}), at {kl:.1f} nats a response from the reference; "
        f"{after.finished:.0%} of the responses end by themselves (before: {before.finished:.0%})."
        f"{said}"
    )


def _shown(answer: Answer) -> str:
    return answer.response + ("" if answer.finished else " …")


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


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

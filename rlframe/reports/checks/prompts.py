"""Are there enough prompts, are they different, and does the evaluation ask something else?"""

from __future__ import annotations

from collections.abc import Mapping

from rlframe.reports.checks.texts import near_duplicates, without_frame
from rlframe.reports.finding import Finding, Span
from rlframe.reports.history import History, Row

FEW = 100
"""Training prompts: InstructGPT used 31,000 (Ouyang et al. 2022, table 6). The limit is an estimate."""

REPEATED = 20
"""Times that the run has used each training prompt."""

SAME = 0.25
"""Different held-out prompts as a fraction of all. Quickstart's openings of four words have 0.46."""

NEAR = 0.6
"""Similarity at which one prompt is nearly a copy of another: they differ in a word or a number."""

MOSTLY = 0.5
"""Fraction of held-out prompts with a near copy."""

ENOUGH = 8
"""Held-out prompts from which on their similarity says something."""


def prompts_few(h: History) -> Finding | None:
    """So few training prompts that each is seen many times."""
    names = h.option("prompts.data", "")
    names = list(names) if isinstance(names, Mapping) else [names]
    counts = [h.inputs.get(f"data.{name}", {}).get("train") for name in names]
    count = sum(n for n in counts if n)
    if not count or not h.rows:
        return None
    each = h.option("rollout.prompts_per_update", 1)
    times = len(h.rows) * each / count
    if count >= FEW and times <= REPEATED:
        return None
    return Finding(
        "prompts_few",
        "warning",
        f"There are {count} training prompts, each of which has been used {times:.2g} times.",
        "The data set is small for a run of this length: the policy can learn answers by heart.",
        "Add prompts, or run fewer updates.",
        "ppo.updates",
        max(REPEATED * count // each, 1),
        {"times that each prompt was used": (Span(1, len(h.rows), times),)},
    )


def prompts_alike(h: History) -> Finding | None:
    """Few of the held-out prompts are different texts; the training prompts come from the same data."""
    texts = _questions(h)
    share = len(set(texts)) / max(len(texts), 1)
    if len(texts) < ENOUGH or share > SAME:
        return None
    return Finding(
        "prompts_alike",
        "warning",
        f"Only {len(set(texts))} of the {len(texts)} held-out prompts are different, and the "
        "training prompts come from the same data.",
        "The data repeat themselves"
        + (", or openings of so few words do." if h.option("prompts.first_words") else "."),
        "Use more varied data, or longer openings.",
        "prompts.first_words",
        2 * h.option("prompts.first_words", 4),
        {"different held-out prompts, as a fraction": (Span(0, 0, share),)},
    )


def evaluation_like_training(h: History) -> Finding | None:
    """Held-out prompts are near copies of each other, and therefore of training prompts.

    Both are parts of the same data, divided by a hash of the text: equal prompts are on one side, near
    copies on both. What nearly repeats among the few that are held out does so more among the others.
    """
    share = share_of_near_copies(h)
    if share < MOSTLY:
        return None
    return Finding(
        "evaluation_like_training",
        "warning",
        f"{share:.0%} of the held-out prompts are near copies of another one, and so are training "
        "prompts: the evaluation asks what was trained on.",
        "The data vary a few words or numbers of one text, which the split by equal texts cannot "
        "see.",
        "Evaluate on other data, or divide these by topic before rlframe reads them.",
        "prompts.data",
        "another data set, divided by topic",
        {"held-out prompts with a near copy, as a fraction": (Span(0, 0, share),)},
    )


def share_of_near_copies(h: History) -> float:
    """Fraction of held-out prompts that are near copies of another one; 0 if there are too few."""
    texts = _questions(h)
    if h.option("prompts.template") or h.option("prompts.system"):
        texts = list(without_frame(texts))
    return near_duplicates(tuple(texts), at_least=NEAR) if len(set(texts)) >= ENOUGH else 0.0


def _questions(h: History) -> list[str]:
    """The held-out prompts of the first evaluation, once each: the last turn where they are chats."""
    rows = h.samples[min(h.samples)] if h.samples else ()
    groups: dict[object, Row] = {row.get("group", k): row for k, row in enumerate(rows)}
    return [str(row.get("question") or row["prompt"]) for row in groups.values()]

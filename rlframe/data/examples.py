"""What the supervised stages learn from: rows as examples and pairs that fit, and what was cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from rlframe.data.fitting import Fitter, Pair
from rlframe.errors import RecipeError
from rlframe.types import TokenExample

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared(Generic[T]):
    """What a stage trains on and is measured by."""

    train: list[T]
    heldout: list[T]
    notes: tuple[str, ...]
    """What people should know of it, a sentence each."""


def demonstrations(
    examples: tuple[Sequence[TokenExample], Sequence[TokenExample]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
) -> Prepared[TokenExample]:
    """Examples of fine-tuning.

    Args:
      examples: (to train on, held out), encoded when they are read.
      tokenizer: for its BOS, and to show an example.
      max_tokens: longer examples are cut, see `Fitter.example`.

    Raises:
      RecipeError: a row is malformed, or nothing is left of it to learn.
    """
    fitter = Fitter(max_tokens, tokenizer.bos_token_id)
    whole = [list(part) for part in examples]
    train, heldout = ([fitter.example(example) for example in part] for part in whole)
    for example in (*train, *heldout):
        if not any(example.counts()):
            text = str(tokenizer.decode(list(example.ids)))[:120]
            raise RecipeError(
                f"max_tokens of {max_tokens} leaves nothing to learn of an example: {text!r}. Raise "
                "it, or leave out such rows"
            )
    return Prepared(train, heldout, _cut([*whole[0], *whole[1]], [*train, *heldout], max_tokens))


def _cut(
    whole: Sequence[TokenExample], fitted: Sequence[TokenExample], limit: int
) -> tuple[str, ...]:
    """A note on examples that were too long."""
    long = [(w, f) for w, f in zip(whole, fitted, strict=True) if w is not f]
    if not long:
        return ()
    prompts = sum(f.spans[0][0] < w.spans[0][0] for w, f in long)
    ends = sum(sum(f.counts()) < sum(w.counts()) for w, f in long)
    most = max(len(w.ids) for w, _ in long)
    return (
        f"{len(long)} of {len(whole)} examples are longer than max_tokens ({limit}; the longest has "
        f"{most}): {prompts} lose the beginning of their prompt, {ends} the end of what is learned",
    )


def preferences(
    pairs: tuple[Sequence[Pair], Sequence[Pair]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    max_equal: float,
    stage: str,
) -> Prepared[Pair]:
    """Pairs to compare.

    Args:
      pairs: (to train on, held out), encoded when they are read.
      tokenizer: for its BOS, and to read answers.
      max_tokens: longer pairs are cut, see `Fitter.pair`.
      max_equal: largest share of pairs whose two sides are the same tokens.
      stage: whose section has `max_tokens` and `max_equal_pairs`.

    Raises:
      RecipeError: a row is malformed, or too many pairs are equal.
    """
    fitter = Fitter(max_tokens, tokenizer.bos_token_id)
    whole = [list(part) for part in pairs]
    train, heldout = ([fitter.pair(pair) for pair in part] for part in whole)
    before, after = [*whole[0], *whole[1]], [*train, *heldout]
    equal = sum(map(equal_sides, after))
    if equal > max_equal * len(after):
        raise RecipeError(
            _too_many_equal(before, after, max_tokens=max_tokens, allowed=max_equal, stage=stage)
        )
    lost = [fitter.lost(pair) for pair in before]
    counts = {
        "are the same on both sides: ties, from which nothing is learned": equal,
        "have an empty answer": sum(_empty(pair, tokenizer) for pair in before),
        "have prompts that differ": sum(map(_unequal_prompts, before)),
        f"lose the beginning of their prompt, so that both answers fit into max_tokens "
        f"({max_tokens})": sum(prompt for prompt, _ in lost),
        f"lose the end of an answer longer than max_tokens ({max_tokens})": sum(e for _, e in lost),
    }
    notes = (f"{count} of {len(after)} pairs {what}" for what, count in counts.items() if count)
    return Prepared(train, heldout, tuple(notes))


def equal_sides(pair: Pair) -> bool:
    """Whether chosen and rejected are the same tokens: then no score can tell them apart."""
    return pair[0].ids == pair[1].ids


def _too_many_equal(
    before: Sequence[Pair], after: Sequence[Pair], *, max_tokens: int, allowed: float, stage: str
) -> str:
    equal = sum(map(equal_sides, after))
    in_data = sum(map(equal_sides, before))
    longest = max(len(side.ids) for pair in before for side in pair)
    cause = f"{in_data} are so in the data"
    remedy = "Correct the data, or"
    if equal > in_data:
        cause += f", {equal - in_data} since max_tokens ({max_tokens}) cuts off where they differ"
        remedy = f"Raise `{stage}.max_tokens` (the longest text has {longest}), or"
    share = math.ceil(100 * equal / len(after)) / 100
    return (
        f"{equal} of {len(after)} pairs have the same tokens as chosen and as rejected, so that "
        f"nothing is learned from them: {cause}. max_equal_pairs allows a share of {allowed:g}. "
        f"{remedy} set `{stage}.max_equal_pairs: {share:g}`"
    )


def _empty(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> bool:
    answers = [side.ids[side.context_tokens :] for side in pair]
    return any(
        len(ids) <= 3 and not str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
        for ids in answers
    )


def _unequal_prompts(pair: Pair) -> bool:
    one, other = (side.ids[: side.context_tokens] for side in pair)
    return one != other

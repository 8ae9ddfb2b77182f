"""Examples that are too long: what is cut so that the answers stay."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlframe.types import TokenExample

Pair = tuple[TokenExample, TokenExample]
"""(chosen, rejected)."""


@dataclass(frozen=True)
class Fitter:
    """Cuts examples to a number of tokens: prompts at their beginning, answers at their end.

    A BOS at the very beginning stays, since models expect one there.
    """

    tokens: int
    """Most tokens of an example."""
    bos: int | None
    """The tokenizer's BOS, if it has one."""

    def example(self, example: TokenExample) -> TokenExample:
        """One example to learn from.

        The first answer keeps all of its tokens, or half of `tokens` where it has more and the prompt
        needs the rest; then the end of everything is cut.
        """
        if len(example.ids) <= self.tokens:
            return example
        start, end = example.spans[0]
        room = max(self.tokens - (end - start), self.tokens // 2)
        shorter = self._shorter_prompt(example, start, room).cut(self.tokens)
        # What follows the last answer that is left teaches nothing.
        return shorter if shorter.learned is None else shorter.cut(shorter.spans[-1][1])

    def pair(self, pair: Pair) -> Pair:
        """Two answers to compare: of both prompts as much is left as the longer answer has room for.

        Where a pair has no prompt, the tokens that both texts begin with take its place.
        """
        if max(len(side.ids) for side in pair) <= self.tokens:
            return pair
        contexts, room = self._contexts(pair)
        chosen, rejected = (
            self._shorter_prompt(side, n, room).cut(self.tokens)
            for side, n in zip(pair, contexts, strict=True)
        )
        return chosen, rejected

    def lost(self, pair: Pair) -> tuple[bool, bool]:
        """Whether a pair loses the beginning of a prompt, and whether the end of an answer."""
        if max(len(side.ids) for side in pair) <= self.tokens:
            return False, False
        contexts, room = self._contexts(pair)
        answers = (len(side.ids) - n for side, n in zip(pair, contexts, strict=True))
        return max(contexts) > room, max(answers) > self.tokens

    def _contexts(self, pair: Pair) -> tuple[list[int], int]:
        """Tokens of both prompts, and how many of each there is room for."""
        contexts = [side.context_tokens or shared_tokens(pair) for side in pair]
        answers = (len(side.ids) - n for side, n in zip(pair, contexts, strict=True))
        return contexts, max(self.tokens - max(answers), 0)

    def _shorter_prompt(self, example: TokenExample, context: int, room: int) -> TokenExample:
        """With the last of its first `context` tokens, so many as there is room for."""
        gone = context - room
        if gone <= 0:
            return example
        front = example.ids[:1] if room and example.ids[0] == self.bos else ()
        spans = tuple((start - gone, end - gone) for start, end in example.spans)
        return replace(
            example,
            ids=(*front, *example.ids[len(front) + gone :]),
            context_tokens=max(example.context_tokens - gone, 0),
            learned=None if example.learned is None else spans,
        )


def shared_tokens(pair: Pair) -> int:
    """Tokens that both sides begin with."""
    both = zip(*(side.ids for side in pair), strict=False)
    shortest = min(len(side.ids) for side in pair)
    return next((n for n, (one, other) in enumerate(both) if one != other), shortest)

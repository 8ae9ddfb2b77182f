"""Auxiliary losses with a stream that each break one promise, beside the check that must notice."""

import random
from dataclasses import replace

from rlframe.api import AuxiliaryLoss, LossTerm, PluginConfig
from tests.testing.expected import CHANCE, GLOBAL, REFUSED, Planted


class Stream:
    """Right: the examples of a list, one after the other, and again from the start."""

    def __init__(self, examples):
        self.given = examples
        self.cursor = 0

    def __iter__(self):
        while self.cursor < len(self.given):
            self.cursor += 1
            yield self.given[self.cursor - 1]
        self.cursor = 0

    def state_dict(self):
        return {"cursor": self.cursor}

    def load_state_dict(self, state):
        self.cursor = state["cursor"]


class Streams(AuxiliaryLoss[PluginConfig]):
    """Right: next-token loss on a stream."""

    coefficient = 0.5
    examples_per_step = 2
    Source = Stream

    def examples(self):
        rows = self.context.training_rows("reviews")
        return self.Source([self.context.tokenize(row) for row in rows])

    def loss(self, policy, batch):
        logprobs = policy.logprobs(batch.tokens, batch.mask)
        return LossTerm(total=-logprobs[batch.mask].sum(), count=batch.mask.sum())


class StreamsInAnotherOrderEachPass(Streams):
    """Right: the order is a function of what the state holds."""

    class Source(Stream):
        turn = 0

        def __iter__(self):
            order = random.Random(self.turn).sample(self.given, len(self.given))
            while self.cursor < len(order):
                self.cursor += 1
                yield order[self.cursor - 1]
            self.cursor, self.turn = 0, self.turn + 1

        def state_dict(self):
            return {"cursor": self.cursor, "turn": self.turn}

        def load_state_dict(self, state):
            self.cursor, self.turn = state["cursor"], state["turn"]


class ForgetsItsCursor(Streams):
    class Source(Stream):
        def load_state_dict(self, state):
            """There is nothing to do."""


class SavesNoCursor(Streams):
    class Source(Stream):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            self.cursor = 0


class MovesItsCursorLate(Streams):
    class Source(Stream):
        def __iter__(self):
            while self.cursor < len(self.given):
                yield self.given[self.cursor]
                self.cursor += 1
            self.cursor = 0


class ReadsAhead(Streams):
    """The cursor counts what has been read into a buffer, which a checkpoint does not have."""

    class Source(Stream):
        def __iter__(self):
            while self.cursor < len(self.given):
                ready = self.given[self.cursor : self.cursor + 3]
                self.cursor += len(ready)
                yield from ready
            self.cursor = 0


class NeverPutBack(Streams):
    class Source(Stream):
        def __iter__(self):
            while self.cursor < len(self.given):
                self.cursor += 1
                yield self.given[self.cursor - 1]


class ForgetsTheOrderOfItsPass(StreamsInAnotherOrderEachPass):
    class Source(StreamsInAnotherOrderEachPass.Source):
        def load_state_dict(self, state):
            self.cursor = state["cursor"]


class KeepsATuple(Streams):
    class Source(Stream):
        def state_dict(self):
            return {**super().state_dict(), "random": random.Random(0).getstate()}


class StreamsContext(Streams):
    class Source(Stream):
        def __iter__(self):
            for example in super().__iter__():
                yield replace(example, context_tokens=len(example.ids))


class StreamsRows(Streams):
    def examples(self):
        return self.Source(list(self.context.training_rows("reviews")))


class StreamsNothing(Streams):
    def examples(self):
        return self.Source([])


class StreamsByTheClock(Streams):
    class Source(Stream):
        def __init__(self, examples):
            super().__init__(random.Random().sample(examples, len(examples)))


class StreamsAtRandom(Streams):
    class Source(Stream):
        def __iter__(self):
            for example in super().__iter__():
                random.random()
                yield example


RIGHT = (Streams, StreamsInAnotherOrderEachPass)

PLANTED = [
    Planted(ForgetsItsCursor, "cursor_resumes", REFUSED),
    Planted(SavesNoCursor, "cursor_resumes", REFUSED),
    Planted(MovesItsCursorLate, "cursor_resumes", REFUSED),
    Planted(ReadsAhead, "cursor_resumes", REFUSED),
    Planted(NeverPutBack, "cursor_resumes", REFUSED),
    Planted(ForgetsTheOrderOfItsPass, "cursor_resumes", REFUSED),
    Planted(KeepsATuple, "cursor_resumes", REFUSED),
    Planted(StreamsContext, "examples_can_be_learned_from", REFUSED),
    Planted(StreamsRows, "examples_can_be_learned_from", REFUSED),
    Planted(StreamsNothing, "examples_can_be_learned_from", REFUSED),
    Planted(StreamsByTheClock, "examples_can_be_learned_from", CHANCE),
    Planted(StreamsAtRandom, "global_rng_untouched", GLOBAL),
]

"""Responses change ranks: nothing is lost or torn apart, and every rank has about as much."""

from __future__ import annotations

import random
from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlframe.engine.rebalancing import Rebalancer, fair
from rlframe.engine.scoring import Scores
from rlframe.rollout.packing import pack
from rlframe.types import Prompt, Rollout, StopReason

CPU = torch.device("cpu")


@given(st.dictionaries(st.integers(0, 99), st.integers(1, 50), min_size=8), st.integers(1, 8))
def test_every_thing_is_in_one_share_and_none_is_empty_or_much_too_large(sizes, count):
    shares = fair(sizes, count)
    assert sorted(thing for part in shares for thing in part) == sorted(sizes)
    loads = [sum(sizes[thing] for thing in part) for part in shares]
    assert min(loads) > 0
    # The last thing that a share took went to the smallest one: they differ by one thing at most.
    assert max(loads) - min(loads) <= max(sizes.values())


def test_fair_by_hand():
    # 7 -> A, 6 -> B, 5 -> B (11), 4 -> A (11), 3 -> A (14), 1 -> B (12)
    assert fair({0: 5, 1: 7, 2: 1, 3: 6, 4: 3, 5: 4}, 2) == [[1, 5, 4], [3, 0, 2]]


def judged(samples, *, group_of=lambda sample: sample):
    """A rank's rollout: everything about a response can be told from its number."""
    numbers = [random.Random(s) for s in samples]
    prompts = [Prompt(f"p{s}", tuple(range(1, 2 + s % 3)), {"s": s}) for s in samples]
    ids = [[s] * r.randint(1, 40) for s, r in zip(samples, numbers, strict=True)]
    rollout = Rollout(
        sequences=pack([p.ids for p in prompts], ids, device=CPU),
        prompts=tuple(prompts),
        texts=tuple(f"r{s}" for s in samples),
        stop_reasons=tuple(StopReason.EOS if s % 2 else StopReason.LENGTH for s in samples),
        group_ids=tuple(group_of(s) for s in samples),
        samples=tuple(samples),
        update=3,
        logprobs=tuple(
            tuple(-s / (1 + k) for k in range(len(row)))
            for s, row in zip(samples, ids, strict=True)
        ),
    )
    rewards = torch.zeros(len(samples), max(map(len, ids)), dtype=torch.float64)
    for row, tokens in enumerate(ids):
        rewards[row, len(tokens) - 1] = samples[row] / 3  # no number that is exact in binary
    scores = rewards.sum(-1)
    valid = torch.tensor([sample % 3 != 0 for sample in samples])
    return rollout, Scores(
        rewards, valid, scores * 3, {"a": scores}, {"a": scores * 2}, {"a/running_mean": 0.5}
    )


def shared(parts):
    """What each of several ranks, here threads, has in the end."""
    barrier, box, found = Barrier(len(parts)), {}, {}

    def rank(number):
        def gather(value):
            box[number] = value
            barrier.wait()
            return [box[k] for k in range(len(parts))]

        found[number] = Rebalancer(gather, number, len(parts)).rebalance(*parts[number])

    threads = [Thread(target=rank, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(parts))]


def lengths(rollout):
    return rollout.sequences.lengths.tolist()


def test_every_response_arrives_whole_with_what_was_said_of_it():
    before = [judged(range(rank, 30, 3)) for rank in range(3)]
    expected, everything = judged(range(30))
    ids = dict(zip(expected.samples, expected.response_ids(), strict=True))
    arrived = []
    for rollout, scores in shared(before):
        assert list(rollout.samples) == sorted(rollout.samples)
        assert rollout.update == 3
        assert scores.metrics == everything.metrics
        width = int(rollout.sequences.response_lengths.max())
        assert scores.rewards.shape == (len(rollout), width)
        for row, sample in enumerate(rollout.samples):
            arrived.append(sample)
            assert rollout.prompts[row] == expected.prompts[sample]
            assert rollout.texts[row] == f"r{sample}"
            assert rollout.stop_reasons[row] == expected.stop_reasons[sample]
            assert rollout.response_ids()[row] == ids[sample]
            assert rollout.logprobs[row] == expected.logprobs[sample]
            length = len(ids[sample])
            assert scores.rewards[row, length - 1] == everything.mix[sample]
            assert scores.rewards[row].count_nonzero() == (sample > 0)
            assert scores.untransformed[row] == everything.untransformed[sample]
            assert scores.raw["a"][row] == everything.raw["a"][sample]
            assert scores.weighted["a"][row] == everything.weighted["a"][sample]
    assert sorted(arrived) == list(range(30))


def test_ranks_end_with_about_the_same_number_of_tokens():
    long = [s for s in range(200) if random.Random(s).randint(1, 40) > 20]
    short = [s for s in range(200) if s not in long]
    parts = [judged(long), judged(short)]
    assert sum(lengths(parts[0][0])) > 2 * sum(lengths(parts[1][0]))
    one, two = (sum(lengths(rollout)) for rollout, _ in shared(parts))
    assert one == pytest.approx(two, abs=2)


def test_groups_stay_together():
    def group_of(sample):
        return sample // 4

    found = shared([judged(range(16), group_of=group_of), judged(range(16, 40), group_of=group_of)])
    groups = [set(rollout.group_ids) for rollout, _ in found]
    assert groups[0].isdisjoint(groups[1])
    assert groups[0] | groups[1] == set(range(10))

"""Scored responses change ranks, so that every rank has as much to learn from.

Lengths are known only once responses are written, and a rank that drew short ones would wait for the
others in every optimiser step. What changes hands are token ids and scores: little against the passes
over them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from rlframe.engine.scoring import Scores
from rlframe.rollout.packing import pack
from rlframe.types import Prompt, Rollout, StopReason


@dataclass(frozen=True)
class _Response:
    """One scored response; no tensors, which would arrive on the device that they came from."""

    sample: int
    group: int
    prompt: Prompt
    ids: list[int]
    text: str
    reason: StopReason
    logprobs: tuple[float, ...] | None
    rewards: list[float]
    valid: bool
    untransformed: float
    raw: dict[str, float]
    weighted: dict[str, float]


Gather = Callable[[list[_Response]], list[list[_Response]]]
"""Every rank's value, on every rank."""


@dataclass(frozen=True)
class Rebalancer:
    """Gives every rank about as many tokens to learn from.

    Args:
      gather: every rank's value, on every rank.
      rank: of this process.
      world_size: how many there are.
    """

    gather: Gather
    rank: int
    world_size: int

    def rebalance(self, rollout: Rollout, scores: Scores) -> tuple[Rollout, Scores]:
        """The rank's new shard of all responses, in the order of their global numbers; groups stay
        whole. Collective: call on all ranks.

        Args:
          rollout: the rank's responses as sampled.
          scores: of them.
        """
        if self.world_size == 1:
            return rollout, scores
        shards = self.gather(_responses(rollout, scores))
        everything = sorted((r for part in shards for r in part), key=lambda one: one.sample)
        tokens = Counter[int]()
        for response in everything:
            tokens[response.group] += len(response.prompt.ids) + len(response.ids)
        groups = set(fair(tokens, len(shards))[self.rank])
        mine = [response for response in everything if response.group in groups]
        return _as_rollout(mine, rollout), _as_scores(mine, scores)


def fair(sizes: Mapping[int, int], count: int) -> list[list[int]]:
    """Divide things so that the largest shard is nearly as small as it can be.

    The largest thing left goes to the shard that is smallest so far: at most 4/3 of the best division
    (Graham 1969, https://doi.org/10.1137/0117039).

    Args:
      sizes: thing -> size, above 0.
      count: shards; none is empty if there are as many things.
    """
    shards: list[list[int]] = [[] for _ in range(count)]
    smallest = [(0, number) for number in range(count)]
    for thing in sorted(sizes, key=lambda thing: (-sizes[thing], thing)):
        size, number = smallest[0]
        shards[number].append(thing)
        heapq.heapreplace(smallest, (size + sizes[thing], number))
    return shards


def _responses(rollout: Rollout, scores: Scores) -> list[_Response]:
    ids, rewards = rollout.response_ids(), scores.rewards.tolist()
    valid = scores.valid.tolist()
    plain = scores.untransformed.tolist()
    raw = {name: values.tolist() for name, values in scores.raw.items()}
    weighted = {name: values.tolist() for name, values in scores.weighted.items()}
    return [
        _Response(
            sample=rollout.samples[row],
            group=rollout.group_ids[row],
            prompt=rollout.prompts[row],
            ids=ids[row],
            text=rollout.texts[row],
            reason=rollout.stop_reasons[row],
            logprobs=None if rollout.logprobs is None else rollout.logprobs[row],
            rewards=rewards[row][: len(ids[row])],
            valid=valid[row],
            untransformed=plain[row],
            raw={name: values[row] for name, values in raw.items()},
            weighted={name: values[row] for name, values in weighted.items()},
        )
        for row in range(len(rollout))
    ]


def _as_rollout(responses: list[_Response], like: Rollout) -> Rollout:
    return Rollout(
        sequences=pack(
            [r.prompt.ids for r in responses],
            [r.ids for r in responses],
            device=like.sequences.tokens.device,
        ),
        prompts=tuple(r.prompt for r in responses),
        texts=tuple(r.text for r in responses),
        stop_reasons=tuple(r.reason for r in responses),
        group_ids=tuple(r.group for r in responses),
        samples=tuple(r.sample for r in responses),
        update=like.update,
        logprobs=(
            None if like.logprobs is None else tuple(r.logprobs for r in responses if r.logprobs)
        ),
        retried=like.retried,
    )


def _as_scores(responses: list[_Response], like: Scores) -> Scores:
    as_tensor = partial(torch.tensor, dtype=like.rewards.dtype, device=like.rewards.device)
    width = max(len(r.rewards) for r in responses)
    return Scores(
        rewards=as_tensor([r.rewards + [0.0] * (width - len(r.rewards)) for r in responses]),
        valid=torch.tensor([r.valid for r in responses], device=like.valid.device),
        untransformed=as_tensor([r.untransformed for r in responses]),
        raw={name: as_tensor([r.raw[name] for r in responses]) for name in like.raw},
        weighted={name: as_tensor([r.weighted[name] for r in responses]) for name in like.weighted},
        metrics=like.metrics,
        logged=like.logged,  # sums, which do not say of which response they are
    )

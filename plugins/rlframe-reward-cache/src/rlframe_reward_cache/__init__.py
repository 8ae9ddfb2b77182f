"""A hook plugin that remembers rewards: a response that was judged before is not judged again."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from rlframe.api import (
    Context,
    ContractError,
    HookPlugin,
    PluginConfig,
    RewardBatch,
    RewardName,
    RewardProvider,
    hookimpl,
    raw_scores,
)

Score = float | Sequence[float]


class RewardCacheConfig(PluginConfig):
    rewards: Annotated[tuple[RewardName, ...], Field(min_length=1)] = Field(
        description="names of rewards in the recipe, each of which judges a response by itself"
    )
    size: PositiveInt = Field(10_000, description="scores kept; the one longest unused goes first")


class RewardCache(HookPlugin[RewardCacheConfig]):
    """Asks the listed rewards only about responses that they have not judged.

    A judgement is known by the reward's class and config, the prompt with its columns, the response's
    tokens, why it ended and, for a reward that needs them, the sampler's log-probabilities. List no
    reward that looks at anything else: the other samples of the group, the update's number, random
    numbers, a state of its own.

    A pluggy wrapper yields once and cannot hand on a smaller batch, so this is an implementation of
    the hook that answers in the component's place. Wrappers of other plugins stay around it.
    """

    example: ClassVar[dict[str, Any]] = {"rewards": ["reward"]}
    """What `rlframe plugins check reward_cache` tries."""

    def __init__(self, config: RewardCacheConfig, context: Context) -> None:
        super().__init__(config, context)
        self.hits = self.misses = 0
        """Responses that no reward was asked about, and those that one was."""
        self._scores: OrderedDict[str, Score] = OrderedDict()

    @hookimpl
    def rlframe_score(
        self, provider: RewardProvider[Any], batch: RewardBatch
    ) -> list[Score | None] | None:
        if provider.name not in self.config.rewards:
            return None  # the component is called as if this plugin were not there
        keys = _keys(provider, batch)
        missing: dict[str, int] = {}
        for row, key in enumerate(keys):
            if key not in self._scores:
                missing.setdefault(key, row)  # equal responses are asked about once
        asked = batch.rows(list(missing.values()))
        fresh = dict(zip(missing, _ask(provider, asked), strict=True))
        found = [fresh[key] if key in fresh else self._scores[key] for key in keys]
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        for key, score in zip(keys, found, strict=True):
            self._remember(key, score)
        return found

    def _remember(self, key: str, score: Score | None) -> None:
        if _keeps(score):
            self._scores[key] = score
            self._scores.move_to_end(key)
        while len(self._scores) > self.config.size:
            self._scores.popitem(last=False)

    def state_dict(self) -> dict[str, Any]:
        """Counts and scores, the one longest unused first: a resumed run pays for nothing twice."""
        scores = [[key, score] for key, score in self._scores.items()]
        return {"hits": self.hits, "misses": self.misses, "scores": scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.hits, self.misses = state["hits"], state["misses"]
        self._scores = OrderedDict((key, score) for key, score in state["scores"])


def _keeps(score: Score | None) -> bool:
    """A reward that cannot judge may be able to later; NaN ends the run."""
    numbers = score if isinstance(score, list) else [score]
    return all(number is not None and math.isfinite(number) for number in numbers)


def _ask(provider: RewardProvider[Any], batch: RewardBatch) -> list[Score | None]:
    """The provider's own scores of the responses, as plain numbers: a state must be JSON."""
    if not len(batch):
        return []
    try:
        rows = raw_scores(provider.score(batch), batch.response_lengths)
    except ContractError as error:
        raise ContractError(f"the reward {provider.name!r} {error}", row=error.row) from error
    found: list[Score | None] = []
    for row in rows:
        found.append(row[0] if row is not None and len(row) == 1 else row)
    return found


def _keys(provider: RewardProvider[Any], batch: RewardBatch) -> list[str]:
    judge = [
        type(provider).__module__,
        type(provider).__qualname__,
        provider.config.model_dump(mode="json"),
    ]
    reads = provider.needs(provider.config).logprobs and batch.logprobs is not None
    return [
        _digest([judge, prompt.text, prompt.columns, list(ids), reason.value, logprobs])
        for prompt, ids, reason, logprobs in zip(
            batch.prompts,
            batch.response_ids,
            batch.stop_reasons,
            batch.logprobs if reads else [None] * len(batch),
            strict=True,
        )
    ]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=repr)
    return blake2b(text.encode(), digest_size=16).hexdigest()

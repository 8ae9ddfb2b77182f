"""The engine's side of reward transforms: statistics, contract, state, agreement between ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlframe.api.algorithm import RewardTransform
from rlframe.api.answers import ContractError
from rlframe.api.component import Instance
from rlframe.api.transform_contract import plain_metrics, plain_state, transformed
from rlframe.api.unchanged import Given
from rlframe.batches import ScoreBatch
from rlframe.distributed.runtime import Runtime
from rlframe.engine.asking import described
from rlframe.errors import RunError
from rlframe.functional.rewards import at_last_token
from rlframe.functional.running import statistics
from rlframe.registry.owners import component_errors
from rlframe.registry.relay import Relay
from rlframe.types import RewardBatch


class TransformChain:
    """The transforms of one reward, one after the other.

    Args:
      transforms: in their order, at least one.
      relay: they are called through it.
      runtime: the processes.
      updates: how many there will be.
    """

    def __init__(
        self,
        transforms: Sequence[Instance[RewardTransform[Any]]],
        relay: Relay,
        runtime: Runtime,
        updates: int,
    ) -> None:
        self._transforms, self._relay = transforms, relay
        self._runtime, self._updates = runtime, updates
        self.states = [self._initial(instance) for instance in transforms]
        """Of each transform, plain data."""

    def apply(self, values: Tensor, valid: Tensor, batch: RewardBatch) -> Tensor:
        """[B, T] the token rewards after all transforms. Collective: call on all ranks.

        Args:
          values: [B, T] float64, 0 in the padding and where the reward does not count.
          valid: [B] bool, whether the reward of a response counts; where not, it stays as it is.
          batch: what was scored.

        Raises:
          RunError: a transform raised, broke its contract, or differs between ranks.
        """
        lengths = torch.tensor(batch.response_lengths, device=values.device)
        groups = torch.tensor(list(batch.group_ids), device=values.device)
        for number, instance in enumerate(self._transforms):
            totals = values.sum(-1)
            scores = ScoreBatch(
                totals=totals,
                valid=valid,
                group_ids=groups,
                moments=statistics(totals[valid], self._runtime.sum),
                update=batch.update,
                updates=self._updates,
            )
            self.states[number], scale, shift = self._asked(
                instance, self.states[number], scores, batch
            )
            last = at_last_token(shift, lengths, width=values.shape[1])
            values = torch.where(valid[:, None], values * scale[:, None] + last, values)
        self._refuse_other_states()
        return values

    def metrics(self) -> dict[str, float]:
        """What the transforms tell of their states; of two that say the same, the later one."""
        found: dict[str, float] = {}
        for instance, state in zip(self._transforms, self.states, strict=True):
            with component_errors(f"reward transform {instance}", instance.component, "metrics"):
                answer = instance.component.metrics(state)
            try:
                found |= plain_metrics(answer)
            except ContractError as error:
                raise RunError(f"reward transform {instance} {error} (`metrics`)") from error
        return found

    def _initial(self, instance: Instance[RewardTransform[Any]]) -> dict[str, Any]:
        with component_errors(f"reward transform {instance}", instance.component, "initial"):
            state = instance.component.initial()
        try:
            return plain_state(state)
        except ContractError as error:
            raise RunError(f"reward transform {instance} {error} (`initial`)") from error

    def _asked(
        self,
        instance: Instance[RewardTransform[Any]],
        state: Mapping[str, Any],
        scores: ScoreBatch,
        batch: RewardBatch,
    ) -> tuple[dict[str, Any], Tensor, Tensor]:
        given = Given(state=state, scores=scores)
        with self._relay.named("reward transform", instance, "apply"):
            answer = self._relay.hook.rlframe_transform_reward(
                transform=instance.component, state=state, scores=scores
            )
        whose = f"reward transform {instance}{self._relay.around('rlframe_transform_reward')}"
        try:
            given.refuse_change()
            return transformed(answer, scores)
        except ContractError as error:
            raise RunError(f"{whose} {error}.\n{described(batch, error.row)}") from error

    def _refuse_other_states(self) -> None:
        """Else each rank would learn from another reward."""
        theirs = self._runtime.gather(json.dumps(self.states, sort_keys=True))
        other = [rank for rank, states in enumerate(theirs) if states != theirs[0]]
        if other:
            pairs = zip(json.loads(theirs[0]), json.loads(theirs[other[0]]), strict=True)
            number, (first, second) = next((k, p) for k, p in enumerate(pairs) if p[0] != p[1])
            raise RunError(
                f"reward transform {self._transforms[number]} differs between ranks: its state is "
                f"{second} on rank {other[0]} and {first} on rank 0. All of them saw the same "
                "`moments`, so it reads something else: the scores of its rank, random numbers, a "
                "clock, or what it keeps on `self`"
            )

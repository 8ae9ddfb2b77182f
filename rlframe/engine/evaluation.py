"""What policy, reference and critic say about a rollout before anything is learned from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlframe.distributed.runtime import Runtime, out_of_memory
from rlframe.distributed.training import Training
from rlframe.engine.batching import Schedule
from rlframe.engine.metrics import Clock
from rlframe.errors import RunError
from rlframe.functional import kl as kl_estimators
from rlframe.models.actor_critic import ActorCritic
from rlframe.models.policy import Policy, exact_kl
from rlframe.types import Sequences

Estimator = Literal["k1", "k2", "k3", "abs", "full"]


@dataclass(frozen=True)
class Evaluation:
    """All [B, T] over response tokens, 0 in the padding, without gradient."""

    logprobs: Tensor
    """log π when the tokens were sampled, nats."""
    reference: Tensor
    """log π_ref, nats."""
    values: Tensor
    """V before each token, in score units."""
    kl: Tensor
    """The estimate of KL that the penalty uses, nats per token."""


@dataclass(frozen=True)
class Models:
    """The policy and the critic in training, and the frozen reference.

    Args:
      trained: policy and critic.
      reference: the frozen policy.
      training: holds the trained models' weights, in parts where the strategy shards them.
      runtime: places frozen models and sets the precision.
      clock: times how long gathering takes.
      estimator: of the KL.
    """

    trained: ActorCritic
    reference: Policy
    training: Training
    runtime: Runtime
    clock: Clock
    estimator: Estimator

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Around everything that asks a model: whole weights on every rank, gathered once.

        Collective: call on all ranks. Inside, ranks may make different numbers of forward passes.
        """
        with ExitStack() as entered:
            with self.clock.phase("gather"):
                entered.enter_context(self.training.whole())
                entered.enter_context(self.runtime.resident())
            entered.enter_context(self.runtime.autocast())
            yield

    @torch.no_grad()
    def evaluate(self, batch: Sequences, schedule: Schedule) -> Evaluation:
        """Log-probabilities of both policies, values and KL, in the forward passes of the first epoch.

        The same rows in the same rectangles as in training: before the first update, every ratio
        is exactly 1 and the KL to an equal reference exactly 0, not merely close. A pass for which
        there is no memory is halved.

        Args:
          batch: this rank's responses.
          schedule: the optimiser steps that will be made of them.

        Raises:
          RunError: there is no memory for a single response.
        """
        shape = len(batch), int(batch.response_lengths.max())
        found: dict[str, Tensor] = {}
        passes = [rows for step in schedule.steps(0) for rows in step if rows]
        while passes:
            rows = passes.pop()
            index = torch.tensor(rows, device=batch.tokens.device)
            try:
                values = self._one_pass(batch.rows(index))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise RunError(
                        f"no memory was left to credit a single response: {error}. Make "
                        "ppo.logits_chunk smaller, or choose another runtime.strategy or "
                        "runtime.frozen: `rlframe plan RECIPE` says what fits"
                    ) from error
                passes += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
                continue
            for name, value in values.items():
                whole = found.setdefault(name, value.new_zeros(shape))
                whole[index, : value.shape[1]] = value
        return Evaluation(**found)

    def _one_pass(self, part: Sequences) -> dict[str, Tensor]:
        seen = self.trained.evaluate(part)
        reference, _ = self.reference.response_logprobs(part, self.reference.trunk(part))
        return {
            "logprobs": seen.logprobs,
            "reference": reference,
            "values": seen.values,
            "kl": self._kl(part, seen.logprobs, reference),
        }

    def _kl(self, batch: Sequences, logprobs: Tensor, reference: Tensor) -> Tensor:
        if self.estimator == "full":
            return exact_kl(self.trained.policy, self.reference, batch)
        return kl_estimators.ESTIMATORS[self.estimator](logprobs, reference)

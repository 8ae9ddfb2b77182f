"""What policy, reference and critic say about a rollout before anything is learned from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from rlframe.distributed.runtime import Runtime, out_of_memory
from rlframe.distributed.training import Training
from rlframe.engine.batching import Rows, Schedule
from rlframe.engine.metrics import Clock
from rlframe.errors import RunError
from rlframe.functional import kl as kl_estimators
from rlframe.models.actor_critic import ActorCritic, SharedCritic
from rlframe.models.policy import Policy, exact_kl
from rlframe.types import Rollout, Sequences, StopReason

Estimator = Literal["k1", "k2", "k3", "abs", "full"]

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """All [B, T] over response tokens, 0 in the padding, without gradient."""

    logprobs: Tensor
    """log π when the tokens were sampled, nats."""
    reference: Tensor
    """log π_ref, nats."""
    kl: Tensor
    """The estimate of KL that the penalty uses, nats per token."""
    values: Tensor | None = None
    """V before each token, in score units; None without a critic."""
    last_values: Tensor | None = None
    """[B] V after the last token of a response that was cut, 0 for one that ended; None if no
    estimator asks for it."""


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
      bootstrap: whether values after the last token of cut responses are asked for.
    """

    trained: ActorCritic
    reference: Policy
    training: Training
    runtime: Runtime
    clock: Clock
    estimator: Estimator
    bootstrap: bool = False

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
    def evaluate(self, rollout: Rollout, schedule: Schedule) -> Evaluation:
        """Log-probabilities of both policies, values and KL, in the forward passes of the first epoch.

        The same rows in the same rectangles as in training: before the first update, every ratio
        is exactly 1 and the KL to an equal reference exactly 0, not merely close.

        Args:
          rollout: this rank's responses.
          schedule: the optimiser steps that will be made of them.

        Raises:
          RunError: there is no memory for a single response.
        """
        batch = rollout.sequences
        shape = len(batch), int(batch.response_lengths.max())
        passes = [rows for step in schedule.steps(0) for rows in step if rows]
        found: dict[str, Tensor] = {}
        for rows, values in _in_passes(passes, lambda rows: self._one_pass(_part(batch, rows))):
            index = torch.tensor(rows, device=batch.tokens.device)
            for name, value in values.items():
                whole = found.setdefault(name, value.new_zeros(shape))
                whole[index, : value.shape[1]] = value
        last_values = self._last_values(rollout, passes, like=found) if self.bootstrap else None
        return Evaluation(**found, last_values=last_values)

    def _last_values(self, rollout: Rollout, passes: list[Rows], like: dict[str, Tensor]) -> Tensor:
        """[B] the critic's estimate after the last token, for responses that were cut."""
        batch, critic = rollout.sequences, self.trained.critic
        assert critic is not None
        cut = {k for k, why in enumerate(rollout.stop_reasons) if why is StopReason.LENGTH}

        def after(rows: Rows) -> Tensor:
            # One token more, which no model reads: values are estimates before a token.
            part = _part(batch, rows)
            tokens = torch.cat([part.tokens, part.tokens[:, :1]], 1)
            longer = Sequences(tokens, part.prompt_lengths, part.response_lengths + 1)
            shared = isinstance(critic, SharedCritic)
            hidden = self.trained.policy.trunk(longer) if shared else None
            values = critic.values(longer, hidden)
            return values.gather(1, part.response_lengths[:, None]).squeeze(1)

        found = like["values"].new_zeros(len(batch))
        kept = [[row for row in rows if row in cut] for rows in passes]
        for rows, values in _in_passes([rows for rows in kept if rows], after):
            found[torch.tensor(rows, device=found.device)] = values
        return found

    def _one_pass(self, part: Sequences) -> dict[str, Tensor]:
        seen = self.trained.evaluate(part)
        reference, _ = self.reference.response_logprobs(part, self.reference.trunk(part))
        found = {
            "logprobs": seen.logprobs,
            "reference": reference,
            "kl": self._kl(part, seen.logprobs, reference),
        }
        return found if seen.values is None else found | {"values": seen.values}

    def _kl(self, batch: Sequences, logprobs: Tensor, reference: Tensor) -> Tensor:
        if self.estimator == "full":
            return exact_kl(self.trained.policy, self.reference, batch)
        return kl_estimators.ESTIMATORS[self.estimator](logprobs, reference)


def _part(batch: Sequences, rows: Rows) -> Sequences:
    return batch.rows(torch.tensor(rows, device=batch.tokens.device))


def _in_passes(passes: list[Rows], work: Callable[[Rows], T]) -> Iterator[tuple[Rows, T]]:
    """What `work` makes of each forward pass. A pass for which there is no memory is halved.

    Raises:
      RunError: there is no memory for a single row.
    """
    left = list(passes)
    while left:
        rows = left.pop()
        try:
            found = work(rows)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if len(rows) == 1:
                raise RunError(
                    f"no memory was left to credit a single response: {error}. Make "
                    "ppo.logits_chunk smaller, or choose another runtime.strategy or "
                    "runtime.frozen: `rlframe plan RECIPE` says what fits"
                ) from error
            left += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
            continue
        yield rows, found

"""A few clipped epochs over one rollout: micro-batches in, optimiser steps out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlframe.distributed.runtime import Runtime
from rlframe.engine.batching import Rows, microbatches
from rlframe.engine.experience import Experience
from rlframe.engine.metrics import Meter
from rlframe.engine.objective import MicroBatch, Normaliser, Objective
from rlframe.engine.streams import Shuffled, in_parts, padded_tokens, token_batch
from rlframe.errors import RunError
from rlframe.hooks.component import AuxiliaryLoss, Instance
from rlframe.types import TokenBatch, TokenExample


@dataclass(frozen=True)
class LearningSettings:
    """Knobs of the optimisation; see the recipe's `ppo` section for units."""

    epochs: int
    microbatch_tokens: int
    max_grad_norm: float
    stop_approx_kl: float | None
    max_bad_steps: int


def learning_rate_factor(
    update: int, *, updates: int, warmup: int, decay: Literal["constant", "linear", "cosine"]
) -> float:
    """What the peak learning rate is multiplied with: a ramp, then a decay that ends just above 0.

    Args:
      update: from 0.
      updates: of the whole run.
      warmup: updates of the ramp; the first one already learns.
      decay: after the ramp.
    """
    if update < warmup:
        return (update + 1) / (warmup + 1)
    left = 1 - (update - warmup) / max(updates - warmup, 1)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[decay]


@dataclass(frozen=True)
class AuxiliaryData:
    """One auxiliary loss and the endless stream of its own examples, or None for the rollout's."""

    instance: Instance[AuxiliaryLoss[Any]]
    examples: Shuffled[TokenExample] | None


class Learner:
    """Owns the optimiser. State beyond it is two counters.

    Args:
      models: an `ActorCritic`, as the runtime wrapped it.
      optimizer: over its parameters; each group's "peak_lr" is scaled by `schedule`.
      schedule: update -> factor.
      objective: the loss of a micro-batch.
      auxiliary: the data of the objective's auxiliary losses.
      runtime: sums over ranks, backward.
      settings: epochs and limits.
    """

    def __init__(
        self,
        models: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        schedule: Callable[[int], float],
        objective: Objective,
        auxiliary: Sequence[AuxiliaryData],
        runtime: Runtime,
        settings: LearningSettings,
    ) -> None:
        self._models = models
        self._optimizer = optimizer
        self._schedule = schedule
        self._objective = objective
        self._auxiliary = auxiliary
        self._runtime = runtime
        self._settings = settings
        self._steps = 0
        self._bad_in_a_row = 0

    def __call__(self, experience: Experience, *, beta: float) -> tuple[Meter, dict[str, float]]:
        """Learn from one rollout.

        Args:
          experience: this rank's share.
          beta: weight of KL where it is a loss.

        Returns:
          (sums over all tokens and passes, figures of the update as a whole).

        Raises:
          RunError: several steps in a row had a loss or gradient that was not finite.
        """
        factor = self._schedule(experience.update)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        meter, norms, skipped, epochs = Meter(), [], 0, 0
        for epoch in range(self._settings.epochs):
            passed = Meter()
            for rows in experience.schedule.steps(epoch):
                norm = self._step(experience, rows, passed, beta)
                norms.append(norm)
                skipped += not math.isfinite(norm)
            meter.merge(passed)
            epochs += 1
            if self._moved_too_far(passed):
                break
        finite = [norm for norm in norms if math.isfinite(norm)]
        return meter, {
            "lr": self._optimizer.param_groups[0]["lr"],
            "train/grad_norm": sum(finite) / len(finite) if finite else math.nan,
            "train/skipped_steps": skipped,
            "train/epochs": epochs,
        }

    def _moved_too_far(self, passed: Meter) -> bool:
        limit = self._settings.stop_approx_kl
        return limit is not None and passed.means(self._runtime.sum)["policy/approxkl_avg"] > limit

    def _step(self, experience: Experience, rows: Rows, meter: Meter, beta: float) -> float:
        """One optimiser step; returns the gradient norm before clipping, not finite if skipped."""
        batches, over = self._divide(experience, rows)
        total = torch.zeros((), dtype=torch.float64)
        sums = Meter()
        for number, batch in enumerate(batches, 1):
            with self._runtime.accumulating(self._models, last=number == len(batches)):
                loss, part = self._models(self._objective, batch, over, beta)
                self._runtime.backward(loss)
            total += loss.detach().double().cpu()
            sums.merge(part)
        norm = self._clip()
        whole = float(self._runtime.sum(total))
        if math.isfinite(whole) and math.isfinite(norm):
            self._optimizer.step()
            self._bad_in_a_row = 0
            meter.merge(sums)
        else:
            self._skipped(experience.update, whole, float(norm))
            norm = torch.tensor(math.nan)
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        return float(norm)

    def _clip(self) -> Tensor:
        """Scale the gradient down to the limit if it is longer; returns its length before."""
        weights = [p for p in self._models.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        if (
            norm > self._settings.max_grad_norm
        ):  # else a pass over all gradients would change nothing
            nn.utils.clip_grads_with_norm_(weights, self._settings.max_grad_norm, norm)
        return norm

    def _skipped(self, update: int, loss: float, norm: float) -> None:
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= self._settings.max_bad_steps:
            raise RunError(
                f"update {update}: {self._bad_in_a_row} optimiser steps in a row were skipped because "
                f"they were not finite (loss {loss}, gradient norm {norm}). The weights are those "
                "before these steps. Usual causes: a learning rate that is too high, reward values of "
                "extreme size, a model in half precision. Raise `ppo.max_bad_steps` to wait longer"
            )

    def _divide(self, experience: Experience, rows: Rows) -> tuple[list[MicroBatch], Normaliser]:
        """Cut an optimiser step into forward passes, and count what its losses are divided by."""
        budget, device = self._settings.microbatch_tokens, experience.mask.device
        passes = microbatches(experience.sequences.lengths.tolist(), rows, budget=budget)
        examples = {d.instance.name: self._own_examples(d) for d in self._auxiliary if d.examples}
        # As many parts as the rollout has, or more if an auxiliary's own data needs them.
        number = max(len(passes), *(-(-padded_tokens(e) // budget) for e in examples.values()), 1)
        parts = {
            name: [token_batch(part, device=device) for part in in_parts(found, number)]
            for name, found in examples.items()
        }
        slices = [experience.rows(passed) for passed in passes]
        for data in self._auxiliary:
            if data.examples is None:
                parts[data.instance.name] = [_as_tokens(part) for part in slices]
        over = self._normaliser(slices, parts)
        return [
            MicroBatch(
                slices[k] if k < len(slices) else None,
                {name: found[k] for name, found in parts.items() if k < len(found)},
            )
            for k in range(max([len(slices), *map(len, parts.values())]))
        ], over

    def _own_examples(self, data: AuxiliaryData) -> list[TokenExample]:
        assert data.examples is not None
        per_step = data.instance.component.examples_per_step
        drawn = data.examples.take(self._steps * per_step, per_step)
        return drawn[self._runtime.rank :: self._runtime.world_size]

    def _normaliser(
        self, slices: list[Experience], parts: dict[str, list[TokenBatch]]
    ) -> Normaliser:
        counts: list[Tensor] = [sum((s.mask.sum() for s in slices), torch.zeros(()))]
        for data in self._auxiliary:
            found = [data.instance.component.count(p) for p in parts[data.instance.name]]
            counts.append(torch.stack([torch.as_tensor(x).double().cpu() for x in found]).sum())
        total, *auxiliary = self._runtime.sum(
            torch.stack([count.double().cpu() for count in counts])
        ).tolist()
        names = [data.instance.name for data in self._auxiliary]
        return Normaliser(total, dict(zip(names, auxiliary, strict=True)))


def _as_tokens(experience: Experience) -> TokenBatch:
    """The rollout itself as an auxiliary loss sees it: response tokens count."""
    batch = experience.sequences
    columns = torch.arange(1, batch.tokens.shape[1], device=batch.tokens.device)
    starts, ends = batch.prompt_lengths[:, None], batch.lengths[:, None]
    return TokenBatch(batch.tokens, (columns >= starts) & (columns < ends))

"""A few clipped epochs over one rollout: micro-batches in, optimiser steps out."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlframe.distributed.runtime import Runtime, out_of_memory
from rlframe.distributed.training import Training
from rlframe.engine.auxiliary import AuxiliaryData
from rlframe.engine.batching import Rows, microbatches, spread
from rlframe.engine.ema import EMA
from rlframe.engine.experience import Experience
from rlframe.engine.metrics import Meter
from rlframe.engine.objective import MicroBatch, Normaliser, Objective, count_of
from rlframe.engine.stream_reader import StreamReader
from rlframe.engine.streams import in_parts, no_tokens, padded_tokens, token_batch
from rlframe.errors import OutOfMemoryError, RunError
from rlframe.types import TokenBatch, TokenExample


@dataclass(frozen=True)
class UpdateSettings:
    """Hyperparameters of the optimisation; see the recipe's `ppo` section for units."""

    epochs: int
    microbatch_tokens: int
    stop_approx_kl: float | None
    max_bad_steps: int


def learning_rate_factor(
    update: int, *, updates: int, warmup: int, decay: Literal["constant", "linear", "cosine"]
) -> float:
    """What the peak learning rate is multiplied with: a ramp, then a decay that ends just above 0.

    Args:
      update: from 0, below `updates`.
      updates: of the whole run.
      warmup: updates of the ramp; the first one already learns.
      decay: after the ramp.
    """
    if update < warmup:
        return (update + 1) / (warmup + 1)
    left = 1 - (update - warmup) / (updates - warmup)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[decay]


class _NoMemoryError(Exception):
    """A rank ran out of memory where all of them can start again."""


class SkippedUpdateWarning(RuntimeWarning):
    """Every optimiser step of an update was skipped: nothing was learned from its rollout."""


class MemoryWarning(RuntimeWarning):
    """Memory ran out, and the run goes on in smaller passes."""


class PolicyUpdater:
    """Owns the optimiser. State beyond it is three counters, and the cursors of streams.

    Args:
      training: an `ActorCritic` and its optimiser under a strategy; each parameter group's "peak_lr" is
        scaled by `schedule`.
      schedule: update -> factor.
      objective: the loss of a micro-batch.
      auxiliary: the data of the objective's auxiliary losses.
      runtime: sums over ranks.
      settings: epochs and limits.
      ema: the moving average of the policy's weights, which each update adds to.
    """

    def __init__(
        self,
        training: Training,
        *,
        schedule: Callable[[int], float],
        objective: Objective,
        auxiliary: Sequence[AuxiliaryData],
        runtime: Runtime,
        settings: UpdateSettings,
        ema: EMA | None = None,
    ) -> None:
        self._training = training
        self._schedule = schedule
        self._objective = objective
        self._auxiliary = auxiliary
        self._runtime = runtime
        self._settings = settings
        self._ema = ema
        self._steps = 0
        self._bad_in_a_row = 0
        self._halvings = 0

    def state_dict(self) -> dict[str, Any]:
        """Optimiser steps, skipped ones in a row, halvings of the budget, and streams by loss."""
        return {
            "steps": self._steps,
            "bad_in_a_row": self._bad_in_a_row,
            "halvings": self._halvings,
            "streams": {name: reader.state_dict() for name, reader in self._streams().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave. A loss that had no stream then begins with its first."""
        self._steps, self._bad_in_a_row = state["steps"], state["bad_in_a_row"]
        self._halvings = state["halvings"]
        for name, reader in self._streams().items():
            if name in state.get("streams", {}):
                reader.load_state_dict(state["streams"][name])

    def _streams(self) -> dict[str, StreamReader]:
        return {
            data.instance.name: data.stream for data in self._auxiliary if data.stream is not None
        }

    @property
    def budget(self) -> int:
        """Padded tokens in a forward pass: the recipe's, halved each time that memory ran out."""
        return max(1, self._settings.microbatch_tokens >> self._halvings)

    def update_policy(
        self, experience: Experience, *, kl_coefficient: float
    ) -> tuple[Meter, dict[str, float]]:
        """A few epochs over one rollout.

        Args:
          experience: this rank's shard.
          kl_coefficient: weight of KL where it is a loss, score units per nat.

        Returns:
          (sums over all tokens and passes of the steps that were taken, metrics of the update as a
          whole). Where every step was skipped, the names are there, with nothing counted.

        Raises:
          RunError: several steps in a row had a loss or gradient that was not finite.
        """
        factor = self._schedule(experience.update)
        for group in self._training.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        meter, epochs = Meter(), 0
        norms: list[float | None] = []
        for epoch in range(self._settings.epochs):
            passed = Meter()
            for passes in experience.schedule.steps(epoch):
                norms.append(self._step_that_fits(experience, passes, passed, kl_coefficient))
            meter.merge(passed)
            epochs += 1
            if self._moved_too_far(passed):
                break
        finite = [norm for norm in norms if norm is not None and math.isfinite(norm)]
        empty = norms.count(None)
        if not finite:
            why = (
                "no response in it is valid: the rewards returned None"
                if empty == len(norms)
                else "they were not finite"
            )
            warnings.warn(
                f"update {experience.update}: all of its {len(norms)} optimiser steps were skipped "
                f"because {why}, so nothing was learned from this rollout. The weights "
                "are unchanged, and metrics of the losses are null",
                SkippedUpdateWarning,
                stacklevel=2,
            )
        return meter, {
            **self._averaged(),
            "lr": self._training.optimizer.param_groups[0]["lr"],
            "train/grad_norm": sum(finite) / len(finite) if finite else math.nan,
            "train/skipped_steps": len(norms) - empty - len(finite),
            "train/empty_steps": empty,
            "train/epochs": epochs,
            "train/microbatch_tokens": self.budget,
        }

    def _averaged(self) -> dict[str, float]:
        """Add to the moving average; how long it took."""
        if self._ema is None:
            return {}
        start = time.perf_counter()
        self._ema.update()
        return {"time/ema_seconds": time.perf_counter() - start}

    def _moved_too_far(self, passed: Meter) -> bool:
        """Whether the epoch ends the update. NaN, where no step was taken, does not."""
        limit = self._settings.stop_approx_kl
        return limit is not None and passed.means(self._runtime.sum)["policy/approxkl_avg"] > limit

    def _step_that_fits(
        self, experience: Experience, passes: list[Rows], meter: Meter, kl_coefficient: float
    ) -> float | None:
        """One optimiser step, in smaller passes if memory runs out."""
        lengths = experience.sequences.lengths.tolist()
        rows = [row for some in passes for row in some]
        while True:
            if self._halvings:  # the schedule may be older than the last one
                passes = microbatches(lengths, rows, budget=self.budget)
                most = self._runtime.max(torch.tensor(len(passes)))
                passes = spread(passes, int(most))
            try:
                return self._step(experience, passes, meter, kl_coefficient)
            except Exception as error:
                if not (out_of_memory(error) or isinstance(error, _NoMemoryError)):
                    raise
                problem = (
                    f"update {experience.update}: no memory was left in a pass of up to "
                    f"{self.budget} padded tokens"
                )
                if not self._can_halve(error, longest=max(lengths)):
                    remedy = None
                    if self.budget // 2 >= max(lengths):  # else passes would not become smaller
                        # Halvings so far come back with the checkpoint, and halve this once more.
                        remedy = f"ppo.microbatch_tokens={self._settings.microbatch_tokens // 2}"
                    raise OutOfMemoryError(
                        f"{problem}: {error}. Resume from the last checkpoint with less: `rlframe "
                        f"resume RUN {remedy or 'ppo.logits_chunk=...'}`, or with a strategy that "
                        "shards more: `rlframe plan RECIPE` says what fits",
                        remedy=remedy,
                    ) from error
            self._halvings += 1  # outside of `except`: the traceback holds what took the memory
            self._training.discard()
            warnings.warn(f"{problem}: it is halved to {self.budget}", MemoryWarning, stacklevel=2)

    def _can_halve(self, error: Exception, *, longest: int) -> bool:
        """Whether every rank is here, and the longest response of all of them would still fit."""
        together = isinstance(error, _NoMemoryError) or self._runtime.world_size == 1
        if not (together and self._training.can_begin_again):
            return False
        return self.budget // 2 >= int(self._runtime.max(torch.tensor(longest)))

    def _step(
        self, experience: Experience, passes: list[Rows], meter: Meter, kl_coefficient: float
    ) -> float | None:
        """One optimiser step; returns the gradient norm before clipping, not finite if skipped.

        A step in which nothing counts on any rank is not taken, and returns None.
        """
        batches, over = self._divide(experience, passes)
        total, sums = torch.zeros((), dtype=torch.float64), Meter()
        with self._all_or_none():
            for number, batch in enumerate(batches, 1):
                last = number == len(batches)
                with self._training.accumulating(last=last):
                    loss, part = self._training(self._objective, batch, over, kl_coefficient)
                    total += loss.detach().double().cpu()
                    sums.merge(part)
                    if last and not total.isfinite():
                        # No gradient may be finite then, whatever autograd makes of it.
                        loss = loss * math.nan
                    self._training.backward(loss)
        norm = self._training.step()
        if over.nothing:
            meter.merge(sums.emptied())
        elif math.isfinite(norm):
            self._bad_in_a_row = 0
            meter.merge(sums)
        else:
            meter.merge(sums.emptied())
            self._skipped(experience.update, float(self._runtime.sum(total)), norm, sums)
        self._steps += 1
        return None if over.nothing else norm

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """If one rank runs out of memory in here, all raise `_NoMemoryError`, and can start again."""
        if not self._training.can_begin_again:
            yield
            return
        lack = None
        try:
            yield
        except Exception as error:
            if not out_of_memory(error):
                raise
            lack = error
        if int(self._runtime.max(torch.tensor(int(lack is not None)))):
            raise _NoMemoryError(
                "another process has none" if lack is None else str(lack)
            ) from lack

    def _skipped(self, update: int, loss: float, norm: float, sums: Meter) -> None:
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= self._settings.max_bad_steps:
            raise RunError(
                f"update {update}: {self._bad_in_a_row} optimiser steps in a row were skipped because "
                f"they were not finite (loss {loss}, gradient norm {norm}{sums.not_finite()}). The "
                "weights are those before these steps. Usual causes: a learning rate that is too "
                "high, reward values of extreme size, a model in half precision. Raise "
                "`ppo.max_bad_steps` to wait longer"
            )

    def _divide(
        self, experience: Experience, passes: list[Rows]
    ) -> tuple[list[MicroBatch], Normaliser]:
        """Cut an optimiser step into forward passes, and count what its losses are divided by.

        Every rank makes the same passes in the same order, whatever its share: engines that gather
        weights wait for each other in every one of them.
        """
        slices = [experience.rows(rows) if rows else experience.dummy() for rows in passes]
        parts = self._own_parts(len(slices), experience.mask.device)
        for data in self._auxiliary:
            if data.examples is None:
                parts[data.instance.name] = [_as_tokens(part) for part in slices]
        over = self._normaliser(slices, parts)
        # The rollout's passes give every weight a gradient. They come last, as the last pass exchanges
        # gradients. An empty one comes first: where a weight has its first gradient of a step in a
        # later pass, ZeRO adds it to that of the step before (stage 3, and the others offloaded).
        ahead = max(0, *map(len, parts.values()), len(slices)) - len(slices)
        front = [experience.dummy(), *[None] * (ahead - 1)] if ahead else []
        return [
            MicroBatch(part, {name: found[k] for name, found in parts.items() if k < len(found)})
            for k, part in enumerate([*front, *slices])
        ], over

    def _own_parts(self, passes: int, device: torch.device) -> dict[str, list[TokenBatch]]:
        """The rank's shard of each auxiliary loss's own data, in as many parts as on every other."""
        rank, ranks = self._runtime.rank, self._runtime.world_size
        shards: dict[str, list[list[TokenExample]]] = {}
        for data in self._auxiliary:
            if data.examples is not None:
                drawn = data.of_step(self._steps, self._runtime.agree)
                shards[data.instance.name] = [drawn[r::ranks] for r in range(ranks)]
        # As many parts as the rollout has, or more if one of them needs it on any rank.
        widest = [padded_tokens(shard) for found in shards.values() for shard in found]
        number = max([passes, *(-(-width // self.budget) for width in widest)])
        found = {}
        for name, (first, *_) in shards.items():
            parts = in_parts(shards[name][rank], number, of=len(first))
            missing = len(in_parts(first, number, of=len(first))) - len(parts)
            found[name] = [token_batch(part, device=device) for part in parts]
            found[name] += [no_tokens(device)] * missing
        return found

    def _normaliser(
        self, slices: list[Experience], parts: dict[str, list[TokenBatch]]
    ) -> Normaliser:
        none = torch.zeros(())
        counts: list[Tensor] = [
            sum((s.mask.sum() for s in slices), none),
            sum((self._objective.count(s.mask) for s in slices), none),
        ]
        for data in self._auxiliary:
            found = [count_of(data.instance, p) for p in parts[data.instance.name]]
            counts.append(torch.tensor(sum(found), dtype=torch.float64))
        tokens, policy, *auxiliary = self._runtime.sum(
            torch.stack([count.double().cpu() for count in counts])
        ).tolist()
        names = [data.instance.name for data in self._auxiliary]
        return Normaliser(tokens, policy, dict(zip(names, auxiliary, strict=True)))


def _as_tokens(experience: Experience) -> TokenBatch:
    """The rollout itself as an auxiliary loss sees it: response tokens count."""
    batch = experience.sequences
    columns = torch.arange(1, batch.tokens.shape[1], device=batch.tokens.device)
    starts, ends = batch.prompt_lengths[:, None], batch.lengths[:, None]
    counts = experience.mask.any(
        -1, keepdim=True
    )  # not if the response is only there to be counted 0
    return TokenBatch(batch.tokens, (columns >= starts) & (columns < ends) & counts)

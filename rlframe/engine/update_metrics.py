"""Metrics of a PPO update under the names that users know; definitions are in docs/metrics.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlframe.engine.experience import Experience, padded_rows
from rlframe.engine.metrics import Clock, Meter
from rlframe.engine.scoring import Scores
from rlframe.functional.masked import Moments, explained_variance, moments, row_sums
from rlframe.types import KLMeasurement, KLState, Rollout, StopReason

Reduce = Callable[[Tensor], Tensor]

_CHANGED = 1e-3
"""A weight that differs from its ratio by more than this share was bounded; less is rounding."""

_WORK = ("rollout", "reward", "experience", "learn")
"""Phases that work on tokens."""


@dataclass(frozen=True)
class Update:
    """Everything that one update produced."""

    number: int
    """From 0."""
    rollout: Rollout
    scores: Scores
    experience: Experience
    meter: Meter
    """Sums over the tokens of the optimiser steps that were taken."""
    metrics: dict[str, float]
    """Metrics of the optimisation as a whole."""
    measured: KLMeasurement
    kl: KLState
    """The state whose coefficient this update used."""
    next_kl: KLState


def update_metrics(
    update: Update, clock: Clock, *, penalty: bool, episodes: int, reduce: Reduce
) -> dict[str, float]:
    """Every metric of one update, over all ranks.

    Args:
      update: what the update produced.
      clock: its phases; restarted here.
      penalty: whether KL was subtracted from the rewards.
      episodes: responses on all ranks since the start of the run, this update included.
      reduce: sums a tensor over ranks.
    """
    seconds = clock.restart()
    meter = Meter()
    _scores(meter, update)
    _responses(meter, update, penalty=penalty)
    _sampler(meter, update)
    meter.merge(update.meter)
    found = meter.means(reduce)
    shift = found["val/ratio"] - 1
    # Rounding may leave less than 0. NaN, where no optimiser step was taken, stays: min and max keep
    # or lose it by the order of their arguments.
    variance = found.pop("ratio_square") - shift**2
    found["val/ratio_var"] = 0.0 if variance < 0 else variance
    found["objective/rlhf_reward"] = found["objective/mix"] + found["objective/non_score_reward"]
    deviations = _deviations(update, reduce)
    transforms = {f"reward/{key}": value for key, value in update.scores.metrics.items()}
    sampled = update.experience.sampled.sum().double().cpu()
    ended = sum(reason is StopReason.EOS for reason in update.rollout.stop_reasons)
    tokens, eos = reduce(torch.stack([sampled, torch.tensor(float(ended))])).tolist()
    responses = update.measured.responses
    return {
        "episode": episodes,
        "eps": responses / sum(seconds.values()),
        **dict(sorted((found | deviations | transforms).items())),
        **_explained(update, reduce),
        "kl/coefficient": update.kl.coefficient,
        "kl/nats_per_response": update.measured.nats_per_response,
        "kl/nats_per_token": update.measured.nats_per_token,
        "val/num_eos_tokens": eos,
        **update.metrics,
        **{f"time/{name}_seconds": value for name, value in seconds.items()},
        **{
            f"speed/{name}_tokens_per_second": tokens / value
            for name, value in seconds.items()
            if value > 0 and name in _WORK
        },
    }


def _scores(meter: Meter, update: Update) -> None:
    scores, valid = update.scores, update.experience.valid
    meter.tokens("objective/scores", scores.untransformed, valid)
    meter.tokens("objective/mix", scores.mix, valid)
    meter.add("response/valid_share", valid.sum(), len(valid))
    for name, raw in scores.raw.items():
        judged = ~raw.isnan()
        meter.tokens(f"reward/{name}/raw", raw, judged)
        meter.tokens(f"reward/{name}/weighted", scores.weighted[name], valid)
        meter.add(f"reward/{name}/judged_share", judged.sum(), len(judged))
    for name, (total, number) in scores.logged.items():
        meter.add(f"reward/{name}", total, number)


def _responses(meter: Meter, update: Update, *, penalty: bool) -> None:
    exp, count, sampled = update.experience, len(update.rollout), update.experience.sampled
    kl = row_sums(exp.kl, sampled)
    meter.add("objective/kl", kl.sum(), count)
    meter.add("objective/entropy", row_sums(-exp.logprobs, sampled).sum(), count)
    kl_coefficient = update.kl.coefficient if penalty else 0.0
    meter.tokens("objective/non_score_reward", -kl_coefficient * kl, exp.valid)
    meter.add("response/length_mean", sampled.sum(), count)
    cut = sum(reason is StopReason.LENGTH for reason in update.rollout.stop_reasons)
    meter.add("response/truncated_share", cut, count)


def _sampler(meter: Meter, update: Update) -> None:
    """How far the distribution that was sampled is from the policy, as far as the sampler says."""
    exp, rollout = update.experience, update.rollout
    if rollout.retried is not None:
        meter.add("sampler/retried_share", rollout.retried, len(rollout))
    if rollout.logprobs is None:
        return
    count, own = len(rollout), padded_rows(rollout.logprobs, like=exp.logprobs).double()
    total = own.sum()
    meter.add("sampler/logprob", total, count)
    for name, other in (("policy", exp.logprobs), ("reference", exp.reference)):
        meter.add(
            f"sampler/kl_to_{name}", total - row_sums(other, exp.sampled).double().sum(), count
        )
    ratio = (exp.logprobs.double() - own).exp()
    meter.tokens("sampler/ratio", ratio, exp.sampled)
    if exp.importance is not None:
        meter.tokens("sampler/importance", exp.importance, exp.mask)
        changed = (exp.importance - ratio).abs() > _CHANGED * ratio
        meter.tokens("sampler/bounded_share", changed, exp.mask)


def _deviations(update: Update, reduce: Reduce) -> dict[str, float]:
    """Population standard deviation of valid responses' scores, and of what each reward judged."""
    columns = {"objective/scores_std": (update.scores.untransformed, update.experience.valid)} | {
        f"reward/{name}/std": (values, ~values.isnan())
        for name, values in update.scores.raw.items()
    }
    return {
        name: float(_over_ranks(values, counted, reduce).var.sqrt())
        for name, (values, counted) in columns.items()
    }


def _explained(update: Update, reduce: Reduce) -> dict[str, float]:
    exp = update.experience
    if exp.values is None or exp.returns is None:
        return {}
    target = _over_ranks(exp.returns, exp.mask, reduce)
    residual = _over_ranks(exp.returns - exp.values, exp.mask, reduce)
    return {"critic/explained_variance": float(explained_variance(target, residual))}


def _over_ranks(values: Tensor, mask: Tensor, reduce: Reduce) -> Moments:
    return Moments(*reduce(torch.stack(moments(values, mask))))

"""`rlframe doctor`: the checks, most serious first, and the findings of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rlframe.reports.checks import (
    critic,
    kl,
    machine,
    optimisation,
    prompts,
    responses,
    rewards,
    sampling,
)
from rlframe.reports.finding import LEVELS, Finding
from rlframe.reports.history import History, Row
from rlframe.reports.reading import RunRecord

CHECKS: tuple[Callable[[History], Finding | None], ...] = (
    optimisation.skipped_steps,
    optimisation.ratio_not_one,
    sampling.sampler_diverges,
    optimisation.step_too_large,
    rewards.no_signal,
    kl.coefficient_zero,
    kl.kl_negative,
    kl.learning_rate_floor,
    responses.missing_eos,
    responses.templated,
    rewards.overfitting,
    rewards.reward_hacking,
    kl.kl_runaway,
    kl.controller_at_bound,
    kl.kl_flat,
    optimisation.auxiliary_dominates,
    prompts.prompts_few,
    prompts.prompts_alike,
    prompts.evaluation_like_training,
    critic.critic_explains_nothing,
    critic.value_loss_not_falling,
    responses.entropy_collapse,
    responses.length_drift,
    optimisation.approx_kl_spike,
    machine.slow_rank,
    machine.slow_reward,
    machine.too_short,
)
"""Findings of one level are listed in this order: a cause stands before what follows from it, such as
a learning rate that is too high before the entropy that collapses."""


def findings(
    rows: Sequence[Row],
    recipe: Mapping[str, object],
    samples: Mapping[int, Sequence[Row]],
    *,
    inputs: Mapping[str, object] | None = None,
    window: int | None = None,
) -> list[Finding]:
    """What is not healthy in a run, most serious first; an empty list for a healthy one.

    Cheap enough to call after each update with a `window`: trends read the first and the last few rows,
    everything else the last `window` rows and the samples.

    Args:
      rows: of metrics.jsonl, those of PPO updates alone, in order.
      recipe: resolved.
      samples: update -> the rows of its evaluation on the held-out prompts; 0 is before the first.
      inputs: data set or model -> its fingerprint, as in the manifest.
      window: updates at the end in which single events are looked for; None for all.
    """
    history = History(rows, recipe, samples, inputs or {}, window)
    found = [finding for check in CHECKS if (finding := check(history)) is not None]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def diagnose(run: RunRecord) -> list[Finding]:
    """`findings` of a run directory."""
    return findings(run.rows, run.recipe, run.samples, inputs=run.inputs)

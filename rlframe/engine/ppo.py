"""PPO on language models, on one screen.

    generate    sample responses to the next prompts
    score       one score per response, from the mix of rewards
    evaluate    log-probabilities of policy and reference, values, KL
    credit      token rewards r_t = score_t - β KL_t, advantages and value targets
    update      a few clipped epochs over the same responses, auxiliary losses in the same backward pass
    adapt       measure KL over all ranks and choose the next KL coefficient β
    record      evaluation on held-out prompts, metrics, checkpoints

Schulman et al. 2017 (https://arxiv.org/abs/1707.06347) as Ziegler et al. 2019
(https://arxiv.org/abs/1909.08593) and Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155) use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from rlframe.api.events import RolloutScored
from rlframe.engine.batching import Scheduler
from rlframe.engine.evaluation import Models
from rlframe.engine.experience import ExperienceBuilder
from rlframe.engine.generation import RolloutGenerator
from rlframe.engine.heldout import HeldoutEvaluator
from rlframe.engine.kl_control import KLControl
from rlframe.engine.metrics import Clock
from rlframe.engine.metrics_logger import MetricsLogger
from rlframe.engine.rebalancing import Rebalancer
from rlframe.engine.scoring import RewardScorer
from rlframe.engine.update_metrics import Update
from rlframe.engine.updater import PolicyUpdater
from rlframe.registry.relay import Relay
from rlframe.runs.checkpointer import Checkpointer
from rlframe.types import KLState


@dataclass(frozen=True)
class RunState:
    """Where a run stands between two updates, beside its models."""

    updates: int
    """Done so far."""
    kl: KLState
    """The controller's state for the next update."""


@dataclass(frozen=True)
class Run:
    """The parts of a PPO run, finished and handed in."""

    updates: int
    """In the whole run, those before a resume included."""
    generator: RolloutGenerator
    scorer: RewardScorer
    rebalancer: Rebalancer
    scheduler: Scheduler
    models: Models
    experience: ExperienceBuilder
    updater: PolicyUpdater
    control: KLControl
    heldout: HeldoutEvaluator
    metrics: MetricsLogger
    checkpoints: Checkpointer
    observers: Relay
    clock: Clock
    gather: Callable[[str | None], list[str | None]]
    """Every rank's value, on every rank."""

    def stop_reason(self) -> str | None:
        """Why an observer of any rank has ended the training; None if none has. Collective."""
        return next((why for why in self.gather(self.observers.stop) if why), None)


def train(run: Run, state: RunState) -> RunState:
    """Train the policy from `state` until `run.updates` updates are done; returns the last state."""
    for number in range(state.updates, run.updates):
        kl = state.kl
        with run.models.gathered():
            with run.clock.phase("rollout"):
                rollout = run.generator.generate(number)
            with run.clock.phase("reward"):
                scores = run.scorer.score(rollout)
            run.observers.tell("rollout_scored", RolloutScored(number, scores.responses(rollout)))
            with run.clock.phase("experience"):
                rollout, scores = run.rebalancer.rebalance(rollout, scores)
                schedule = run.scheduler.schedule(rollout, budget=run.updater.budget)
                evaluation = run.models.evaluate(rollout, schedule)
                experience = run.experience.build(
                    rollout, scores, evaluation, schedule, kl_coefficient=kl.coefficient
                )
        with run.clock.phase("learn"):
            meter, metrics = run.updater.update_policy(experience, kl_coefficient=kl.coefficient)

        measured = run.control.measure(experience)
        state = RunState(number + 1, run.control.update(kl, measured))
        update = Update(number, rollout, scores, experience, meter, metrics, measured, kl, state.kl)
        heldout = run.heldout.after(state.updates, of=run.updates)
        run.metrics.log(update, heldout)
        stopped = run.stop_reason() is not None
        with run.clock.phase("checkpoint"):
            score = None if heldout is None else heldout.mean
            run.checkpoints.after(state.updates, asdict(state), score=score, ends=stopped)
        if stopped:
            break
    return state

"""PPO on language models, on one screen: act, judge, credit, learn, adapt, record.

    act     sample responses to the next prompts
    judge   one score a response, from the mix of rewards
    credit  token rewards r_t = score_t - β KL_t, advantages and value targets
    learn   a few clipped epochs over the same responses, auxiliary losses in the same backward pass
    adapt   measure KL over all ranks and choose the next β
    record  metrics, samples, checkpoints, the watch on held-out prompts

Schulman et al. 2017 (https://arxiv.org/abs/1707.06347) as Ziegler et al. 2019
(https://arxiv.org/abs/1909.08593) and Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155) use it.
What is left out: bootstrapping past the token limit, and importance correction for a sampler whose
weights differ from the policy's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from rlframe.api.events import ExperienceReady, RolloutFinished, UpdateFinished
from rlframe.engine.batching import Schedule
from rlframe.engine.experience import Crediting, Experience
from rlframe.engine.judge import Judge, Judgement
from rlframe.engine.kl_control import KLControl
from rlframe.engine.learner import Learner
from rlframe.engine.metrics import Clock, Meter
from rlframe.types import KLMeasurement, KLState, Rollout


@dataclass(frozen=True)
class Update:
    """Everything that one update produced, for whoever records it."""

    number: int
    rollout: Rollout
    judgement: Judgement
    experience: Experience
    meter: Meter
    figures: dict[str, float]
    measured: KLMeasurement
    kl: KLState
    """The state whose coefficient this update used."""
    next_kl: KLState


class Record(Protocol):
    """Called at the end of each update."""

    def __call__(self, update: Update, clock: Clock) -> None: ...


@dataclass(frozen=True)
class Run:
    """The parts of a PPO run, finished and handed in."""

    updates: Iterable[int]
    whole: Callable[[], AbstractContextManager[None]]
    """Around everything that asks the policy: whole weights on every rank, gathered once."""
    act: Callable[[int], Rollout]
    judge: Judge
    share: Callable[[Rollout, Judgement], tuple[Rollout, Judgement]]
    """Evens out over ranks what there is to learn from."""
    plan: Callable[[Rollout], Schedule]
    credit: Crediting
    learn: Learner
    control: KLControl
    record: Record
    tell: Callable[[str, object], None]
    """Tells observers of a moment: (hook without "rlframe_", its event)."""
    clock: Clock


def train(run: Run, kl: KLState) -> KLState:
    """Train the policy for `run.updates`, starting from the KL state `kl`; returns the last one."""
    for number in run.updates:
        with run.whole():
            with run.clock.phase("rollout"):
                rollout = run.act(number)
            run.tell("rollout_finished", RolloutFinished(rollout))
            with run.clock.phase("reward"):
                judgement = run.judge(rollout)
            with run.clock.phase("experience"):
                rollout, judgement = run.share(rollout, judgement)
                schedule = run.plan(rollout)
                experience = run.credit(rollout, judgement.rewards, schedule, beta=kl.coefficient)
        run.tell("experience_ready", _ready(rollout, judgement, experience))
        with run.clock.phase("learn"):
            meter, figures = run.learn(experience, beta=kl.coefficient)

        measured = experience.measured(run.control.unit, run.credit.reduce)
        next_kl = run.control.update(kl, measured)
        update = Update(
            number, rollout, judgement, experience, meter, figures, measured, kl, next_kl
        )
        run.record(update, run.clock)
        run.tell("update_finished", UpdateFinished(number, measured, kl, next_kl))
        kl = next_kl
    return kl


def _ready(rollout: Rollout, judgement: Judgement, seen: Experience) -> ExperienceReady:
    return ExperienceReady(
        rollout, judgement.raw, seen.mask, seen.rewards, seen.advantages, seen.returns
    )

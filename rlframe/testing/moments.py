"""The moments of a run at which hook plugins take part: calls of components, and events.

Components are those in the box, and what they are called with is small but complete.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from rlframe.api.answers import gate_factors, token_scores
from rlframe.api.component import Component, Context
from rlframe.api.contract import (
    counted,
    credited,
    refuse_bad_state,
    refuse_bad_term,
    token_loss,
)
from rlframe.api.events import (
    CheckpointSaved,
    HeldoutEvaluated,
    Metrics,
    RolloutScored,
    RunFinished,
    RunStarted,
    ScoredResponse,
)
from rlframe.api.sampling import SampleRequest, SamplingParams, checked_samples
from rlframe.api.spec import Specification
from rlframe.api.transform_contract import transformed
from rlframe.batches import Credit, TokenLoss
from rlframe.builtin.advantages import GAE
from rlframe.builtin.eos_penalty import EosPenalty
from rlframe.builtin.kl import Adaptive
from rlframe.builtin.length import Length
from rlframe.builtin.losses import SFT
from rlframe.builtin.policy_losses import Clip
from rlframe.builtin.reward_transforms import RunningStandardize
from rlframe.builtin.value_losses import Clipped
from rlframe.engine.streams import token_batch
from rlframe.models.policy import Policy
from rlframe.rollout.builtin import Builtin
from rlframe.testing.batches import credit_batch, policy_loss_batch, score_batch, value_loss_batch
from rlframe.testing.recorded import METRICS, RESOLVED
from rlframe.testing.world import reward_batch, sampled_policy, tiny_policy
from rlframe.types import KLMeasurement, KLState, RewardBatch

REWARDS = ((1.0, -0.5, 0.25), (0.5,), (-1.0, 2.0), (0.0, 0.0, 1.5))
"""Of each token of four responses to two prompts."""
OTHERS = ((0.5, -1.0, 0.0), (1.5,), (0.25, -0.25), (-1.0, 0.75, 0.5))
MEASURED = KLMeasurement(kl=8.0, nats_per_response=8.0, nats_per_token=0.4, responses=20)


@dataclass(frozen=True)
class Call:
    """One call of a component through its hook, as the engine makes it.

    Args:
      hook: its name.
      component: what is called.
      method: of the component.
      given: the hook's arguments but the component.
      read: raises `ContractError` for an answer that the engine refuses.
      gradient: whether it is made under autograd.
    """

    hook: str
    component: Component[Any]
    method: str
    given: Mapping[str, Any]
    read: Callable[[Any], object]
    gradient: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """By name, as pluggy takes them."""
        first = list(inspect.signature(getattr(Specification, self.hook)).parameters)[1]
        return {first: self.component, **self.given}

    def directly(self) -> Any:
        """What the component answers when no plugin takes part."""
        with torch.set_grad_enabled(self.gradient):
            return getattr(self.component, self.method)(*self.given.values())

    def through(self, hook: Any) -> Any:
        """What comes out of the hooks of a relay."""
        with torch.set_grad_enabled(self.gradient):
            return getattr(hook, self.hook)(**self.arguments)

    def answered(self, function: Callable[..., Any], **given: Any) -> Call:
        """The same call, of a component that answers with this function.

        Args:
          function: of the component's arguments.
          given: arguments that are others.
        """
        component = copy.copy(self.component)
        setattr(component, self.method, function)
        return replace(self, component=component, given={**self.given, **given})


def component_calls(context: Context, reward: str) -> Iterator[Call]:
    """One call of every hook around a component, each with values of its own.

    Args:
      context: what components are built with.
      reward: the recipe's name of the reward.
    """
    batch = reward_batch(context)
    lengths, asked = batch.response_lengths, {"batch": batch}

    def built(kind: type[Component[Any]], name: str, **config: Any) -> Any:
        component = kind(kind.Config.model_validate(config), context)
        component.name = name
        return component

    yield _sampling(built(Builtin, "sampler"))
    judge = built(Length, reward, target_tokens=20)
    yield Call("rlframe_score", judge, "score", asked, lambda answer: token_scores(answer, lengths))
    gate = built(EosPenalty, reward, penalty=1.0, mode="replace")
    yield Call("rlframe_gate", gate, "gate", asked, lambda answer: _factors(answer, batch))
    transform = built(RunningStandardize, reward)
    scores = score_batch([1.0, -0.5, 2.0, 0.0], group_ids=[0, 0, 1, 1])
    yield Call(
        "rlframe_transform_reward",
        transform,
        "apply",
        {"state": transform.initial(), "scores": scores},
        lambda answer: transformed(answer, scores),
    )
    controller = built(Adaptive, "controller", target=6.0)
    given = {"state": controller.initial(), "measured": MEASURED}
    yield Call("rlframe_update_kl", controller, "update", given, refuse_bad_state)
    yield from _learning(context, built)


def _sampling(sampler: Builtin) -> Call:
    """The call that writes responses."""
    policy = sampled_policy(0.8)
    sampler.connect(policy)
    params = SamplingParams(
        max_new_tokens=4, eos_ids=frozenset({2}), temperature=0.8, logprobs=True
    )
    given = {
        "requests": tuple(SampleRequest((1, 5, 9), seed) for seed in range(4)),
        "params": params,
        "seed": 0,
    }
    return Call("rlframe_sample", sampler, "sample", given, partial(_read_samples, policy, given))


def _read_samples(policy: Policy, given: Mapping[str, Any], answer: Any) -> object:
    return checked_samples(
        answer,
        given["requests"],
        given["params"],
        version=0,
        missing=frozenset(policy.without_token()),
        rows=policy.rows,
    )


def _learning(context: Context, built: Callable[..., Any]) -> Iterator[Call]:
    """The calls that have to do with the weights of the policy and the critic."""
    loss = built(SFT, "demonstrations", data="reviews")
    tokens = token_batch([e.cut(24) for e in loss.examples()[:4]], device=torch.device("cpu"))
    promised = counted(loss.count(tokens), "`count()`")
    yield Call(
        "rlframe_auxiliary_loss",
        loss,
        "loss",
        {"policy": tiny_policy(), "batch": tokens},
        lambda answer: refuse_bad_term(answer, promised),
        gradient=True,
    )
    credit = credit_batch(REWARDS, values=OTHERS, group_ids=[0, 0, 1, 1])
    yield Call(
        "rlframe_compute_advantages",
        built(GAE, "advantages"),
        "estimate",
        {"batch": credit},
        lambda answer: credited(answer, credit),
    )
    # Clones, since autograd refuses to change leaves in place, but not what a model gives.
    policy = policy_loss_batch(OTHERS, advantages=REWARDS, old_logprobs=REWARDS)
    policy = replace(policy, logprobs=policy.logprobs.clone(), entropy=policy.entropy.clone())
    value = value_loss_batch(OTHERS, returns=REWARDS, old_values=REWARDS)
    value = replace(value, values=value.values.clone())
    for name, kind, batch in (("policy", Clip, policy), ("value", Clipped, value)):
        like: torch.Tensor = getattr(batch, "logprobs" if name == "policy" else "values")
        yield Call(
            f"rlframe_{name}_loss",
            built(kind, f"{name}_loss"),
            "loss",
            {"batch": batch},
            partial(_read_loss, like),
            gradient=True,
        )


def _read_loss(like: torch.Tensor, answer: Any) -> object:
    return token_loss(answer, like)


def _factors(answer: Any, batch: RewardBatch) -> object:
    return None if answer is None else gate_factors(answer, len(batch))


def unusual_calls(call: Call) -> Iterator[tuple[str, Call]]:
    """What a component of a kind may answer as well, with a name for each.

    Args:
      call: a usual one.
    """
    yield from _UNUSUAL.get(call.hook, _unusual_losses)(call)


def _unusual_scores(call: Call) -> Iterator[tuple[str, Call]]:
    batch: RewardBatch = call.given["batch"]
    usual = [float(length) for length in batch.response_lengths]
    rows = [[1.0] * length for length in batch.response_lengths]
    yield "None for some responses", call.answered(lambda batch: [None, *usual[1:]])
    yield "one number per token", call.answered(lambda batch: rows)
    yield "a tensor", call.answered(lambda batch: torch.tensor(usual))
    yield "True and False", call.answered(lambda batch: [length > 8 for length in usual])
    none = batch.rows([])
    read = replace(call, read=lambda answer: token_scores(answer, []))
    yield "no responses on this rank", read.answered(lambda batch: [], batch=none)


def _unusual_gates(call: Call) -> Iterator[tuple[str, Call]]:
    yield "None, which is no gate", call.answered(lambda batch: None)


def _unusual_transforms(call: Call) -> Iterator[tuple[str, Call]]:
    def nothing(state: Any, s: Any) -> Any:
        return state, torch.ones_like(s.totals), torch.zeros_like(s.totals)

    yield "an empty state", call.answered(nothing, state={})


def _unusual_states(call: Call) -> Iterator[tuple[str, Call]]:
    remembers = KLState(0.2, {"integral": 1.0})
    yield "a state with a memory", call.answered(lambda state, measured: remembers)
    yield "a coefficient of 0", call.answered(lambda state, measured: KLState(0.0))


def _unusual_terms(call: Call) -> Iterator[tuple[str, Call]]:
    batch: Any = call.given["batch"]
    nothing = replace(batch, mask=torch.zeros_like(batch.mask))
    read = replace(call, read=lambda answer: refuse_bad_term(answer, 0.0))
    yield "a sum over nothing", read.answered(call.component.loss, batch=nothing)  # type: ignore[attr-defined]


def _unusual_credit(call: Call) -> Iterator[tuple[str, Call]]:
    batch: Any = call.given["batch"]
    without = replace(batch, values=None)
    read = replace(call, read=lambda answer: credited(answer, without))

    def critic_free(batch: Any) -> Credit:
        return Credit(batch.rewards.masked_fill(~batch.mask, 0))

    yield "no returns, without a critic", read.answered(critic_free, batch=without)


def _unusual_losses(call: Call) -> Iterator[tuple[str, Call]]:
    bare = getattr(call.component, call.method)
    yield "no `clipped`", call.answered(lambda batch: TokenLoss(bare(batch).loss))


def _unusual_samples(call: Call) -> Iterator[tuple[str, Call]]:
    params = replace(call.given["params"], logprobs=False)
    read = partial(_read_samples, call.component.policy, {**call.given, "params": params})  # type: ignore[attr-defined]
    without = replace(call, read=read)
    yield "no log-probabilities", without.answered(call.component.sample, params=params)  # type: ignore[attr-defined]


_UNUSUAL = {
    "rlframe_sample": _unusual_samples,
    "rlframe_score": _unusual_scores,
    "rlframe_gate": _unusual_gates,
    "rlframe_transform_reward": _unusual_transforms,
    "rlframe_update_kl": _unusual_states,
    "rlframe_auxiliary_loss": _unusual_terms,
    "rlframe_compute_advantages": _unusual_credit,
}
"""Hook -> the other answers of the components that it calls; policy and value losses share theirs."""


def scored_responses(batch: RewardBatch, reward: str) -> tuple[ScoredResponse, ...]:
    """The responses of a batch with scores, the first of which the reward could not judge."""
    return tuple(
        ScoredResponse(
            sample=row,
            group=batch.group_ids[row],
            prompt=batch.prompts[row].text,
            response=batch.response_texts[row],
            stop_reason=batch.stop_reasons[row],
            score=row / len(batch) if row else None,
            rewards={reward: 2 * row / len(batch) if row else None},
        )
        for row in range(len(batch))
    )


def started(directory: Path, reward: str) -> RunStarted:
    """The first event of a run whose reward has this name."""
    resolved = copy.deepcopy(RESOLVED)
    resolved["rewards"] = {reward: resolved["rewards"]["reward"]}
    resolved["evaluation"]["every"] = 1
    return RunStarted(directory, resolved)


def observed(context: Context, directory: Path, reward: str) -> Iterator[tuple[str, object]]:
    """(hook without "rlframe_", event) of everything between the start and the end of a run.

    Twice where a run may report two sorts of it: with a critic and without one, of responses that are
    judged and of none.
    """
    responses = scored_responses(reward_batch(context), reward)
    unjudged = tuple(replace(r, score=None, rewards={reward: None}) for r in responses)
    yield "heldout_evaluated", HeldoutEvaluated("before", 0, responses)
    yield "rollout_scored", RolloutScored(0, responses)
    yield "rollout_scored", RolloutScored(1, unjudged)
    yield "heldout_evaluated", HeldoutEvaluated("update_000001", 1, unjudged)
    figures = {name.replace("/reward/", f"/{reward}/"): value for name, value in METRICS.items()}
    yield "metrics", Metrics(0, MappingProxyType(figures))
    critic = ("val/clipfrac_avg", "loss/value_avg", "critic/explained_variance")
    without = {name: value for name, value in figures.items() if name not in critic}
    yield "metrics", Metrics(1, MappingProxyType(without))
    checkpoint = directory / "checkpoints" / "step-1"
    checkpoint.mkdir(parents=True, exist_ok=True)
    yield "checkpoint_saved", CheckpointSaved(0, checkpoint)


def finished(error: BaseException | None = None) -> RunFinished:
    """The last event of a run."""
    return RunFinished(error)

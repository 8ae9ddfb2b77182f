"""Hooks: the moments of a run at which the engine calls a component, each of which can be wrapped.

As pytest calls a test function through `pytest_pyfunc_call`, the engine calls components through
these hooks; the implementation that does the work ships here and runs last. A wrapper (`@hookimpl(
wrapper=True)`) can cache, time, retry or veto without the component knowing.

The hooks that call a component are `firstresult`: the first implementation that returns something other
than None decides. The rest are observers: they get a frozen event, and what they return is thrown
away. An observer that raises is warned about and counted; a wrapper that raises ends the run by name.

Who may take part is said by the recipe's `hooks:`, in its order: the first one named is the outermost
wrapper and the first observer to be notified. Nothing is active because it is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

from rlframe.api.algorithm import AdvantageEstimator, PolicyLoss, RewardTransform, ValueLoss
from rlframe.api.component import (
    AuxiliaryLoss,
    KLController,
    RewardProvider,
)
from rlframe.api.events import (
    CheckpointSaved,
    HeldoutEvaluated,
    Metrics,
    RolloutScored,
    RunFinished,
    RunStarted,
)
from rlframe.api.sampling import Sampler, SampleRequest, Samples, SamplingParams
from rlframe.batches import (
    Credit,
    CreditBatch,
    PolicyLossBatch,
    ScoreBatch,
    TokenLoss,
    ValueLossBatch,
)
from rlframe.types import KLMeasurement, KLState, LossTerm, PolicyView, RewardBatch, TokenBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

hookspec = pluggy.HookspecMarker("rlframe")
hookimpl = pluggy.HookimplMarker("rlframe")
"""Marks a method of a `HookPlugin` as the implementation of the hook of that name.

`@hookimpl(wrapper=True)` marks a wrapper: a generator that yields once, is sent the result of what it
wraps, and returns the result of the hook. `tryfirst` and `trylast` are refused, since the order comes
from the recipe.
"""


class Specification:
    """The hooks, and when each is called.

    A hook that is passed a component calls it: the first implementation that returns something other
    than None decides. A hook that is passed an `event` reports it to observers, whose return value is
    ignored.
    """

    @hookspec(firstresult=True)
    def rlframe_sample(
        self,
        sampler: Sampler[Any],
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        seed: int,
    ) -> Samples | None:
        """Sample a response to each request; see `Sampler.sample`.

        Called on every rank with that rank's requests, while the policy's weights are whole: for each
        rollout, for each evaluation on held-out prompts, and for responses of the reference model.
        """

    @hookspec(firstresult=True)
    def rlframe_score(
        self, provider: RewardProvider[Any], batch: RewardBatch
    ) -> Sequence[float | Sequence[float] | None] | None:
        """Score a rollout with one provider.

        Called once per provider and rollout on every rank, in the recipe's order, under
        `torch.no_grad()`, with that rank's shard of the batch. It must not call a collective: ranks may
        hold different numbers of responses.

        The reward's `time_limit_seconds` includes its wrappers, which run in a thread of its own if
        there is a limit. A provider that has raised, and is `cheap_to_repeat`, is called again for the
        responses to one prompt, and for one response, to find the one at fault.

        The result must be what `RewardProvider.score` may return; an implementation that calls the
        provider itself reads its answer with `raw_scores`.

        A wrapper that measures time:

            @hookimpl(wrapper=True)
            def rlframe_score(provider, batch):
                start = time.perf_counter()
                scores = yield
                print(type(provider).__name__, time.perf_counter() - start)
                return scores
        """

    @hookspec(firstresult=True)
    def rlframe_gate(
        self, provider: RewardProvider[Any], batch: RewardBatch
    ) -> Sequence[float] | None:
        """What a provider multiplies other rewards with, from 0 to 1; see `RewardProvider.gate`.

        Called after `rlframe_score` for every provider with a gate and a weight other than 0.
        """

    @hookspec(firstresult=True)
    def rlframe_transform_reward(
        self, transform: RewardTransform[Any], state: Mapping[str, Any], scores: ScoreBatch
    ) -> tuple[Mapping[str, Any], Tensor, Tensor] | None:
        """Transform the total scores of one reward, once per rollout; see `RewardTransform.apply`."""

    @hookspec(firstresult=True)
    def rlframe_update_kl(
        self, controller: KLController[Any], state: KLState, measured: KLMeasurement
    ) -> KLState | None:
        """Ask the controller for its next state.

        Called once per rollout on every rank, with the same measurement, after the policy is updated.
        The result must depend on the arguments alone: ranks compare it, and a difference ends the run.
        """

    @hookspec(firstresult=True)
    def rlframe_auxiliary_loss(
        self, loss: AuxiliaryLoss[Any], policy: PolicyView, batch: TokenBatch
    ) -> LossTerm | None:
        """Compute one auxiliary loss on one micro-batch.

        Called for every micro-batch of every optimiser step, inside the forward pass of the model in
        training and under autograd. It must not call `backward` or a collective. The total must keep
        its gradient, and the count must stay what `AuxiliaryLoss.count` returned.
        """

    @hookspec(firstresult=True)
    def rlframe_compute_advantages(
        self, estimator: AdvantageEstimator[Any], batch: CreditBatch
    ) -> Credit | None:
        """Compute advantages and returns of this rank's shard, once per rollout, without a gradient.

        Whitening over all ranks comes afterwards, where the recipe asks for it.
        """

    @hookspec(firstresult=True)
    def rlframe_policy_loss(
        self, loss: PolicyLoss[Any], batch: PolicyLossBatch
    ) -> TokenLoss | None:
        """Compute the policy's loss on one micro-batch, under autograd; see `PolicyLoss.loss`."""

    @hookspec(firstresult=True)
    def rlframe_value_loss(self, loss: ValueLoss[Any], batch: ValueLossBatch) -> TokenLoss | None:
        """Compute the critic's loss on one micro-batch, under autograd; see `ValueLoss.loss`."""

    # Observers

    @hookspec
    def rlframe_run_started(self, event: RunStarted) -> None:
        """PPO begins. Called once on every rank, before held-out prompts are evaluated."""

    @hookspec
    def rlframe_rollout_scored(self, event: RolloutScored) -> None:
        """Responses were sampled and scored. Called once per update on every rank, with its shard.

        An observer that prints the best response of each update:

            class Best(HookPlugin[PluginConfig]):
                @hookimpl
                def rlframe_rollout_scored(self, event):
                    valid = [one for one in event.responses if one.score is not None]
                    for one in sorted(valid, key=lambda one: one.score)[-1:]:
                        print(event.update, one.score, one.rewards, one.prompt, one.response)
        """

    @hookspec
    def rlframe_heldout_evaluated(self, event: HeldoutEvaluated) -> None:
        """The held-out prompts were answered and scored: before PPO, every `evaluation.every` updates,
        and after it. Called on every rank, with the responses of all ranks.
        """

    @hookspec
    def rlframe_metrics(self, event: Metrics) -> None:
        """The metrics of an update. Called once per update on every rank, with the same values.

        The last event of an update, before a checkpoint may be saved. An observer ends PPO here, or in
        any event before it, with an exception, on one rank or on all:

            raise StopTraining("the mean score is above 3")

        The run is then evaluated, writes its result and ends with exit code 0 and the status
        "stopped_early"; it can be resumed for the updates that are left.

        An observer that prints the scores:

            class Scores(HookPlugin[PluginConfig]):
                @hookimpl
                def rlframe_metrics(self, event):
                    print(event.update, event.figures["objective/scores"])
        """

    @hookspec
    def rlframe_checkpoint_saved(self, event: CheckpointSaved) -> None:
        """A checkpoint is complete on disk. Called on every rank, also for the result of the run."""

    @hookspec
    def rlframe_run_finished(self, event: RunFinished) -> None:
        """PPO is over. Called once on every rank, also when an error ends the run."""


class Defaults:
    """What happens when nobody wraps anything: the component is called."""

    @hookimpl(trylast=True)
    def rlframe_sample(
        self,
        sampler: Sampler[Any],
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        seed: int,
    ) -> Samples:
        return sampler.sample(requests, params, seed)

    @hookimpl(trylast=True)
    def rlframe_score(self, provider: RewardProvider[Any], batch: RewardBatch) -> Any:
        return provider.score(batch)

    @hookimpl(trylast=True)
    def rlframe_gate(
        self, provider: RewardProvider[Any], batch: RewardBatch
    ) -> Sequence[float] | None:
        return provider.gate(batch)

    @hookimpl(trylast=True)
    def rlframe_transform_reward(
        self, transform: RewardTransform[Any], state: Mapping[str, Any], scores: ScoreBatch
    ) -> tuple[Mapping[str, Any], Tensor, Tensor]:
        return transform.apply(state, scores)

    @hookimpl(trylast=True)
    def rlframe_update_kl(
        self, controller: KLController[Any], state: KLState, measured: KLMeasurement
    ) -> KLState:
        return controller.update(state, measured)

    @hookimpl(trylast=True)
    def rlframe_auxiliary_loss(
        self, loss: AuxiliaryLoss[Any], policy: PolicyView, batch: TokenBatch
    ) -> LossTerm:
        return loss.loss(policy, batch)

    @hookimpl(trylast=True)
    def rlframe_compute_advantages(
        self, estimator: AdvantageEstimator[Any], batch: CreditBatch
    ) -> Credit:
        return estimator.estimate(batch)

    @hookimpl(trylast=True)
    def rlframe_policy_loss(self, loss: PolicyLoss[Any], batch: PolicyLossBatch) -> TokenLoss:
        return loss.loss(batch)

    @hookimpl(trylast=True)
    def rlframe_value_loss(self, loss: ValueLoss[Any], batch: ValueLossBatch) -> TokenLoss:
        return loss.loss(batch)


def plugin_manager() -> pluggy.PluginManager:
    """A fresh manager with the specification and the defaults."""
    manager = pluggy.PluginManager("rlframe")
    manager.add_hookspecs(Specification)
    manager.register(Defaults(), name="rlframe")
    return manager

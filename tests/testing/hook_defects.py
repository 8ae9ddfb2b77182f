"""Hook plugins that each break one promise, and those that they were made of."""

from __future__ import annotations

import random
import uuid
from dataclasses import replace
from typing import Any

import torch

from rlframe.api import (
    Credit,
    HookPlugin,
    KLState,
    PluginConfig,
    StopTraining,
    hookimpl,
    raw_scores,
)
from rlframe.batches import TokenLoss
from tests.testing.expected import (
    A_REWARD_FAILS,
    ASKED_BY_OTHERS,
    CHANCE,
    GATED,
    GLOBAL,
    NOBODY_READS,
    NOTHING_VALID,
    REFUSED,
    RESUMED,
    SOME_JUDGED,
    TRANSFORMED,
    UNBOUNDED,
    WITH_A_LOSS,
    WITHOUT_CRITIC,
    Planted,
    Refused,
    Warned,
)


class Lifts(HookPlugin[PluginConfig]):
    """Right: one point more for every response, and a count of what was scored."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.scored = 0
        self.best: float | None = None

    @hookimpl(wrapper=True)
    def rlframe_score(self, batch: Any) -> Any:
        rows = raw_scores((yield), batch.response_lengths)
        self.scored += len(rows)
        return [None if row is None else sum(row) + 1 for row in rows]

    @hookimpl
    def rlframe_metrics(self, event: Any) -> None:
        self.best = max(self.best or -1e9, event.figures["objective/scores"])

    def state_dict(self) -> Any:
        return {"scored": self.scored, "best": self.best}

    def load_state_dict(self, state: Any) -> None:
        self.scored, self.best = state["scored"], state["best"]


class Everywhere(HookPlugin[PluginConfig]):
    """Right: takes part in every call, and changes what may be changed."""

    @hookimpl(wrapper=True)
    def rlframe_score(self, batch: Any) -> Any:
        return (yield)

    @hookimpl
    def rlframe_gate(self) -> Any:
        return None  # left to the component

    @hookimpl(wrapper=True)
    def rlframe_transform_reward(self) -> Any:
        state, scale, shift = yield
        return state, 0.5 * scale, shift

    @hookimpl(wrapper=True)
    def rlframe_update_kl(self) -> Any:
        state = yield
        return replace(state, coefficient=min(state.coefficient, 0.2))

    @hookimpl(wrapper=True)
    def rlframe_auxiliary_loss(self) -> Any:
        term = yield
        return replace(term, total=0.5 * term.total)

    @hookimpl(wrapper=True)
    def rlframe_compute_advantages(self) -> Any:
        credit = yield
        return replace(credit, advantages=credit.advantages.clamp(-1, 1))

    @hookimpl(wrapper=True)
    def rlframe_policy_loss(self) -> Any:
        term = yield
        return replace(term, loss=2 * term.loss)

    @hookimpl(wrapper=True)
    def rlframe_value_loss(self) -> Any:
        return (yield)


class EndsPPO(HookPlugin[PluginConfig]):
    """Right: an observer may end PPO, which is no error."""

    @hookimpl
    def rlframe_metrics(self, event: Any) -> None:
        raise StopTraining("the mean score is high enough")


class NeedsAModel(Lifts):
    def __init__(self, config: Any, context: Any, model: Any) -> None:
        super().__init__(config, context)


class Misspelt(Lifts):
    @hookimpl
    def rlframe_checkpoint_savved(self, event: Any) -> None:
        self.best = None


class WithADefault(Lifts):
    @hookimpl
    def rlframe_checkpoint_saved(self, event: Any = None) -> None:
        self.best = None


class ForgetsToReturn(Lifts):
    @hookimpl(wrapper=True)
    def rlframe_score(self) -> Any:
        yield


class DropsTheEmpty(Lifts):
    @hookimpl(wrapper=True)
    def rlframe_score(self, batch: Any) -> Any:
        scores = yield
        return [s for s, text in zip(scores, batch.response_texts, strict=True) if text]


class RaisesItself(Lifts):
    @hookimpl(wrapper=True)
    def rlframe_score(self, provider: Any) -> Any:
        yield
        return provider.no_such_thing


class OpensTheGate(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_gate(self) -> Any:
        yield


class DoublesTheGate(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_gate(self) -> Any:
        factors = yield
        return None if factors is None else [factor + 1 for factor in factors]


class ScalesTheTotals(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_transform_reward(self, scores: Any) -> Any:
        yield
        return scores.totals / 2


class PaysForLeaving(Everywhere):
    @hookimpl
    def rlframe_update_kl(self) -> Any:
        return KLState(-0.1)


class MeansTheLoss(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_auxiliary_loss(self) -> Any:
        term = yield
        return replace(term, total=term.total / term.count, count=torch.ones(()))


class CentresEverything(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_compute_advantages(self) -> Any:
        credit = yield
        return replace(credit, advantages=credit.advantages - 1.0)


class DetachesTheLoss(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_policy_loss(self) -> Any:
        term = yield
        return TokenLoss(term.loss.detach())


class AveragesTheError(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_value_loss(self) -> Any:
        term = yield
        return TokenLoss(term.loss.mean())


class Doubles(Lifts):
    """Of numbers; None and rows of numbers are scores as well."""

    @hookimpl(wrapper=True)
    def rlframe_score(self) -> Any:
        scores = yield
        return [2 * score for score in scores]


class WithACritic(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_compute_advantages(self) -> Any:
        credit = yield
        return Credit(credit.advantages, credit.returns.clamp(-1, 1))


class CountsClipped(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_policy_loss(self) -> Any:
        term = yield
        return replace(term, clipped=term.clipped & True)


class Swallows(Lifts):
    @hookimpl(wrapper=True)
    def rlframe_score(self) -> Any:
        try:
            return (yield)
        except Exception:
            return None


class LosesTheReason(Lifts):
    @hookimpl(wrapper=True)
    def rlframe_score(self, batch: Any) -> Any:
        try:
            scores = yield
        finally:
            self.scored += len(scores)
        return scores


class SwallowsTheGate(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_gate(self) -> Any:
        try:
            return (yield)
        except Exception:
            return None


class LowersTexts(Lifts):
    @hookimpl(wrapper=True)
    def rlframe_score(self, batch: Any) -> Any:
        batch.response_texts[:] = [text.lower() for text in batch.response_texts]
        return (yield)


class RenamesTheReward(Lifts):
    @hookimpl(wrapper=True)
    def rlframe_score(self, provider: Any) -> Any:
        provider.asked = True
        return (yield)


class BoundsInPlace(Everywhere):
    @hookimpl(wrapper=True)
    def rlframe_policy_loss(self, batch: Any) -> Any:
        batch.advantages.clamp_(-0.5, 0.5)
        return (yield)


class CleansTheEvent(Lifts):
    @hookimpl
    def rlframe_rollout_scored(self, event: Any) -> None:
        for response in event.responses:
            response.rewards.update(dict.fromkeys(response.rewards, 0.0))


class AddsNoise(Lifts):
    @hookimpl(wrapper=True)
    def rlframe_score(self, batch: Any) -> Any:
        rows = raw_scores((yield), batch.response_lengths)
        noise = uuid.uuid4().int % 1000
        return [None if row is None else sum(row) + noise for row in rows]


class ByHash(Lifts):
    @hookimpl(wrapper=True)
    def rlframe_score(self, batch: Any) -> Any:
        rows = raw_scores((yield), batch.response_lengths)
        pairs = zip(rows, batch.response_texts, strict=True)
        return [None if row is None else sum(row) + hash(text) % 7 for row, text in pairs]


class NeedsEveryScore(Lifts):
    @hookimpl
    def rlframe_rollout_scored(self, event: Any) -> None:
        self.best = max(response.score for response in event.responses)


class NeedsAJudgement(Lifts):
    @hookimpl
    def rlframe_heldout_evaluated(self, event: Any) -> None:
        self.best = max(one.score for one in event.responses if one.score is not None)


class ReadsAMetricOfTheCritic(Lifts):
    @hookimpl
    def rlframe_metrics(self, event: Any) -> None:
        self.best = event.figures["val/clipfrac_avg"]


class RaisesTheFailureAgain(Lifts):
    @hookimpl
    def rlframe_run_finished(self, event: Any) -> None:
        if event.error is not None:
            raise event.error


class EndsTheProcess(Lifts):
    @hookimpl
    def rlframe_metrics(self, event: Any) -> None:
        raise SystemExit(0)


class ChangesTheEvent(Lifts):
    @hookimpl
    def rlframe_metrics(self, event: Any) -> None:
        event.update = -1


class TossesInAnObserver(Lifts):
    @hookimpl
    def rlframe_rollout_scored(self, event: Any) -> None:
        self.shown = random.choice(event.responses)


class SeedsAtItsStart(Lifts):
    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        torch.manual_seed(0)


class ForgetsWhatItAdds(Lifts):
    added = 0.0

    @hookimpl(wrapper=True)
    def rlframe_score(self, batch: Any) -> Any:
        rows = raw_scores((yield), batch.response_lengths)
        self.added += 1
        return [None if row is None else sum(row) + self.added for row in rows]


class KeepsASet(Lifts):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "seen": {"a", "b"}}


class KeepsATensor(Lifts):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "mean": torch.zeros(2)}


class LoadsNothing(Lifts):
    def load_state_dict(self, state: Any) -> None:
        self.scored = 0


RIGHT = (Lifts, Everywhere, EndsPPO)

PLANTED = [
    Planted(NeedsAModel, "builds_from_config", REFUSED),
    Planted(
        Misspelt, "hooks_are_called", Refused(says="there is no hook rlframe_checkpoint_savved")
    ),
    Planted(WithADefault, "hooks_are_called", Refused(says="argument 'event' has a default")),
    Planted(ForgetsToReturn, "answers_keep_the_contract", REFUSED),
    Planted(DropsTheEmpty, "answers_keep_the_contract", REFUSED),
    Planted(RaisesItself, "answers_keep_the_contract", REFUSED),
    Planted(OpensTheGate, "answers_keep_the_contract", ASKED_BY_OTHERS),
    Planted(DoublesTheGate, "answers_keep_the_contract", Refused(GATED)),
    Planted(ScalesTheTotals, "answers_keep_the_contract", Refused(TRANSFORMED)),
    Planted(PaysForLeaving, "answers_keep_the_contract", REFUSED),
    Planted(MeansTheLoss, "answers_keep_the_contract", Refused(WITH_A_LOSS)),
    Planted(CentresEverything, "answers_keep_the_contract", REFUSED),
    Planted(DetachesTheLoss, "answers_keep_the_contract", REFUSED),
    Planted(AveragesTheError, "answers_keep_the_contract", REFUSED),
    Planted(Doubles, "every_form_of_answer", Refused(SOME_JUDGED)),
    Planted(WithACritic, "every_form_of_answer", Refused(WITHOUT_CRITIC)),
    Planted(CountsClipped, "every_form_of_answer", Refused(UNBOUNDED)),
    Planted(Swallows, "errors_come_through", Refused(A_REWARD_FAILS)),
    Planted(
        LosesTheReason, "errors_come_through", Refused(A_REWARD_FAILS, says="UnboundLocalError")
    ),
    Planted(SwallowsTheGate, "errors_come_through", ASKED_BY_OTHERS),
    Planted(LowersTexts, "answers_keep_the_contract", REFUSED),
    Planted(RenamesTheReward, "inputs_untouched", NOBODY_READS),
    Planted(BoundsInPlace, "inputs_untouched", Refused(says="changed batch.advantages")),
    Planted(CleansTheEvent, "inputs_untouched", NOBODY_READS),
    Planted(AddsNoise, "deterministic", CHANCE),
    Planted(ByHash, "deterministic", CHANCE),
    Planted(NeedsEveryScore, "observes_every_event", Warned(NOTHING_VALID)),
    Planted(NeedsAJudgement, "observes_every_event", Warned(NOTHING_VALID)),
    Planted(ReadsAMetricOfTheCritic, "observes_every_event", Warned(WITHOUT_CRITIC)),
    Planted(RaisesTheFailureAgain, "observes_every_event", Warned(A_REWARD_FAILS)),
    Planted(EndsTheProcess, "observes_every_event", Refused(says="called sys.exit(0)")),
    Planted(ChangesTheEvent, "observes_every_event", Warned()),
    Planted(TossesInAnObserver, "global_rng_untouched", GLOBAL),
    Planted(SeedsAtItsStart, "global_rng_untouched", GLOBAL),
    Planted(ForgetsWhatItAdds, "state_survives_a_checkpoint", RESUMED),
    Planted(KeepsASet, "state_survives_a_checkpoint", REFUSED),
    Planted(KeepsATensor, "state_survives_a_checkpoint", REFUSED),
    Planted(LoadsNothing, "state_survives_a_checkpoint", RESUMED),
]
"""(plugin, the one check that must fail)."""

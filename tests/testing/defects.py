"""Components that each break one promise, beside the check that must notice.

Every one of them is a mistake that an author could make, in as few lines as it takes.
"""

import random
from dataclasses import replace
from typing import Any

import numpy
import torch

from rlframe.api import (
    AdvantageEstimator,
    AuxiliaryLoss,
    Credit,
    EstimatorNeeds,
    KLController,
    KLState,
    LossTerm,
    Needs,
    PluginConfig,
    PolicyLoss,
    RewardProvider,
    TokenExample,
    TokenLoss,
    ValueLoss,
)
from tests.testing import (
    generator_defects,
    hook_defects,
    sampler_defects,
    stream_defects,
    transform_defects,
)
from tests.testing.expected import (
    ALL_ALIKE,
    ASKED_BY_OTHERS,
    CHANCE,
    GLOBAL,
    IN_DOUBLE,
    INPUT,
    MASKED,
    MEANING,
    NOT_IN_A_RECIPE,
    NOTHING_VALID,
    PARTITION,
    REFUSED,
    RESUMED,
    TIME,
    TOLERATED,
    Planted,
    Refused,
)


class Reward(RewardProvider[PluginConfig]):
    """Right: as many points as characters."""

    def score(self, batch):
        return [float(len(text)) for text in batch.response_texts]


class NeedsMore(Reward):
    def __init__(self, config, context, model):
        super().__init__(config, context)


class Anything(PluginConfig):
    function: Any = None


class LambdaInConfig(RewardProvider[Anything]):
    example = {"function": lambda text: 0.0}  # noqa: RUF012
    score = Reward.score


class TakesAKeyOfTheRecipe(PluginConfig):
    weight: float = 1.0


class ReservedKey(RewardProvider[TakesAKeyOfTheRecipe]):
    score = Reward.score


class OfAnotherVersion(Reward):
    rlframe_api = (1, 0)


class NeedsAFile(Reward):
    """What its constructor raises is no mistake of types."""

    def __init__(self, config, context):
        super().__init__(config, context)
        raise FileNotFoundError("judge.bin")


class NotesAreOneText(Reward):
    def notes(self):
        return "reads one file"


class NotesRaise(Reward):
    def notes(self):
        return [self.no_such_thing]


class Misnamed(RewardProvider[PluginConfig]):
    def scores(self, batch):
        return Reward.score(self, batch)


class ForgetsToReturn(Reward):
    def score(self, batch):
        super().score(batch)


class CannotSave(Reward):
    def state_dict(self):
        return {"seen": self.no_such_thing}


class KeepsItsTokens(Reward):
    def score(self, batch):
        for ids in batch.response_ids:
            ids.sort()
        return super().score(batch)


class TooFew(Reward):
    def score(self, batch):
        return super().score(batch)[:-1]


class Mapped(Reward):
    def score(self, batch):
        return dict(enumerate(super().score(batch)))


class Distinct(Reward):
    """Just as many scores as responses."""

    def score(self, batch):
        return {score + number / 1e3 for number, score in enumerate(super().score(batch))}


class AsTheModelGaveThem(Reward):
    def score(self, batch):
        return torch.tensor(super().score(batch))[:, None]


class Lazy(Reward):
    def score(self, batch):
        return map(float, super().score(batch))


class Later(Reward):
    async def score(self, batch):
        return super().score(batch)


class InWords(Reward):
    def score(self, batch):
        return [str(score) for score in super().score(batch)]


class TooLarge(Reward):
    def score(self, batch):
        return [score * 1e38 for score in super().score(batch)]


class DropsEmptyTexts(Reward):
    def score(self, batch):
        return [float(len(text)) for text in batch.response_texts if text]


class LogOfLength(Reward):
    def score(self, batch):
        return torch.tensor(super().score(batch)).log().nan_to_num(nan=0, neginf=float("nan"))


class NotANumber(Reward):
    def score(self, batch):
        return [len(text) or float("nan") for text in batch.response_texts]


class Whitens(Reward):
    def score(self, batch):
        scores = torch.tensor(super().score(batch))
        return (scores - scores.mean()) / (scores.std() + 1e-6) if len(scores) > 1 else scores


class RunsAverage(Reward):
    def score(self, batch):
        scores, average = [], 0.0
        for score in super().score(batch):
            average = 0.9 * average + 0.1 * score
            scores.append(score - average)
        return scores


class SeedsItself(Reward):
    def score(self, batch):
        noise = random.Random()  # from the operating system
        return [score + noise.random() for score in super().score(batch)]


class MeanOfNothing(Reward):
    def score(self, batch):
        longest = max(super().score(batch))
        assert longest
        return super().score(batch)


class AsciiOnly(Reward):
    def score(self, batch):
        return [float(len(text.encode("ascii"))) for text in batch.response_texts]


class KeepsGraph(Reward):
    def score(self, batch):
        with torch.enable_grad():
            weight = torch.ones((), requires_grad=True)
            return [weight * score for score in super().score(batch)]


class SwitchesGradientsOn(Reward):
    def score(self, batch):
        torch.set_grad_enabled(True)
        return super().score(batch)


class CleansInPlace(Reward):
    def score(self, batch):
        batch.response_texts[:] = [text.strip().lower() for text in batch.response_texts]
        return super().score(batch)


class WritesColumns(Reward):
    def score(self, batch):
        for prompt in batch.prompts:
            prompt.columns["seen"] = True
        return super().score(batch)


class Tosses(Reward):
    def score(self, batch):
        return [score + random.random() for score in super().score(batch)]


class TossesArrays(Reward):
    def score(self, batch):
        return super().score(batch) + numpy.random.rand(len(batch))


class TossesTensors(Reward):
    def score(self, batch):
        return torch.tensor(super().score(batch)) + torch.rand(len(batch))


class Reseeds(Reward):
    def score(self, batch):
        torch.manual_seed(0)
        return super().score(batch)


class ForgetsItsMean(Reward):
    mean = 0.0

    def score(self, batch):
        scores = [score - self.mean for score in super().score(batch)]
        self.mean = sum(super().score(batch)) / max(len(batch), 1)
        return scores


class GroupSpread(Reward):
    """Whitens the samples of each prompt, which may all be the same."""

    def score(self, batch):
        scores = torch.tensor(super().score(batch))
        for group in set(batch.group_ids):
            samples = torch.tensor([other == group for other in batch.group_ids])
            scores[samples] = (scores[samples] - scores[samples].mean()) / scores[samples].std()
        return scores


class HashesText(Reward):
    def score(self, batch):
        return [float(hash(text) % 10) for text in batch.response_texts]


class CachesByResponse(Reward):
    def score(self, batch):
        known = self.__dict__.setdefault("known", {})
        asked = zip(batch.prompts, batch.response_texts, strict=True)
        return [known.setdefault(text, float(len(text + prompt.text))) for prompt, text in asked]


class PadsOnTheLeft(Reward):
    def score(self, batch):
        self.context.tokenizer.padding_side = "left"
        return super().score(batch)


class AddsATokenWhenItIsBuilt(Reward):
    def __init__(self, config, context):
        super().__init__(config, context)
        context.tokenizer.add_tokens(["<score>"])


class SetsTheDefaultType(Reward):
    def score(self, batch):
        torch.set_default_dtype(torch.float64)
        return super().score(batch)


class Amplifies(Reward):
    def gate(self, batch):
        return [float(len(text)) for text in batch.response_texts]


class GatesSome(Reward):
    def gate(self, batch):
        return [0.0 for text in batch.response_texts if not text]


class GatesLater(Reward):
    async def gate(self, batch):
        return [1.0 for text in batch.response_texts]


class CannotSayWhatNoneMeans(Reward):
    @classmethod
    def invalidates(cls, config):
        return config.no_such_key


class Sleeps(Reward):
    def score(self, batch):
        return [float(sum(range(200))) for _ in batch.response_texts]


class Controller(KLController[PluginConfig]):
    """Right: 10 % up above 6 nats per response, in steps that end at the target."""

    target = 6.0

    def error(self, measured):
        return min(max(measured.kl / self.target - 1, -1.0), 1.0)

    def initial(self):
        return KLState(0.1)

    def update(self, state, measured):
        return replace(state, coefficient=state.coefficient * (1 + 0.1 * self.error(measured)))


class InBits(Controller):
    unit = "bits"


class WrongWay(Controller):
    def error(self, measured):
        return -super().error(measured)


class NeverMoves(Controller):
    def update(self, state, measured):
        return state


class AimsElsewhere(Controller):
    def error(self, measured):
        return min(max(measured.kl / 3.0 - 1, -1.0), 1.0)


class Absolute(Controller):
    def error(self, measured):
        return min(max(abs(measured.kl) / self.target - 1, -1.0), 1.0)


class StaysAtZero(Controller):
    def update(self, state, measured):
        return replace(state, coefficient=state.coefficient * (1 + self.error(measured)))


class WindsUp(Controller):
    def initial(self):
        return KLState(0.1, {"integral": 0.0})

    def update(self, state, measured):
        integral = state.memory["integral"] + min(max(measured.kl / self.target - 1, -1.0), 50.0)
        factor = 1 + 0.1 * min(max(integral, -1.0), 1.0)
        return KLState(state.coefficient * factor, {"integral": integral})


class Unclamped(Controller):
    def error(self, measured):
        return measured.kl / self.target - 1


class Negative(Controller):
    def update(self, state, measured):
        return replace(state, coefficient=state.coefficient - (0.2 if measured.kl < 1 else 0.0))


class PaysAtFirst(Controller):
    def initial(self):
        return KLState(-0.1)


class RemembersWords(Controller):
    def initial(self):
        return KLState(0.1, {"phase": "warm-up"})


class Logarithm(Controller):
    def error(self, measured):
        return float(torch.tensor(measured.kl / self.target).log().clamp(-1, 1))


class PoisonedMemory(Controller):
    """Its coefficient is always finite."""

    def initial(self):
        return KLState(0.1, {"log": 0.0})

    def update(self, state, measured):
        log = float(torch.tensor(measured.kl / self.target).log())
        factor = max(0.9, min(1.1, 1 + log))  # NaN loses every comparison
        return KLState(state.coefficient * factor, {"log": log})


class CountsInTheState(Controller):
    """The memory that it is given is the one of the update before."""

    def initial(self):
        return KLState(0.1, {"updates": 0})

    def update(self, state, measured):
        state.memory["updates"] += 1
        return replace(super().update(state, measured), memory=dict(state.memory))


class WaitsToUpdate(Controller):
    async def update(self, state, measured):
        return super().update(state, measured)


class BeginsTooHigh(Controller):
    def initial(self):
        return KLState(1e4)


class SaysAnotherStart(Controller):
    @classmethod
    def initial_coefficient(cls, config):
        return 1e4


class HasNoUpdate(KLController[PluginConfig]):
    def initial(self):
        return KLState(0.1)


class KeepsATuple(Controller):
    def state_dict(self):
        return {"seen": (1, 2)}

    def load_state_dict(self, state):
        """Nothing to take back."""


class KeepsStateOnSelf(Controller):
    average = 0.0

    def update(self, state, measured):
        self.average = 0.5 * self.average + 0.5 * self.error(measured)
        return replace(state, coefficient=state.coefficient * (1 + 0.1 * self.average))


class RemembersATensor(Controller):
    def update(self, state, measured):
        new = super().update(state, measured)
        return replace(new, memory={"kl": torch.tensor(measured.kl)})


class Weighted(PluginConfig):
    weight: float = 0.5


class Loss(AuxiliaryLoss[Weighted]):
    """Right: next-token loss on the rollout."""

    @property
    def coefficient(self):
        return self.config.weight

    def loss(self, policy, batch):
        logprobs = policy.logprobs(batch.tokens, batch.mask)
        return LossTerm(total=-logprobs[batch.mask].sum(), count=batch.mask.sum())


class OwnData(Loss):
    examples_per_step = 4

    def examples(self):
        return [self.context.tokenize(row) for row in self.context.training_rows("reviews")]


class PerToken(Loss):
    def loss(self, policy, batch):
        return LossTerm(-policy.logprobs(batch.tokens, batch.mask), batch.mask.sum())


class LossLater(Loss):
    async def loss(self, policy, batch):
        return super().loss(policy, batch)


class CoefficientInWords(Loss):
    coefficient = "0.5"


class MasksInPlace(Loss):
    def loss(self, policy, batch):
        batch.mask[:, 0] = False
        return super().loss(policy, batch)


class CountsNothingKnown(Loss):
    def count(self, batch):
        return torch.tensor(float("nan"))


class SavesATensor(Loss):
    def state_dict(self):
        return {"mean": torch.zeros(2)}

    def load_state_dict(self, state):
        """Nothing to take back."""


class Detached(Loss):
    def loss(self, policy, batch):
        term = super().loss(policy, batch)
        return replace(term, total=term.total.detach())


class CountsBackwards(Loss):
    def loss(self, policy, batch):
        term = super().loss(policy, batch)
        return replace(term, count=-term.count)

    def count(self, batch):
        return -batch.mask.sum()


class NeverFinite(Loss):
    def loss(self, policy, batch):
        term = super().loss(policy, batch)
        return replace(term, total=term.total / 0)


class DetachesNothing(Loss):
    """Where no token counts, it does not ask the policy, for which the other ranks wait."""

    def loss(self, policy, batch):
        if not batch.mask.any():
            return LossTerm(torch.zeros(()), batch.mask.sum())
        return super().loss(policy, batch)


class CountsExamples(Loss):
    def loss(self, policy, batch):
        return replace(super().loss(policy, batch), count=torch.tensor(float(len(batch.tokens))))


class DetachesHalf(Loss):
    def loss(self, policy, batch):
        logprobs = policy.logprobs(batch.tokens, batch.mask)[batch.mask]
        return LossTerm(-(logprobs * logprobs.detach()).sum(), batch.mask.sum())


class CountsItsWeightTwice(Loss):
    def loss(self, policy, batch):
        term = super().loss(policy, batch)
        return replace(term, total=self.config.weight * term.total)


class MeanPerMicroBatch(Loss):
    def loss(self, policy, batch):
        term = super().loss(policy, batch)
        return LossTerm(term.total / term.count, torch.ones(()))

    def count(self, batch):
        return torch.ones(())


class IgnoresTheMask(Loss):
    def loss(self, policy, batch):
        return LossTerm(-policy.logprobs(batch.tokens).sum(), batch.mask.sum())


class ForgetsTheMaskOfDistributions(Loss):
    def loss(self, policy, batch):
        found = policy.per_token(lambda logp, _: (logp.exp() * logp).sum(-1), batch.tokens)
        return LossTerm(found.sum(), batch.mask.sum())


class ComparesRowsOfAChunk(Loss):
    def loss(self, policy, batch):
        def surprise(logp, _):
            return (logp * logp.exp().mean(0)).sum(-1)

        found = policy.per_token(surprise, batch.tokens, batch.mask)
        return LossTerm(found[batch.mask].sum(), batch.mask.sum())


class HasAFloor(Loss):
    @property
    def coefficient(self):
        return max(self.config.weight, 1e-3)


class TakesHalfAnExample(OwnData):
    examples_per_step = 0.5


class AllContext(OwnData):
    def examples(self):
        return [replace(e, context_tokens=len(e.ids)) for e in super().examples()]


class Once(OwnData):
    def examples(self):
        return iter(super().examples())


class Pairs(OwnData):
    def examples(self):
        return [(e.ids, e.context_tokens) for e in super().examples()]


class BeyondTheEnd(OwnData):
    def examples(self):
        return [replace(e, learned=((1, len(e.ids) + 1),)) for e in super().examples()]


class OtherTokens(OwnData):
    def examples(self):
        return [TokenExample((1, 2, 50_000), 0)]


class ShufflesExamples(OwnData):
    def examples(self):
        examples = super().examples()
        random.Random().shuffle(examples)  # seeded by the operating system
        return examples


class ShufflesGlobally(OwnData):
    def examples(self):
        examples = super().examples()
        random.shuffle(examples)
        return examples


class ReseedsLoss(Loss):
    def loss(self, policy, batch):
        torch.manual_seed(0)
        return super().loss(policy, batch)


class Estimator(AdvantageEstimator[PluginConfig]):
    """Right: what came after."""

    def estimate(self, batch):
        mask = batch.mask
        returns = batch.rewards.masked_fill(~mask, 0).flip(1).cumsum(1).flip(1)
        returns = returns.masked_fill(~mask, 0)
        return Credit(returns - batch.values.masked_fill(~mask, 0), returns)


class Grouped(AdvantageEstimator[PluginConfig]):
    """Right: relative to the mean of the group, without a critic."""

    whiten = False

    @classmethod
    def needs(cls, config):
        return EstimatorNeeds(samples_per_prompt=2, critic=False)

    def counted(self, batch):
        return batch.valid

    def group(self, batch):
        return batch.group_ids

    def estimate(self, batch):
        same = self.group(batch)[:, None] == self.group(batch)[None]
        same = (same & self.counted(batch)[None]).to(batch.rewards)
        means = (same @ batch.totals) / same.sum(1).clamp(min=1)
        found = (batch.totals - means)[:, None].expand(batch.mask.shape)
        return Credit(found.masked_fill(~batch.mask, 0).contiguous())


class CannotSaveAdvantages(Estimator):
    def state_dict(self):
        return [1.0]


class OneAResponse(Estimator):
    def estimate(self, batch):
        found = super().estimate(batch)
        return Credit(found.advantages.sum(1), found.returns.sum(1))


class OneAResponseWhereItFits(Estimator):
    def estimate(self, batch):
        found = super().estimate(batch)
        square = batch.mask.shape[0] == batch.mask.shape[1]
        return Credit(found.advantages.sum(1) if square else found.advantages, found.returns)


class OnlyAdvantages(Estimator):
    def estimate(self, batch):
        return Credit(super().estimate(batch).advantages)


class ReturnsForNobody(Grouped):
    def estimate(self, batch):
        found = super().estimate(batch).advantages
        return Credit(found, found)


class APair(Estimator):
    def estimate(self, batch):
        found = super().estimate(batch)
        return found.advantages, found.returns


class WithGradient(Estimator):
    def estimate(self, batch):
        found = super().estimate(batch)
        return Credit(found.advantages.requires_grad_(), found.returns)


class OneTensor(Estimator):
    def estimate(self, batch):
        return super().estimate(batch).advantages


class Unmasked(Estimator):
    def estimate(self, batch):
        found = super().estimate(batch)
        return Credit(found.advantages - 1.0, found.returns)


class AveragesOverTheWidth(Estimator):
    def estimate(self, batch):
        found = super().estimate(batch)
        centred = found.advantages - found.advantages.mean(1, keepdim=True)
        return Credit(centred.masked_fill(~batch.mask, 0), found.returns)


class ReadsScores(Estimator):
    """Scores are float64 in every run, and rewards seldom."""

    def estimate(self, batch):
        found = super().estimate(batch)
        more = 1e-3 * batch.scores[:, None] * batch.mask
        return Credit(found.advantages + more, found.returns)


class NeedsTheBaseClass(Estimator):
    @classmethod
    def needs(cls, config):
        return Needs()


class CannotSayItsNeeds(Estimator):
    @classmethod
    def needs(cls, config):
        return EstimatorNeeds(critic=config.no_such_key)


class WhitensAdvantages(Estimator):
    def estimate(self, batch):
        found = super().estimate(batch)
        real = found.advantages[batch.mask]
        white = (found.advantages - real.mean()) / (real.std() + 1e-8)
        return Credit(white.masked_fill(~batch.mask, 0), found.returns)


class LeaksOverTheBatch(Grouped):
    def group(self, batch):
        return torch.zeros_like(batch.group_ids)


class GroupsByPlace(Grouped):
    def group(self, batch):
        return torch.arange(len(batch)) // 2


class CountsTheInvalid(Grouped):
    def counted(self, batch):
        return torch.ones_like(batch.valid)


class ReadsTheInvalid(Grouped):
    def estimate(self, batch):
        found = super().estimate(batch).advantages
        return Credit(found - float(batch.scores.mean()) * 1e-3 * batch.mask)


class DividesByTheSpread(Estimator):
    def estimate(self, batch):
        found = super().estimate(batch)
        spread = found.advantages.abs().amax(1, keepdim=True)
        return Credit((found.advantages / spread).masked_fill(~batch.mask, 0), found.returns)


class InPlace(Estimator):
    def estimate(self, batch):
        batch.values[~batch.mask] = 0
        return super().estimate(batch)


class InSingle(Estimator):
    def estimate(self, batch):
        found = super().estimate(batch)
        return Credit(found.advantages.float(), found.returns.float())


class Swapped(Estimator):
    def estimate(self, batch):
        found = super().estimate(batch)
        return Credit(found.returns, found.advantages)


class AddsTheBaseline(Estimator):
    def estimate(self, batch):
        return super().estimate(replace(batch, values=-batch.values))


class TurnsRewards(Estimator):
    def estimate(self, batch):
        return super().estimate(replace(batch, rewards=-batch.rewards))


class TurnsTheGroup(Grouped):
    def estimate(self, batch):
        return Credit(-super().estimate(batch).advantages)


class SumsFromTheLeft(Estimator):
    def estimate(self, batch):
        returns = batch.rewards.masked_fill(~batch.mask, 0).cumsum(1).masked_fill(~batch.mask, 0)
        return Credit(returns - batch.values.masked_fill(~batch.mask, 0), returns)


class ReseedsEstimator(Estimator):
    def estimate(self, batch):
        torch.manual_seed(0)
        return super().estimate(batch)


class Surrogate(PolicyLoss[PluginConfig]):
    """Right: PPO's clip, with a bonus on entropy."""

    def loss(self, batch):
        ratio = (batch.logprobs - batch.old_logprobs).exp()
        bounded = ratio.clamp(0.8, 1.2) * batch.advantages
        loss = -torch.minimum(ratio * batch.advantages, bounded)
        return TokenLoss(loss - 0.01 * batch.entropy, bounded < ratio * batch.advantages)


class OfTheResponse(PolicyLoss[PluginConfig]):
    """Right: one ratio for the whole response, without a bound."""

    def summed(self, x, mask):
        return x.masked_fill(~mask, 0).sum(-1, keepdim=True)

    def loss(self, batch):
        total = self.summed(batch.logprobs - batch.old_logprobs, batch.mask)
        ratio = (total / batch.mask.sum(-1, keepdim=True).clamp(min=1)).exp()
        return TokenLoss(-ratio * batch.advantages.masked_fill(~batch.mask, 0))


class AdvantagesOfThePadding(OfTheResponse):
    """The gradient of a response's ratio is a sum over all of its advantages."""

    def loss(self, batch):
        total = self.summed(batch.logprobs - batch.old_logprobs, batch.mask)
        return TokenLoss(-total.exp() * batch.advantages)


class CannotTakeItsStateBack(Surrogate):
    def state_dict(self):
        return {"steps": 1}


class PolicyLossLater(Surrogate):
    async def loss(self, batch):
        return super().loss(batch)


class MeanLoss(Surrogate):
    def loss(self, batch):
        return TokenLoss(super().loss(batch).loss[batch.mask].mean())


class OneLossAResponse(Surrogate):
    def loss(self, batch):
        return TokenLoss(super().loss(batch).loss.masked_fill(~batch.mask, 0).sum(-1))


class LossAndClipped(Surrogate):
    def loss(self, batch):
        term = super().loss(batch)
        return term.loss, term.clipped


class DetachedLoss(Surrogate):
    def loss(self, batch):
        return TokenLoss(super().loss(batch).loss.detach())


class ClippedInNumbers(Surrogate):
    def loss(self, batch):
        term = super().loss(batch)
        return replace(term, clipped=term.clipped.float())


class InDouble(Surrogate):
    def loss(self, batch):
        return TokenLoss(super().loss(batch).loss.double())


class NothingWithoutTokens(Surrogate):
    def loss(self, batch):
        found = super().loss(batch)
        return found if batch.mask.any() else TokenLoss(torch.zeros_like(batch.advantages))


class TurnsAdvantages(Surrogate):
    def loss(self, batch):
        return super().loss(replace(batch, advantages=-batch.advantages))


class RatioUpsideDown(Surrogate):
    def loss(self, batch):
        return super().loss(
            replace(batch, logprobs=batch.old_logprobs, old_logprobs=batch.logprobs)
        )


class DetachesTheRatio(Surrogate):
    """It has a gradient, that of entropy."""

    def loss(self, batch):
        return super().loss(replace(batch, logprobs=batch.logprobs.detach()))


class ZeroIsBad(Surrogate):
    def loss(self, batch):
        signs = torch.where(batch.advantages > 0, 1.0, -1.0).to(batch.advantages)
        return super().loss(replace(batch, advantages=signs))


class ClippedWhereEqual(Surrogate):
    def loss(self, batch):
        ratio = (batch.logprobs - batch.old_logprobs).exp()
        return replace(super().loss(batch), clipped=ratio.clamp(0.8, 1.2) <= ratio)


class SumsThePadding(OfTheResponse):
    def summed(self, x, mask):
        return x.sum(-1, keepdim=True)


class MultipliesByTheMask(OfTheResponse):
    def summed(self, x, mask):
        return (x * mask).sum(-1, keepdim=True)


class CountsThePadding(OfTheResponse):
    def loss(self, batch):
        total = self.summed(batch.logprobs - batch.old_logprobs, batch.mask)
        return TokenLoss(-(total / batch.mask.shape[1]).exp() * batch.advantages)


class WhitensTheMicroBatch(Surrogate):
    def loss(self, batch):
        mean = batch.advantages[batch.mask].sum() / batch.mask.sum().clamp(min=1)
        return super().loss(replace(batch, advantages=batch.advantages - mean))


class DividesByTheCount(Surrogate):
    def loss(self, batch):
        return TokenLoss(super().loss(batch).loss / batch.mask.sum().clamp(min=1))


class CountsRows(Surrogate):
    def loss(self, batch):
        return TokenLoss(super().loss(batch).loss / len(batch.mask))


class KeepsABaseline(Surrogate):
    baseline = 0.0

    def loss(self, batch):
        found = super().loss(replace(batch, advantages=batch.advantages - self.baseline))
        real = batch.advantages[batch.mask]
        self.baseline = 0.9 * self.baseline + 0.1 * float(real.mean()) if len(real) else 0.0
        return found


class AddsNoise(Surrogate):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.generator = torch.Generator().manual_seed(context.seed)

    def loss(self, batch):
        noise = torch.randn(batch.mask.shape, generator=self.generator).to(batch.advantages)
        return super().loss(replace(batch, advantages=batch.advantages * (1 + 0.1 * noise)))


class ByTheLargestAdvantage(Surrogate):
    def loss(self, batch):
        largest = batch.advantages.masked_fill(~batch.mask, 0).abs().amax(-1, keepdim=True)
        return super().loss(replace(batch, advantages=batch.advantages / largest))


class Overflows(Surrogate):
    """The ratio to the fourth, of which float32 holds no more than e^22."""

    def loss(self, batch):
        return TokenLoss(-(batch.logprobs - batch.old_logprobs).mul(4).exp() * batch.advantages)


class ClampsInPlace(Surrogate):
    def loss(self, batch):
        batch.advantages.clamp_(-1, 1)
        return super().loss(batch)


class ScalesLogprobsInPlace(Surrogate):
    def loss(self, batch):
        found = super().loss(replace(batch, logprobs=batch.logprobs.clone()))
        batch.logprobs.mul_(0.5)
        return found


class ReseedsPolicyLoss(Surrogate):
    def loss(self, batch):
        torch.manual_seed(0)
        return super().loss(batch)


class Squared(ValueLoss[PluginConfig]):
    """Right: squared error, no smaller than that of values near the old ones."""

    def loss(self, batch):
        near = batch.old_values + (batch.values - batch.old_values).clamp(-0.2, 0.2)
        errors = [(x - batch.returns) ** 2 for x in (batch.values, near)]
        return TokenLoss(torch.maximum(*errors) / 2, errors[1] > errors[0])


class AbsoluteError(ValueLoss[PluginConfig]):
    """Right: absolute error, which bounds nothing."""

    def loss(self, batch):
        return TokenLoss((batch.values - batch.returns).abs())


class SavesAnArray(Squared):
    def state_dict(self):
        return {"spread": numpy.float64(1.0)}

    def load_state_dict(self, state):
        """Nothing to take back."""


class MeanError(Squared):
    def loss(self, batch):
        return TokenLoss(super().loss(batch).loss.mean())


class ErrorAlone(Squared):
    def loss(self, batch):
        return super().loss(batch).loss


class DetachedError(Squared):
    def loss(self, batch):
        return super().loss(replace(batch, values=batch.values.detach()))


class ErrorInSingle(Squared):
    def loss(self, batch):
        return TokenLoss(super().loss(batch).loss.float())


class TurnsTheError(Squared):
    def loss(self, batch):
        return TokenLoss(-super().loss(batch).loss)


class LearnsOldValues(Squared):
    def loss(self, batch):
        return TokenLoss((batch.old_values - batch.returns) ** 2 + 0 * batch.values)


class PullsToZero(Squared):
    def loss(self, batch):
        return TokenLoss(super().loss(batch).loss + 0.01 * batch.values**2)


class CentresOnThePadding(Squared):
    def loss(self, batch):
        error = batch.values - batch.returns
        return TokenLoss((error - 0.1 * error.mean(-1, keepdim=True)) ** 2)


class ScalesByTheBatch(Squared):
    def loss(self, batch):
        real = batch.returns[batch.mask]
        spread = (real - real.mean()).square().mean() if len(real) else 0.0
        return TokenLoss(super().loss(batch).loss / (spread + 1.0))


class ScalesByARunningSpread(Squared):
    spread = 1.0

    def loss(self, batch):
        found = TokenLoss(super().loss(batch).loss / self.spread)
        real = batch.returns[batch.mask]
        self.spread = 0.9 * self.spread + 0.1 * float(real.square().sum() + 1)
        return found


class RootOfTheSquare(Squared):
    def loss(self, batch):
        return TokenLoss((batch.values - batch.returns).square().sqrt())


class RelativeError(Squared):
    def loss(self, batch):
        return TokenLoss((batch.values / batch.returns - 1) ** 2)


class ReturnsInPlace(Squared):
    def loss(self, batch):
        batch.returns.clamp_(-1, 1)
        return super().loss(batch)


class DropsTokens(Squared):
    def loss(self, batch):
        return TokenLoss(torch.nn.functional.dropout(super().loss(batch).loss))


RIGHT = (
    Reward,
    Controller,
    Loss,
    OwnData,
    Estimator,
    Grouped,
    Surrogate,
    OfTheResponse,
    Squared,
    AbsoluteError,
    *stream_defects.RIGHT,
    *transform_defects.RIGHT,
    *sampler_defects.RIGHT,
    *generator_defects.RIGHT,
    *hook_defects.RIGHT,
)

PLANTED = {
    "data_generators": generator_defects.PLANTED,
    "hooks": hook_defects.PLANTED,
    "reward_providers": [
        Planted(ReservedKey, "builds_from_config", Refused(says="its config declares weight")),
        Planted(
            OfAnotherVersion, "builds_from_config", Refused(says="is written for plugin API 1.0")
        ),
        Planted(NeedsAFile, "builds_from_config", REFUSED),
        Planted(NotesAreOneText, "notes_are_sentences", REFUSED),
        Planted(NotesRaise, "notes_are_sentences", REFUSED),
        Planted(Misnamed, "one_value_a_response", REFUSED),
        Planted(ForgetsToReturn, "one_value_a_response", REFUSED),
        Planted(CannotSave, "state_survives_a_checkpoint", REFUSED),
        Planted(KeepsItsTokens, "no_mutation", REFUSED),
        Planted(GatesLater, "gate_from_0_to_1", REFUSED),
        Planted(CannotSayWhatNoneMeans, "gate_from_0_to_1", REFUSED),
        Planted(NeedsMore, "builds_from_config", REFUSED),
        Planted(LambdaInConfig, "picklable_config", NOT_IN_A_RECIPE),
        Planted(TooFew, "one_value_a_response", REFUSED),
        Planted(DropsEmptyTexts, "one_value_a_response", REFUSED),
        Planted(Mapped, "one_value_a_response", REFUSED),
        Planted(Distinct, "one_value_a_response", REFUSED),
        Planted(AsTheModelGaveThem, "one_value_a_response", REFUSED),
        Planted(Lazy, "one_value_a_response", REFUSED),
        Planted(Later, "one_value_a_response", REFUSED),
        Planted(InWords, "one_value_a_response", REFUSED),
        Planted(TooLarge, "finite", REFUSED),
        Planted(LogOfLength, "finite", REFUSED),
        Planted(NotANumber, "finite", REFUSED),
        Planted(Whitens, "batch_split_invariance", PARTITION),
        Planted(RunsAverage, "permutation_equivariance", PARTITION),
        Planted(SeedsItself, "deterministic_under_a_seed", CHANCE),
        Planted(MeanOfNothing, "empty_batch", ASKED_BY_OTHERS),
        Planted(
            AsciiOnly, "unicode_and_very_long_text", Refused(says="'ascii' codec can't encode")
        ),
        Planted(KeepsGraph, "no_gradient", REFUSED),
        Planted(SwitchesGradientsOn, "no_gradient", REFUSED),
        Planted(CleansInPlace, "no_mutation", REFUSED),
        Planted(WritesColumns, "no_mutation", REFUSED),
        Planted(Tosses, "global_rng_untouched", GLOBAL),
        Planted(TossesArrays, "global_rng_untouched", GLOBAL),
        Planted(TossesTensors, "global_rng_untouched", GLOBAL),
        Planted(Reseeds, "global_rng_untouched", GLOBAL),
        Planted(ForgetsItsMean, "state_survives_a_checkpoint", RESUMED),
        Planted(GroupSpread, "finite", Refused({"ppo.updates": 2})),
        Planted(HashesText, "deterministic_under_a_seed", CHANCE),
        Planted(CachesByResponse, "state_survives_a_checkpoint", RESUMED),
        Planted(PadsOnTheLeft, "surroundings_untouched", REFUSED),
        Planted(AddsATokenWhenItIsBuilt, "surroundings_untouched", REFUSED),
        Planted(SetsTheDefaultType, "surroundings_untouched", REFUSED),
        Planted(Amplifies, "gate_from_0_to_1", REFUSED),
        Planted(GatesSome, "gate_from_0_to_1", REFUSED),
        Planted(Sleeps, "time_per_thousand", TIME),
    ],
    "reward_transforms": transform_defects.PLANTED,
    "samplers": sampler_defects.PLANTED,
    "kl_controllers": [
        Planted(CountsInTheState, "state_round_trip", REFUSED),
        Planted(WaitsToUpdate, "direction", REFUSED),
        Planted(
            BeginsTooHigh,
            "bound",
            Refused(says="starts with a coefficient of 10000, above kl.maximum"),
        ),
        Planted(SaysAnotherStart, "bound", Refused(says="10000")),
        Planted(HasNoUpdate, "direction", REFUSED),
        Planted(KeepsATuple, "state_can_be_kept", REFUSED),
        Planted(InBits, "unit_declared", REFUSED),
        Planted(WrongWay, "direction", MEANING),
        Planted(NeverMoves, "direction", MEANING),
        Planted(Absolute, "direction", MEANING),
        Planted(StaysAtZero, "comes_back", MEANING),
        Planted(WindsUp, "comes_back", MEANING),
        Planted(AimsElsewhere, "fixed_point", MEANING),
        Planted(Unclamped, "bound", MEANING),
        Planted(Negative, "bound", REFUSED),
        Planted(PaysAtFirst, "bound", REFUSED),
        Planted(RemembersWords, "state_round_trip", REFUSED),
        Planted(Logarithm, "finite_under_any_kl", INPUT),
        Planted(PoisonedMemory, "finite_under_any_kl", TOLERATED),
        Planted(KeepsStateOnSelf, "state_round_trip", RESUMED),
        Planted(RemembersATensor, "state_round_trip", REFUSED),
    ],
    "auxiliary_losses": [
        Planted(LossLater, "a_sum_and_its_count", REFUSED),
        Planted(CoefficientInWords, "a_sum_and_its_count", REFUSED),
        Planted(MasksInPlace, "inputs_untouched", REFUSED),
        Planted(CountsNothingKnown, "a_sum_and_its_count", REFUSED),
        Planted(SavesATensor, "state_can_be_kept", REFUSED),
        Planted(TakesHalfAnExample, "examples_can_be_learned_from", REFUSED),
        Planted(PerToken, "a_sum_and_its_count", REFUSED),
        Planted(CountsExamples, "a_sum_and_its_count", REFUSED),
        Planted(Detached, "a_sum_and_its_count", REFUSED),
        Planted(CountsBackwards, "a_sum_and_its_count", REFUSED),
        Planted(NeverFinite, "a_sum_and_its_count", Refused(says="inf")),
        Planted(DetachesNothing, "mask_respected", Refused(NOTHING_VALID)),
        Planted(Once, "examples_can_be_learned_from", REFUSED),
        Planted(Pairs, "examples_can_be_learned_from", REFUSED),
        Planted(BeyondTheEnd, "examples_can_be_learned_from", REFUSED),
        Planted(DetachesHalf, "gradient_is_that_of_finite_differences", MEANING),
        Planted(CountsItsWeightTwice, "linear_in_the_coefficient", MEANING),
        Planted(MeanPerMicroBatch, "micro_batch_split_invariance", PARTITION),
        Planted(IgnoresTheMask, "mask_respected", MASKED),
        Planted(ForgetsTheMaskOfDistributions, "mask_respected", MASKED),
        Planted(ComparesRowsOfAChunk, "micro_batch_split_invariance", PARTITION),
        Planted(HasAFloor, "zero_weight_costs_no_forward", MEANING),
        Planted(AllContext, "examples_can_be_learned_from", REFUSED),
        Planted(OtherTokens, "examples_can_be_learned_from", REFUSED),
        Planted(ShufflesExamples, "examples_can_be_learned_from", CHANCE),
        Planted(ShufflesGlobally, "global_rng_untouched", GLOBAL),
        *stream_defects.PLANTED,
        Planted(ReseedsLoss, "global_rng_untouched", GLOBAL),
    ],
    "advantage_estimators": [
        Planted(CannotSaveAdvantages, "state_can_be_kept", Refused(says="returned [1.0]")),
        Planted(ReadsScores, "shapes", REFUSED),
        Planted(NeedsTheBaseClass, "builds_from_config", Refused(says="instead of EstimatorNeeds")),
        Planted(
            CannotSayItsNeeds, "builds_from_config", Refused(says="no attribute 'no_such_key'")
        ),
        Planted(OneAResponse, "shapes", REFUSED),
        Planted(OneTensor, "shapes", REFUSED),
        Planted(OneAResponseWhereItFits, "shapes", REFUSED),
        Planted(OnlyAdvantages, "shapes", REFUSED),
        Planted(ReturnsForNobody, "shapes", REFUSED),
        Planted(APair, "shapes", REFUSED),
        Planted(WithGradient, "shapes", REFUSED),
        Planted(InSingle, "shapes", Refused(IN_DOUBLE)),
        Planted(Unmasked, "zero_outside_the_mask", REFUSED),
        Planted(AveragesOverTheWidth, "padding_changes_nothing", PARTITION),
        Planted(WhitensAdvantages, "groups_are_independent", PARTITION),
        Planted(LeaksOverTheBatch, "groups_are_independent", PARTITION),
        Planted(GroupsByPlace, "groups_are_independent", PARTITION),
        Planted(CountsTheInvalid, "invalid_responses_count_for_nothing", PARTITION),
        Planted(ReadsTheInvalid, "invalid_responses_count_for_nothing", PARTITION),
        Planted(DividesByTheSpread, "finite", Refused(ALL_ALIKE)),
        Planted(InPlace, "inputs_untouched", REFUSED),
        Planted(Swapped, "direction", MEANING),
        Planted(AddsTheBaseline, "direction", MEANING),
        Planted(TurnsRewards, "direction", MEANING),
        Planted(TurnsTheGroup, "direction", MEANING),
        Planted(SumsFromTheLeft, "direction", MEANING),
        Planted(ReseedsEstimator, "global_rng_untouched", GLOBAL),
    ],
    "policy_losses": [
        Planted(CannotTakeItsStateBack, "state_can_be_kept", RESUMED),
        Planted(PolicyLossLater, "shapes", REFUSED),
        Planted(MeanLoss, "shapes", REFUSED),
        Planted(OneLossAResponse, "shapes", REFUSED),
        Planted(LossAndClipped, "shapes", REFUSED),
        Planted(DetachedLoss, "shapes", REFUSED),
        Planted(ClippedInNumbers, "shapes", REFUSED),
        Planted(InDouble, "shapes", REFUSED),
        Planted(NothingWithoutTokens, "shapes", Refused(NOTHING_VALID)),
        Planted(TurnsAdvantages, "direction", MEANING),
        Planted(RatioUpsideDown, "direction", MEANING),
        Planted(DetachesTheRatio, "direction", MEANING),
        Planted(ZeroIsBad, "no_advantage_no_gradient", MEANING),
        Planted(ClippedWhereEqual, "nothing_clipped_at_ratio_1", MEANING),
        Planted(SumsThePadding, "padding_changes_nothing", MASKED),
        Planted(MultipliesByTheMask, "padding_changes_nothing", MASKED),
        Planted(AdvantagesOfThePadding, "padding_changes_nothing", MASKED),
        Planted(CountsThePadding, "responses_are_independent", PARTITION),
        Planted(WhitensTheMicroBatch, "responses_are_independent", PARTITION),
        Planted(DividesByTheCount, "responses_are_independent", PARTITION),
        Planted(CountsRows, "responses_are_independent", PARTITION),
        Planted(KeepsABaseline, "remembers_nothing", RESUMED),
        Planted(AddsNoise, "remembers_nothing", RESUMED),
        Planted(ByTheLargestAdvantage, "finite", INPUT),
        Planted(Overflows, "finite", INPUT),
        Planted(ClampsInPlace, "inputs_untouched", REFUSED),
        Planted(ScalesLogprobsInPlace, "inputs_untouched", REFUSED),
        Planted(ReseedsPolicyLoss, "global_rng_untouched", GLOBAL),
    ],
    "value_losses": [
        Planted(SavesAnArray, "state_can_be_kept", REFUSED),
        Planted(MeanError, "shapes", REFUSED),
        Planted(ErrorAlone, "shapes", REFUSED),
        Planted(DetachedError, "shapes", REFUSED),
        Planted(ErrorInSingle, "shapes", Refused(IN_DOUBLE)),
        Planted(TurnsTheError, "direction", MEANING),
        Planted(LearnsOldValues, "direction", MEANING),
        Planted(PullsToZero, "no_error_no_gradient", MEANING),
        Planted(CentresOnThePadding, "padding_changes_nothing", MASKED),
        Planted(ScalesByTheBatch, "responses_are_independent", PARTITION),
        Planted(ScalesByARunningSpread, "remembers_nothing", RESUMED),
        Planted(RootOfTheSquare, "finite", INPUT),
        Planted(RelativeError, "finite", INPUT),
        Planted(ReturnsInPlace, "inputs_untouched", REFUSED),
        Planted(DropsTokens, "global_rng_untouched", GLOBAL),
    ],
}
"""Kind -> (component, the check that must fail)."""

"""The loss of a micro-batch by hand, with models whose outputs are given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlframe.api import (
    AuxiliaryLoss,
    LossTerm,
    PluginConfig,
    PolicyLoss,
    PolicyLossBatch,
    TokenBatch,
    TokenLoss,
)
from rlframe.api.component import Instance
from rlframe.builtin.policy_losses import Clip
from rlframe.builtin.value_losses import Clipped
from rlframe.engine.experience import Experience
from rlframe.engine.objective import (
    MicroBatch,
    Normaliser,
    NothingCountedWarning,
    Objective,
)
from rlframe.errors import RunError
from rlframe.models.actor_critic import TokenOutputs
from rlframe.registry.relay import Relay
from tests.playing import part

UP, DOWN = math.log(1.5), math.log(0.5)
PADDING = 99.0


def row(*values: float) -> Tensor:
    """One response of two tokens; in the padding stands what nobody may read."""
    return torch.tensor([[*values, PADDING]], dtype=torch.float64)


class Models(nn.Module):
    """A policy and a critic whose outputs are parameters. The policy has moved since the rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.logprobs = nn.Parameter(row(-1 + UP, -2 + DOWN))
        self.values = nn.Parameter(row(1.0, 3.0))
        self.policy = "the policy"

    def evaluate(self, _: Any) -> TokenOutputs:
        return TokenOutputs(self.logprobs, row(0.5, 0.7), self.values)


def experience() -> Experience:
    nothing: Any = None
    return Experience(
        sequences=nothing,
        mask=torch.tensor([[True, True, False]]),
        logprobs=row(-1.0, -2.0),
        reference=row(-1.5, -1.0),
        values=row(0.5, 1.0),
        kl=row(0.0, 0.0),
        rewards=row(0.0, 0.0),
        advantages=row(2.0, -1.0),
        returns=row(2.0, 1.0),
        schedule=nothing,
        update=0,
    )


# Ratios 1.5 and 0.5 leave 0.8 to 1.2: -min(1.5 * 2, 1.2 * 2) and -min(0.5 * -1, 0.8 * -1).
POLICY = -2.4 + 0.8
# Values of 1 and 3 are bounded to 0.5 + 0.2 and 1 + 0.2: half of (0.7 - 2)² and of (3 - 1)².
VALUE = 0.5 * 1.69 + 0.5 * 4
TOKENS = 4.0  # of the whole optimiser step


class Total(AuxiliaryLoss[PluginConfig]):
    """Adds up the first tokens of its texts, with the weight of the policy's first logit."""

    coefficient = 2.0

    def loss(self, policy: Any, batch: TokenBatch) -> LossTerm:
        assert policy == "the policy"
        return LossTerm(MODELS[0].logprobs[0, 0] * batch.tokens[:, 0].sum(), batch.mask.sum())


MODELS: list[Models] = []


@pytest.fixture(autouse=True)
def models() -> Models:
    MODELS[:] = [Models()]
    return MODELS[0]


def objective(**changed: Any) -> Objective:
    usual: dict[str, Any] = {
        "relay": Relay(),
        "auxiliary": (),
        "policy": part("policy_loss", Clip, clip=changed.pop("clip", 0.2)),
        "value": part("value_loss", Clipped, clip=0.2),
        "value_coefficient": 0.5,
        "reduction": "token",
        "max_new_tokens": 5,
        "kl_loss": None,
    }
    return Objective(**(usual | changed))


def loss_of(models: Models, found: Objective, auxiliary: Any = None, over: Any = None) -> Any:
    batch = MicroBatch(experience(), auxiliary or {})
    over = over or Normaliser(TOKENS, TOKENS, {"total": 8.0})
    return found(models, batch, over, 0.3)  # type: ignore[arg-type]


def test_the_loss_is_that_of_policy_and_value_over_the_tokens_of_the_step(models: Models) -> None:
    loss, _ = loss_of(models, objective())
    assert loss.item() == pytest.approx((POLICY + 0.5 * VALUE) / TOKENS, rel=1e-12)


def test_its_gradient_is_0_where_a_clip_is_active(models: Models) -> None:
    loss_of(models, objective())[0].backward()
    assert models.logprobs.grad is not None
    assert models.values.grad is not None
    assert models.logprobs.grad.tolist() == [[0.0, 0.0, 0.0]]
    # The first value lies beyond its bounds; the second one's plain error is larger: 0.5 (3 - 1) / 4.
    assert models.values.grad.tolist() == [[0.0, 0.25, 0.0]]


def test_the_gradient_of_the_policy_within_the_clip(models: Models) -> None:
    loss_of(models, objective(clip=0.6))[0].backward()
    assert models.logprobs.grad is not None
    # -ρ A / tokens
    assert models.logprobs.grad.tolist()[0] == pytest.approx([-1.5 * 2 / 4, 0.5 / 4, 0], rel=1e-12)


def test_kl_as_a_loss_has_the_value_of_its_estimator_and_its_coefficient(models: Models) -> None:
    plain, _ = loss_of(models, objective())
    loss, meter = loss_of(models, objective(kl_loss="k1"))
    kl = (-1 + UP + 1.5) + (-2 + DOWN + 1.0)
    assert (loss - plain).item() == pytest.approx(0.3 * kl / TOKENS, rel=1e-12)
    assert meter.means(lambda x: x)["loss/kl_avg"] == pytest.approx(kl / 2, rel=1e-12)


def test_the_gradient_of_kl_as_a_loss_has_the_ratio(models: Models) -> None:
    loss_of(models, objective(kl_loss="k1", value_coefficient=0.0))[0].backward()
    assert models.logprobs.grad is not None
    # β ρ log(π / π_ref) / tokens, where the clipped policy loss has no gradient
    expected = [0.3 * 1.5 * (UP + 0.5) / 4, 0.3 * 0.5 * (DOWN - 1.0) / 4, 0.0]
    assert models.logprobs.grad.tolist()[0] == pytest.approx(expected, rel=1e-12)


def test_metrics_are_means_over_the_tokens_by_hand(models: Models) -> None:
    _, meter = loss_of(models, objective())
    assert meter.means(lambda x: x) == pytest.approx(
        {
            "policy/approxkl_avg": 0.5 * (UP**2 + DOWN**2) / 2,
            "policy/clipfrac_avg": 1.0,
            "policy/entropy_avg": 0.6,
            "loss/policy_avg": POLICY / 2,
            "loss/value_avg": VALUE / 2,
            "val/clipfrac_avg": 0.5,
            "val/ratio": 1.0,
            "ratio_square": 0.25,
        },
        rel=1e-12,
    )


def tokens(first: int) -> TokenBatch:
    return TokenBatch(torch.tensor([[first, 5]]), torch.tensor([[True]]))


def auxiliary() -> Instance[AuxiliaryLoss[Any]]:
    context: Any = None
    return Instance("total", "total (dist 1.0)", Total(PluginConfig(), context))


def test_an_auxiliary_loss_adds_its_coefficient_times_its_total_over_its_count(
    models: Models,
) -> None:
    plain, _ = loss_of(models, objective())
    loss, meter = loss_of(models, objective(auxiliary=(auxiliary(),)), {"total": tokens(3)})
    total = models.logprobs[0, 0].item() * 3
    assert (loss - plain).item() == pytest.approx(2 * total / 8, rel=1e-12)
    assert meter.means(lambda x: x)["loss/total_avg"] == pytest.approx(total, rel=1e-12)


def test_without_tokens_in_this_micro_batch_it_is_not_asked(models: Models) -> None:
    plain, _ = loss_of(models, objective())
    loss, meter = loss_of(models, objective(auxiliary=(auxiliary(),)), {})
    assert loss.item() == plain.item()
    assert "loss/total_avg" not in meter.means(lambda x: x)


def test_a_micro_batch_without_responses_has_the_auxiliary_loss_alone(models: Models) -> None:
    batch = MicroBatch(None, {"total": tokens(3)})
    over = Normaliser(TOKENS, TOKENS, {"total": 8.0})
    loss, meter = objective(auxiliary=(auxiliary(),))(models, batch, over, 0.3)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(2 * 3 * models.logprobs[0, 0].item() / 8, rel=1e-12)
    assert meter.means(lambda x: x).keys() == {"loss/total_avg"}


def test_a_loss_that_counts_nothing_in_the_step_adds_nothing_but_reaches_autograd(
    models: Models,
) -> None:
    plain, _ = loss_of(models, objective())
    found = objective(auxiliary=(auxiliary(),))
    nothing = Normaliser(TOKENS, TOKENS, {"total": 0.0})
    with pytest.warns(NothingCountedWarning, match="total .* counts nothing in this optimiser"):
        loss, _ = loss_of(models, found, {"total": tokens(3)}, nothing)
    assert loss.item() == plain.item()
    assert loss.requires_grad


class Sometimes(PolicyLoss[PluginConfig]):
    """Says where it is bounded every other time."""

    calls = 0

    def loss(self, batch: PolicyLossBatch) -> TokenLoss:
        self.calls += 1
        return TokenLoss(-batch.logprobs, batch.mask if self.calls % 2 else None)


class AfterAll(Sometimes):
    """Begins without."""

    calls = 1


@pytest.mark.parametrize("loss", [Sometimes, AfterAll])
def test_a_loss_that_says_only_sometimes_where_it_was_clipped_ends_the_run(
    models: Models, loss: type[Sometimes]
) -> None:
    """Each rank's metrics would have other names, and be summed with those of another name."""
    found = objective(policy=part("policy_loss", loss))
    loss_of(models, found)
    with pytest.raises(RunError, match=r"'policy_loss' of type .* for another"):
        loss_of(models, found)


@pytest.mark.parametrize(
    ("reduction", "weight", "count"),
    [("token", 1, 4), ("sequence", 1 / 2, 3), ("constant", 1 / 5, 3)],
)
def test_a_reduction_is_a_weight_and_a_count(
    models: Models, reduction: str, weight: float, count: float
) -> None:
    """KL as a loss is weighed as the policy's loss is; the critic's loss always counts tokens."""
    found = objective(reduction=reduction, kl_loss="k1")
    loss, _ = loss_of(models, found, over=Normaliser(TOKENS, count, {}))
    kl = (-1 + UP + 1.5) + (-2 + DOWN + 1.0)
    policy = weight * (POLICY + 0.3 * kl) / count
    assert loss.item() == pytest.approx(policy + 0.5 * VALUE / TOKENS, rel=1e-12)
    mask = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    assert float(found.count(mask)) == (5 if reduction == "token" else 2)


def test_without_a_critic_neither_its_loss_nor_its_metrics_exist(models: Models) -> None:
    models.evaluate = lambda _: TokenOutputs(models.logprobs, row(0.5, 0.7), None)  # type: ignore[method-assign]
    loss, meter = loss_of(models, objective(value=None))
    assert loss.item() == pytest.approx(POLICY / TOKENS, rel=1e-12)
    assert not {"loss/value_avg", "val/clipfrac_avg"} & meter.means(lambda x: x).keys()

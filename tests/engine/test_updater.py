"""One optimiser step gives the same gradient however it is cut, and refuses what is not finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlframe.api import (
    AuxiliaryLoss,
    Credit,
    CreditBatch,
    EstimatorNeeds,
    LossTerm,
    PluginConfig,
    TokenExample,
)
from rlframe.api.component import Instance
from rlframe.builtin.losses import PTX, SFT, PTXConfig, SFTConfig
from rlframe.builtin.policy_losses import Clip
from rlframe.builtin.value_losses import Clipped
from rlframe.distributed.runtime import Runtime
from rlframe.engine.auxiliary import AuxiliaryData
from rlframe.engine.batching import Schedule
from rlframe.engine.evaluation import Models
from rlframe.engine.experience import Experience, ExperienceBuilder
from rlframe.engine.metrics import Meter
from rlframe.engine.objective import NothingCountedWarning, Objective
from rlframe.engine.scoring import Scores
from rlframe.engine.stream_reader import StreamReader
from rlframe.engine.streams import Shuffled, token_batch
from rlframe.engine.updater import (
    MemoryWarning,
    PolicyUpdater,
    SkippedUpdateWarning,
    UpdateSettings,
    learning_rate_factor,
)
from rlframe.errors import OutOfMemoryError, RunError
from rlframe.functional.advantages import gae
from rlframe.models.actor_critic import ActorCritic, Critic, SharedCritic
from rlframe.models.loading import scalar_model_from, value_head
from rlframe.models.policy import Policy
from rlframe.registry.relay import Relay
from rlframe.rollout.packing import pack
from rlframe.types import Prompt, Rollout, StopReason
from tests.playing import part

RUNTIME = Runtime(device="cpu")
RELAY = Relay()
LENGTHS = (1, 7, 3, 2, 9, 4, 5, 1)


def rollout() -> Rollout:
    generator = torch.Generator().manual_seed(0)
    responses = [torch.randint(3, 250, (n,), generator=generator).tolist() for n in LENGTHS]
    prompts = tuple(Prompt("p", tuple([1] + [5] * (i % 3))) for i in range(len(LENGTHS)))
    return Rollout(
        sequences=pack([p.ids for p in prompts], responses, device=torch.device("cpu")),
        prompts=prompts,
        texts=("",) * len(LENGTHS),
        stop_reasons=(StopReason.LENGTH,) * len(LENGTHS),
        group_ids=tuple(range(len(LENGTHS))),
        samples=tuple(range(len(LENGTHS))),
        update=0,
    )


class Entropyish(AuxiliaryLoss[PluginConfig]):
    """A loss on the rollout itself: minus the log-probability of the sampled tokens."""

    coefficient = 0.3

    def loss(self, policy: Any, batch: Any) -> LossTerm:
        logprobs = policy.logprobs(batch.tokens)
        return LossTerm(-(logprobs * batch.mask).sum(), batch.mask.sum())


EXAMPLES = [TokenExample((1, *range(10, 10 + n), 2), n // 2) for n in (3, 11, 1, 6, 2)]


@pytest.fixture
def language_model(language_model: Any) -> Any:
    """With weights of a usual size: at 0.5, attention alone turns float32's rounding into 1.3e-6."""
    return partial(language_model, initializer_range=0.2)


class Stream:
    """Examples one after the other, from a cursor, without an end that is reached."""

    def __init__(self, given: list[TokenExample]) -> None:
        self.given, self.cursor = given, 0

    def __iter__(self) -> Iterator[TokenExample]:
        while self.cursor < len(self.given):
            self.cursor += 1
            yield self.given[self.cursor - 1]

    def state_dict(self) -> dict[str, int]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.cursor = state["cursor"]


def auxiliaries() -> list[AuxiliaryData]:
    context: Any = None
    ptx = PTX(PTXConfig(data="x", gamma=0.5, examples_per_step=5), context)
    sft = SFT(SFTConfig(data="x", coefficient=2.0, examples_per_step=3), context)
    own = Entropyish(PluginConfig(), context)
    return [
        AuxiliaryData(Instance("ptx", "ptx", ptx), Shuffled(EXAMPLES, key=(0, "ptx"))),
        AuxiliaryData(Instance("sft", "sft", sft), Shuffled(EXAMPLES, key=(0, "sft"))),
        AuxiliaryData(Instance("own", "own", own), None),
    ]


def actor_critic(
    make: Callable[..., Any], dtype: torch.dtype, *, chunk: int, shared: bool
) -> ActorCritic:
    model = make(dtype=dtype)
    critic: Any
    if shared:
        weight = model.get_input_embeddings().weight
        critic = SharedCritic(value_head(16, head="normal", like=weight, seed=1))
    else:
        critic = Critic(scalar_model_from(model, head="normal", seed=1))
    return ActorCritic(Policy(model, temperature=0.9, chunk=chunk), critic)


def schedule_of(played: Rollout, *, budget: int, minibatches: int) -> Schedule:
    return Schedule(
        played.samples,
        played.sequences.lengths.tolist(),
        total=len(LENGTHS),
        minibatches=minibatches,
        budget=budget,
        key=(0, 0),
        most=lambda counts: counts,
    )


class Assigned:
    """An advantage estimator that is a function of rewards, values and mask."""

    needs = EstimatorNeeds()

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def assign(self, batch: CreditBatch) -> Credit:
        return Credit(*self._function(batch.rewards, batch.values, batch.mask))


def credited(
    models: ActorCritic,
    reference: Policy,
    scores: torch.Tensor,
    schedule: Schedule,
    *,
    estimator: Any = "k1",
    kl_coefficient: float = 0.1,
    valid: Sequence[bool] = (True,) * len(LENGTHS),
    played: Rollout | None = None,
    **settings: Any,
) -> Experience:
    """The experience of the rollout above."""
    usual: dict[str, Any] = {
        "credit": Assigned(lambda r, v, m: gae(r, v, m, gamma=1.0, lam=0.95)),
        "reduce": RUNTIME.sum,
        "penalty": True,
        "whiten_rewards": False,
        "whiten_advantages": True,
    }
    nothing: Any = None
    evaluated = Models(models, reference, nothing, RUNTIME, nothing, estimator)
    evaluation = evaluated.evaluate(rollout(), schedule)
    return ExperienceBuilder(**(usual | settings)).build(
        played or rollout(),
        Scores(scores, torch.tensor(valid), scores.sum(-1), {}, {}),
        evaluation,
        schedule,
        kl_coefficient=kl_coefficient,
    )


def experience_of(
    models: ActorCritic, reference: Policy, *, budget: int, minibatches: int = 1, **settings: Any
) -> Experience:
    played = rollout()
    scores = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        scores[row, length - 1] = (-1.0) ** row * row
    schedule = schedule_of(played, budget=budget, minibatches=minibatches)
    return credited(models, reference, scores, schedule, **settings)


def updater_of(
    models: ActorCritic,
    *,
    budget: int,
    auxiliary: bool = True,
    kl_loss: str | None = None,
    **settings: Any,
) -> PolicyUpdater:
    data = auxiliaries() if auxiliary else []
    # Plain gradient descent: a step of size 1 writes the gradient into the weights.
    optimizer = torch.optim.SGD([{"params": list(models.parameters()), "lr": 1.0, "peak_lr": 1.0}])
    limit = settings.pop("max_grad_norm", 1e9)
    return PolicyUpdater(
        RUNTIME.train(models, lambda _: optimizer, max_grad_norm=limit),
        schedule=lambda update: settings.pop("factor", 1.0),
        objective=Objective(
            relay=RELAY,
            auxiliary=tuple(d.instance for d in data),
            policy=part("policy_loss", Clip, clip=0.2),
            value=part("value_loss", Clipped, clip=0.2),
            value_coefficient=0.5,
            reduction="token",
            max_new_tokens=max(LENGTHS),
            kl_loss=kl_loss,
        ),
        auxiliary=data,
        runtime=RUNTIME,
        settings=UpdateSettings(
            **{
                "epochs": 1,
                "microbatch_tokens": budget,
                "stop_approx_kl": None,
                "max_bad_steps": 2,
                **settings,
            }
        ),
    )


def gradient(
    make: Any, dtype: torch.dtype, *, budget: int, chunk: int, shared: bool = False, **kw: Any
) -> torch.Tensor:
    models = actor_critic(make, dtype, chunk=chunk, shared=shared)
    reference = Policy(make(dtype=dtype, seed=5), temperature=0.9, chunk=chunk)
    updater = updater_of(models, budget=budget, **kw)
    found: list[torch.Tensor] = []

    def look(*_: Any) -> None:  # before the step: the weights after it would hold rounding too
        found.append(
            torch.cat(
                [
                    (0 * p if p.grad is None else p.grad).detach().flatten().clone()
                    for p in models.parameters()
                ]
            )
        )

    updater._training.optimizer.register_step_pre_hook(look)
    experience = experience_of(
        models, reference, budget=10_000
    )  # credited in one pass, learned in many
    cut = schedule_of(rollout(), budget=budget, minibatches=1)
    updater.update_policy(replace(experience, schedule=cut), kl_coefficient=0.1)
    (only,) = found
    return only


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("auxiliary", [False, True], ids=["ppo", "with auxiliaries"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_any_split_into_microbatches_gives_the_same_gradient(
    language_model: Any, dtype: torch.dtype, limit: float, auxiliary: bool, shared: bool
) -> None:
    whole = gradient(
        language_model, dtype, budget=10_000, chunk=512, auxiliary=auxiliary, shared=shared
    )
    assert whole.norm() > 0.1
    for budget, chunk in ((1, 3), (12, 1), (30, 512)):
        part = gradient(
            language_model, dtype, budget=budget, chunk=chunk, auxiliary=auxiliary, shared=shared
        )
        assert (part - whole).norm() / whole.norm() < limit


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_the_first_and_the_last_pass_of_a_step_give_every_weight_a_gradient(
    language_model: Any, shared: bool
) -> None:
    """ZeRO-3 adds a weight's first gradient of a step to that of the step before, if it comes late."""
    models = actor_critic(language_model, torch.float32, chunk=512, shared=shared)
    experience = experience_of(models, models.policy, budget=10_000)
    (passes,) = experience.schedule.steps(0)
    updater = updater_of(models, budget=12)  # auxiliary data of several passes
    batches, over = updater._divide(experience, passes)
    assert len(batches) > len(passes) + 1 == 2
    assert batches[1].experience is None
    assert all(b.auxiliary.keys() & {"ptx", "sft"} for b in batches)  # no pass for nothing
    for batch in (batches[0], batches[-1]):
        models.zero_grad()
        loss, _ = updater._objective(models, batch, over, 0.1)
        loss.backward()
        assert all(weight.grad is not None for weight in models.parameters())


@pytest.mark.parametrize(("longest", "passes"), [(12, 1), (13, 2)])
def test_auxiliary_data_that_just_fits_takes_no_pass_of_its_own(
    language_model: Any, longest: int, passes: int
) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    experience = experience_of(models, models.policy, budget=10_000)
    updater = updater_of(models, budget=192)
    examples = [TokenExample((1, *range(3, 3 + longest - 1)), 0)] * 16
    ptx = PTX(PTXConfig(data="x", gamma=0.5, examples_per_step=16), None)  # type: ignore[arg-type]
    updater._auxiliary = [
        AuxiliaryData(Instance("ptx", "ptx", ptx), Shuffled(examples, key=(0, "ptx")))
    ]
    batches, _ = updater._divide(experience, experience.schedule.steps(0)[0])
    assert len(batches) == passes


def test_a_step_that_is_made_again_reads_no_further_in_a_stream_and_a_state_has_its_place(
    language_model: Any,
) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    experience = experience_of(models, models.policy, budget=10_000)
    (passes,) = experience.schedule.steps(0)
    streams = [Stream([TokenExample((1, 3 + n), 0) for n in range(50)]) for _ in range(2)]
    updaters = [updater_of(models, budget=192) for _ in range(2)]
    ptx = PTX(PTXConfig(data="x", gamma=0.5, examples_per_step=4), None)  # type: ignore[arg-type]
    for updater, stream in zip(updaters, streams, strict=True):
        reader = StreamReader(stream, path="losses.ptx", vocabulary=99)
        updater._auxiliary = [AuxiliaryData(Instance("ptx", "ptx", ptx), reader)]

    def tokens(updater: PolicyUpdater) -> list[int]:
        batches, _ = updater._divide(experience, passes)
        return [
            int(t) for b in batches if "ptx" in b.auxiliary for t in b.auxiliary["ptx"].tokens[:, 1]
        ]

    first, again = updaters
    assert tokens(first) == tokens(first) == [3, 4, 5, 6]
    assert streams[0].cursor == 4
    first._steps = 1
    assert tokens(first) == [7, 8, 9, 10]
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    again._steps = 2
    assert tokens(again) == [11, 12, 13, 14]


def test_a_checkpoint_without_the_state_of_a_stream_begins_it(language_model: Any) -> None:
    """As where the loss had a coefficient of 0, or a list, until then."""
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    updater = updater_of(models, budget=192)
    before = updater.state_dict()
    assert before["streams"] == {}
    stream = Stream([TokenExample((1, 3), 0)])
    reader = StreamReader(stream, path="losses.ptx", vocabulary=99)
    own: Any = updater._auxiliary[0].instance
    updater._auxiliary = [AuxiliaryData(own, reader)]
    updater.load_state_dict(before)
    assert updater.state_dict()["streams"][own.name]["number"] == 0


def test_auxiliary_losses_add_their_coefficient_times_their_mean_per_token(
    language_model: Any,
) -> None:
    """The gradient with auxiliaries minus that without is what plain autograd gives for them."""
    both = gradient(language_model, torch.float64, budget=30, chunk=7)
    alone = gradient(language_model, torch.float64, budget=30, chunk=7, auxiliary=False)
    models = actor_critic(language_model, torch.float64, chunk=512, shared=False)

    def mean_loss(rows: list[tuple[tuple[int, ...], int]]) -> torch.Tensor:
        total, count = torch.zeros((), dtype=torch.float64), 0
        for ids, context in rows:
            logits = models.policy.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            taken = logits.gather(-1, torch.tensor(ids)[1:, None]).squeeze(-1)[
                max(context, 1) - 1 :
            ]
            total, count = total - taken.sum(), count + len(taken)
        return total / count

    data = auxiliaries()
    assert data[0].examples is not None
    assert data[1].examples is not None
    played = rollout()
    own = [
        (tuple(played.prompts[i].ids + tuple(ids)), len(played.prompts[i].ids))
        for i, ids in enumerate(played.response_ids())
    ]
    loss = (
        0.5 * mean_loss([(e.ids, e.context_tokens) for e in data[0].examples.take(0, 5)])
        + 2.0 * mean_loss([(e.ids, e.context_tokens) for e in data[1].examples.take(0, 3)])
        + 0.3 * mean_loss(own)
    )
    loss.backward()
    expected = torch.cat(
        [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in models.parameters()
        ]
    )
    torch.testing.assert_close(both - alone, expected, atol=1e-12, rtol=1e-9)


def test_before_the_first_step_every_ratio_is_exactly_one(language_model: Any) -> None:
    for minibatches in (1, 3):
        models = actor_critic(language_model, torch.float32, chunk=5, shared=False)
        reference = Policy(copy.deepcopy(models.policy.model), temperature=0.9, chunk=5)
        experience = experience_of(models, reference, budget=24, minibatches=minibatches)
        assert torch.equal(experience.kl, torch.zeros_like(experience.kl))
        # A gradient of size 0 leaves the policy as it is through every step of the epoch.
        updater = updater_of(models, budget=24, auxiliary=False, max_grad_norm=1e-30)
        meter, _ = updater.update_policy(experience, kl_coefficient=0.1)
        found = meter.means(lambda t: t)
        assert found["val/ratio"] == 1.0
        assert found["ratio_square"] == 0.0
        assert found["policy/approxkl_avg"] == 0.0
        assert found["policy/clipfrac_avg"] == 0.0


def test_padding_garbage_changes_neither_experience_nor_gradient(language_model: Any) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    reference = Policy(language_model(seed=5), temperature=0.9, chunk=512)
    clean = experience_of(models, reference, budget=10_000)
    mask = clean.mask
    spoiled = {
        name: getattr(clean, name).masked_fill(~mask, float("nan"))
        for name in ("logprobs", "reference", "values", "advantages", "returns")
    }
    tokens = clean.sequences.tokens.clone()
    for row, length in enumerate(clean.sequences.lengths.tolist()):
        tokens[row, length:] = 123
    dirty = replace(clean, sequences=replace(clean.sequences, tokens=tokens), **spoiled)
    after = []
    for experience in (clean, dirty):
        fresh = actor_critic(language_model, torch.float32, chunk=512, shared=False)
        updater_of(fresh, budget=40).update_policy(experience, kl_coefficient=0.1)
        after.append(torch.cat([p.detach().flatten() for p in fresh.parameters()]))
    assert torch.equal(after[0], after[1])


def test_each_epoch_makes_as_many_steps_as_there_are_minibatches(language_model: Any) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    experience = experience_of(models, models.policy, budget=40, minibatches=3)
    # Short steps: at length 1 some processors' rounding sends the sixth one to infinity.
    updater = updater_of(models, budget=40, auxiliary=False, epochs=2, max_grad_norm=1e-3)
    steps = 0
    optimizer = updater._training.optimizer
    step = optimizer.step

    def counted(*args: Any) -> None:
        nonlocal steps
        steps += 1
        step(*args)

    optimizer.step = counted  # type: ignore[method-assign]
    updater.update_policy(experience, kl_coefficient=0.1)
    assert steps == 6


def test_gradients_are_clipped_to_the_norm(language_model: Any) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    before = torch.cat([p.detach().flatten().clone() for p in models.parameters()])
    experience = experience_of(models, models.policy, budget=40)
    _, figures = updater_of(models, budget=40, max_grad_norm=0.01).update_policy(
        experience, kl_coefficient=0.1
    )
    moved = (before - torch.cat([p.detach().flatten() for p in models.parameters()])).norm()
    assert figures["train/grad_norm"] > 0.1  # reported before clipping
    torch.testing.assert_close(moved, torch.tensor(0.01), rtol=1e-3, atol=0)


def test_a_step_that_is_not_finite_is_skipped_and_a_few_in_a_row_end_the_run(
    language_model: Any,
) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    before = torch.cat([p.detach().flatten().clone() for p in models.parameters()])
    good = experience_of(models, models.policy, budget=40)
    bad = replace(good, advantages=good.advantages * float("inf"))
    updater = updater_of(models, budget=40, auxiliary=False)
    with pytest.warns(SkippedUpdateWarning, match="update 0: all of its 1 optimiser steps"):
        _, figures = updater.update_policy(bad, kl_coefficient=0.1)
    assert figures["train/skipped_steps"] == 1
    assert math.isnan(figures["train/grad_norm"])
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in models.parameters()]))
    updater.update_policy(good, kl_coefficient=0.1)  # a good step in between starts the count again
    with pytest.warns(SkippedUpdateWarning):
        updater.update_policy(bad, kl_coefficient=0.1)
    with pytest.raises(RunError, match=r"2 optimiser steps in a row were skipped.*max_bad_steps"):
        updater.update_policy(bad, kl_coefficient=0.1)


def test_a_lower_limit_of_bad_steps_holds_for_those_before_a_resume(language_model: Any) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    good = experience_of(models, models.policy, budget=40)
    bad = replace(good, advantages=good.advantages * float("inf"))
    updater = updater_of(models, budget=40, auxiliary=False, max_bad_steps=2)
    updater.load_state_dict({"steps": 9, "bad_in_a_row": 5, "halvings": 0})
    with pytest.raises(RunError, match="6 optimiser steps in a row were skipped"):
        updater.update_policy(bad, kl_coefficient=0.1)


def test_the_seconds_of_a_moving_average_are_reported(
    language_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Average:
        updates = 0

        def update(self) -> None:
            self.updates += 1

    times = iter([100.0, 103.5])
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr("rlframe.engine.updater.time", clock)

    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    good = experience_of(models, models.policy, budget=40)
    updater, average = updater_of(models, budget=40, auxiliary=False), Average()
    updater._ema = average  # type: ignore[assignment]
    _, figures = updater.update_policy(good, kl_coefficient=0.1)
    assert average.updates == 1
    assert figures["time/ema_seconds"] == 3.5


@pytest.mark.parametrize("limit", [None, 1e-9], ids=["", "with stop_approx_kl"])
def test_an_update_of_skipped_steps_keeps_the_names_of_its_metrics(
    language_model: Any, limit: float | None
) -> None:
    """Nothing counted, on any rank: NaN, and no epoch ends the update early."""
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    good = experience_of(models, models.policy, budget=40)
    bad = replace(good, returns=good.returns * float("inf"))
    updater = updater_of(models, budget=40, epochs=3, max_bad_steps=4, stop_approx_kl=limit)
    with pytest.warns(SkippedUpdateWarning, match="all of its 3 optimiser steps"):
        meter, figures = updater.update_policy(bad, kl_coefficient=0.1)
    assert (figures["train/epochs"], figures["train/skipped_steps"]) == (3, 3)
    usual, _ = updater_of(models, budget=40).update_policy(good, kl_coefficient=0.1)
    found = meter.means(lambda t: t)
    assert found.keys() == usual.means(lambda t: t).keys()
    assert all(math.isnan(value) for value in found.values())


def test_metrics_are_of_the_steps_that_were_taken(
    language_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    good = experience_of(models, models.policy, budget=40, minibatches=2)
    one = updater_of(copy.deepcopy(models), budget=40, auxiliary=False)
    expected = Meter()
    one._step(good, good.schedule.steps(0)[0], expected, 0.1)
    updater = updater_of(models, budget=40, auxiliary=False)
    right = updater._training.step
    outcomes = iter([right, lambda: (updater._training.discard(), math.nan)[1]])
    monkeypatch.setattr(updater._training, "step", lambda: next(outcomes)())
    meter, figures = updater.update_policy(good, kl_coefficient=0.1)
    assert figures["train/skipped_steps"] == 1
    assert meter.means(lambda t: t) == expected.means(lambda t: t)


def test_a_step_in_which_no_response_is_valid_is_not_taken_and_is_no_bad_one(
    language_model: Any,
) -> None:
    """Adam would move the weights by its memory alone, were the gradient 0."""
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    nothing = experience_of(models, models.policy, budget=40, valid=[False] * len(LENGTHS))
    updater = updater_of(models, budget=40, auxiliary=False, max_bad_steps=1)
    before = copy.deepcopy(models.state_dict())
    with pytest.warns(SkippedUpdateWarning, match="all of its 1 optimiser steps.*no response"):
        meter, figures = updater.update_policy(nothing, kl_coefficient=0.1)
    assert (figures["train/empty_steps"], figures["train/skipped_steps"]) == (1, 0)
    assert math.isnan(meter.means(lambda t: t)["loss/policy_avg"])
    assert all(torch.equal(before[name], now) for name, now in models.state_dict().items())


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_where_no_response_is_valid_auxiliary_losses_with_data_are_learned_alone(
    language_model: Any, shared: bool
) -> None:
    models = actor_critic(language_model, torch.float64, chunk=512, shared=shared)
    alone = copy.deepcopy(models)
    nothing = experience_of(models, models.policy, budget=40, valid=[False] * len(LENGTHS))
    updater = updater_of(models, budget=40)
    with pytest.warns(NothingCountedWarning, match="'own'"):  # it works on the rollout
        _, figures = updater.update_policy(nothing, kl_coefficient=0.1)
    assert (figures["train/empty_steps"], figures["train/skipped_steps"]) == (0, 0)
    for data in auxiliaries()[:2]:
        assert data.examples is not None
        loss = data.instance.component
        drawn = data.examples.take(0, loss.examples_per_step)
        term = loss.loss(alone.policy, token_batch(drawn, device=torch.device("cpu")))
        (loss.coefficient * term.total / term.count).backward()
    for now, was in zip(models.parameters(), alone.parameters(), strict=True):
        expected = was if was.grad is None else was - was.grad
        torch.testing.assert_close(now, expected, rtol=1e-12, atol=1e-14)


def test_epochs_stop_when_the_policy_has_moved_too_far(language_model: Any) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    experience = experience_of(models, models.policy, budget=40)
    short: dict[str, Any] = {"budget": 40, "auxiliary": False, "epochs": 4, "max_grad_norm": 0.01}
    _, free = updater_of(models, **short).update_policy(experience, kl_coefficient=0.1)
    assert free["train/epochs"] == 4
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    experience = experience_of(models, models.policy, budget=40)
    updater = updater_of(models, **short, stop_approx_kl=1e-9)
    _, stopped = updater.update_policy(experience, kl_coefficient=0.1)
    assert stopped["train/epochs"] == 2  # the first pass starts at 0, the second is too far


def test_kl_as_a_loss_pulls_towards_the_reference(language_model: Any) -> None:
    """The penalty's sign: one step on KL alone lowers KL (Logic-RL #58 trained with it flipped)."""
    models = actor_critic(language_model, torch.float64, chunk=512, shared=False)
    reference = Policy(language_model(dtype=torch.float64, seed=5), temperature=0.9, chunk=512)
    before = experience_of(models, reference, budget=10_000)
    still = replace(before, advantages=torch.zeros_like(before.advantages))
    updater = updater_of(models, budget=40, auxiliary=False, kl_loss="k2", max_grad_norm=0.05)
    updater.update_policy(still, kl_coefficient=1.0)
    after = experience_of(models, reference, budget=10_000)
    squares = [((e.logprobs - e.reference) ** 2).sum() for e in (before, after)]
    assert squares[1] < squares[0]


def test_a_loss_whose_count_is_not_what_it_said_is_refused(language_model: Any) -> None:
    class Lying(Entropyish):
        def count(self, batch: Any) -> torch.Tensor:
            return batch.mask.sum() + 1

    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    updater = updater_of(models, budget=40, auxiliary=False)
    instance = Instance("own", "lying (test 1)", Lying(PluginConfig(), None))  # type: ignore[arg-type]
    updater._auxiliary = [AuxiliaryData(instance, None)]
    updater._objective = replace(updater._objective, auxiliary=(instance,))
    with pytest.raises(RunError, match=r"lying \(test 1\).*count"):
        updater.update_policy(experience_of(models, models.policy, budget=40), kl_coefficient=0.1)


def updater_with(models: ActorCritic, component: Any, *, max_bad_steps: int = 3) -> PolicyUpdater:
    """A updater with one auxiliary loss, which works on the rollout."""
    context: Any = None
    instance = Instance("own", "own (test 1)", component(PluginConfig(), context))
    updater = updater_of(models, budget=40, auxiliary=False, max_bad_steps=max_bad_steps)
    updater._auxiliary = [AuxiliaryData(instance, None)]
    updater._objective = replace(updater._objective, auxiliary=(instance,))
    return updater


class Detached(Entropyish):
    def loss(self, policy: Any, batch: Any) -> LossTerm:
        term = super().loss(policy, batch)
        return LossTerm(term.total.detach(), term.count)


class PerToken(Entropyish):
    def loss(self, policy: Any, batch: Any) -> LossTerm:
        return LossTerm(-policy.logprobs(batch.tokens) * batch.mask, batch.mask.sum())


class CountsNaN(Entropyish):
    def count(self, batch: Any) -> torch.Tensor:
        return torch.tensor(math.nan)


class CountFails(Entropyish):
    def count(self, batch: Any) -> torch.Tensor:
        raise LookupError("no such column")


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (Detached, "returned a total without a gradient"),
        (PerToken, "returned a total of a Tensor of shape"),
        (CountsNaN, r"returned a `count\(\)` of nan"),
        (CountFails, r"raised LookupError in `count`: no such column \[.*test_updater.py:\d+\]"),
    ],
)
def test_a_loss_that_breaks_its_contract_is_named(
    language_model: Any, component: Any, message: str
) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    experience = experience_of(models, models.policy, budget=40)
    with pytest.raises(RunError, match=rf"auxiliary loss 'own' of type own \(test 1\) {message}"):
        updater_with(models, component).update_policy(experience, kl_coefficient=0.1)


def test_a_step_in_which_a_loss_counts_nothing_is_that_of_ppo_alone(language_model: Any) -> None:
    """0 / 0 would have made each of them a skipped one."""

    class Counts3(Entropyish):
        """Of responses with three tokens, of which there may be none."""

        def count(self, batch: Any) -> torch.Tensor:
            return torch.zeros(())

        def loss(self, policy: Any, batch: Any) -> LossTerm:
            return LossTerm(0 * super().loss(policy, batch).total, torch.zeros(()))

    found = []
    for component in (None, Counts3):
        models = actor_critic(language_model, torch.float64, chunk=512, shared=False)
        experience = experience_of(models, models.policy, budget=40)
        if component is None:
            updater_of(models, budget=40, auxiliary=False).update_policy(
                experience, kl_coefficient=0.1
            )
        else:
            with pytest.warns(NothingCountedWarning, match="'own' .* counts nothing in this"):
                _, figures = updater_with(models, component).update_policy(
                    experience, kl_coefficient=0.1
                )
            assert figures["train/skipped_steps"] == 0
        found.append(torch.cat([p.detach().flatten() for p in models.parameters()]))
    assert torch.equal(*found)


def test_a_loss_that_is_never_finite_is_named_when_its_steps_have_been_skipped(
    language_model: Any,
) -> None:
    class Infinite(Entropyish):
        def loss(self, policy: Any, batch: Any) -> LossTerm:
            term = super().loss(policy, batch)
            return LossTerm(term.total * math.inf if term.count else term.total, term.count)

    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    experience = experience_of(models, models.policy, budget=40)
    with pytest.raises(RunError, match="not finite on this rank: loss/own_avg"):
        updater_with(models, Infinite, max_bad_steps=1).update_policy(
            experience, kl_coefficient=0.1
        )


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(language_model: Any) -> None:
    class Beyond(Entropyish):
        def loss(self, policy: Any, batch: Any) -> LossTerm:
            term = super().loss(policy, batch)
            return LossTerm(term.total + math.inf if term.count else term.total, term.count)

    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    before = torch.cat([p.detach().flatten().clone() for p in models.parameters()])
    experience = experience_of(models, models.policy, budget=40)
    with pytest.warns(SkippedUpdateWarning):
        _, figures = updater_with(models, Beyond).update_policy(experience, kl_coefficient=0.1)
    assert figures["train/skipped_steps"] == 1
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in models.parameters()]))


def test_the_learning_rate_ramps_up_and_decays_to_just_above_zero() -> None:
    def rates(**kw: Any) -> list[float]:
        return [round(learning_rate_factor(u, updates=6, **kw), 4) for u in range(6)]

    assert rates(warmup=0, decay="constant") == [1, 1, 1, 1, 1, 1]
    assert rates(warmup=0, decay="linear") == [1, 0.8333, 0.6667, 0.5, 0.3333, 0.1667]
    assert rates(warmup=2, decay="linear") == [0.3333, 0.6667, 1, 0.75, 0.5, 0.25]
    assert rates(warmup=0, decay="cosine") == [1, 0.933, 0.75, 0.5, 0.25, 0.067]


def test_an_auxiliary_loss_that_raises_is_named(language_model: Any) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    reference = Policy(language_model(seed=5), temperature=0.9, chunk=512)
    updater = updater_of(models, budget=10_000)

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("no words")

    (own,) = [d.instance for d in updater._auxiliary if d.instance.name == "own"]
    own.component.loss = fail
    words = "auxiliary loss 'own' of type own raised ZeroDivisionError in `loss`: no words"
    with pytest.raises(RunError, match=words):
        updater.update_policy(experience_of(models, reference, budget=10_000), kl_coefficient=0.1)


def test_when_memory_runs_out_the_step_is_done_again_in_smaller_passes(
    language_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is the same, the budget stays small, and it is told."""
    models = actor_critic(language_model, torch.float64, chunk=512, shared=False)
    experience = experience_of(models, models.policy, budget=80)
    twin = copy.deepcopy(models)
    updater_of(twin, budget=80).update_policy(experience, kl_coefficient=0.1)

    updater = updater_of(models, budget=80)
    objective, largest = Objective.__call__, 20

    def cramped(self: Objective, model: Any, batch: Any, *rest: Any) -> Any:
        part = batch.experience
        if part is not None and part.sequences.tokens.numel() > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return objective(self, model, batch, *rest)

    monkeypatch.setattr(Objective, "__call__", cramped)
    with pytest.warns(MemoryWarning) as caught:
        _, figures = updater.update_policy(experience, kl_coefficient=0.1)
    assert [str(w.message).partition("up to ")[2] for w in caught] == [
        "80 padded tokens: it is halved to 40",
        "40 padded tokens: it is halved to 20",
    ]
    assert figures["train/microbatch_tokens"] == updater.budget == 20
    for mine, other in zip(models.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)

    again = updater_of(models, budget=80)
    again.load_state_dict(updater.state_dict())
    assert again.budget == 20  # a run that goes on makes the same passes


def test_crediting_goes_on_in_smaller_passes_until_one_response_alone_is_too_much(
    language_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = actor_critic(language_model, torch.float64, chunk=512, shared=False)
    expected = experience_of(models, models.policy, budget=10_000)
    right, seen = Models._one_pass, []

    def cramped(self: Models, part: Any) -> Any:
        seen.append(len(part))
        if len(part) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return right(self, part)

    monkeypatch.setattr(Models, "_one_pass", cramped)
    most = 2
    found = experience_of(models, models.policy, budget=10_000)
    assert max(seen) > 2
    for name in ("logprobs", "reference", "values", "advantages"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    most = 0
    with pytest.raises(RunError, match=r"credit a single response.*smaller, or choose another"):
        experience_of(models, models.policy, budget=10_000)


def test_where_a_step_can_not_begin_again_the_error_says_with_what_the_run_can_go_on(
    language_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    experience = experience_of(models, models.policy, budget=80)
    monkeypatch.setattr("rlframe.distributed.training.Replicated.can_begin_again", False)
    # Half of 160, whatever the halvings: those come back with the checkpoint.
    remedy = "ppo.microbatch_tokens=80"
    for halvings in (0, 1):
        updater = updater_of(models, budget=160)
        updater.load_state_dict({"steps": 0, "bad_in_a_row": 0, "halvings": halvings})

        def never(*_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        monkeypatch.setattr(Objective, "__call__", never)
        with pytest.raises(OutOfMemoryError, match=f"resume RUN {remedy}") as ended:
            updater.update_policy(experience, kl_coefficient=0.1)
        assert ended.value.remedy == remedy


def test_when_not_even_the_longest_response_fits_the_run_ends_and_says_what_to_do(
    language_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    experience = experience_of(models, models.policy, budget=80)
    updater = updater_of(models, budget=80)

    def never(*_: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Objective, "__call__", never)
    message = r"no memory was left in a pass of up to 20 padded tokens.*RUN ppo.logits_chunk=\.\.\."
    with pytest.warns(MemoryWarning), pytest.raises(OutOfMemoryError, match=message) as ended:
        updater.update_policy(experience, kl_coefficient=0.1)
    assert ended.value.remedy is None  # smaller passes than of one response there are none
    monkeypatch.setattr(Objective, "__call__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # what is not a lack of memory is not tried again
        updater.update_policy(experience, kl_coefficient=0.1)

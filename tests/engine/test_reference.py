"""The engine against an independent PPO, number by number, over three updates in float64.

Settings are combined pairwise: every value of one with every value of each other one, in some run.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlframe.api import (
    AuxiliaryLoss,
    KLController,
    KLMeasurement,
    KLState,
    LossTerm,
    PluginConfig,
    RewardBatch,
    RewardProvider,
)
from rlframe.compose.ppo import PPOParts
from rlframe.compose.project import Project
from rlframe.engine.experience import Experience
from rlframe.engine.ppo import RunState, train
from rlframe.engine.streams import Shuffled
from rlframe.engine.update_metrics import Update, update_metrics
from rlframe.models.lora import adapted
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from tests import reference
from tests.distributed.worker import RECIPE
from tests.playing import watched

UPDATES = 3
LIMIT = 1e-12

# What is combined: name -> values, each a dictionary of recipe keys.

FACTORS: dict[str, list[dict[str, Any]]] = {
    "estimator": [{"kl.estimator": name} for name in ("k1", "k2", "k3", "abs", "full")],
    "placement": [{"kl.placement": "reward"}, {"kl.placement": "loss"}],
    "whiten rewards": [{"algorithm.whiten_rewards": flag} for flag in (False, True)],
    "whiten advantages": [{"algorithm.whiten_advantages": flag} for flag in (True, False)],
    "critic": [
        {},
        {"model.critic.learning_rate": 1e-2, "algorithm.value_loss.coefficient": 0.7},
        {"model.critic.shared": True},
    ],
    "adapters": [{}, {"model.lora": {"rank": 2, "alpha": 6}}],
    "losses": [
        {},
        {"losses.ptx": {"type": "ptx", "gamma": 0.5, "data": "reviews", "examples_per_step": 3}},
        {
            "losses.sft": {
                "type": "sft",
                "coefficient": 2.0,
                "data": "shown",
                "examples_per_step": 2,
            }
        },
        {
            "losses.ptx": {"type": "ptx", "gamma": 2.0, "data": "reviews", "examples_per_step": 2},
            "losses.own": {"type": "likely"},
        },
    ],
    "clips": [
        {"algorithm.policy_loss.clip": 0.2, "algorithm.value_loss.clip": 0.2},
        {"algorithm.policy_loss.clip": 0.01, "algorithm.value_loss.clip": 0.3},
        {"algorithm.policy_loss.clip": 0.05, "algorithm.value_loss.clip": 0.002},
    ],
    "controller": [
        {"kl.controller": {"type": "fixed", "coefficient": 0.3}},
        {"kl.controller": {"type": "adaptive", "target": 1.0, "horizon": 30, "initial": 0.1}},
        {
            "kl.controller": {
                "type": "adaptive",
                "target": 0.1,
                "horizon": 20,
                "initial": 0.2,
                "unit": "nats_per_token",
            }
        },
        {"kl.controller": {"type": "integral"}},
    ],
    "temperature": [{"rollout.temperature": 1.0}, {"rollout.temperature": 0.7}],
    "groups": [
        {"rollout.prompts_per_update": 6, "rollout.samples_per_prompt": 1},
        {"rollout.prompts_per_update": 3, "rollout.samples_per_prompt": 2},
    ],
    "schedule": [
        {"ppo.decay": "constant", "ppo.warmup_updates": 2},
        {"ppo.decay": "linear", "ppo.warmup_updates": 0},
        {"ppo.decay": "linear", "ppo.warmup_updates": 1},
        {"ppo.decay": "cosine", "ppo.warmup_updates": 1},
    ],
    "steps": [
        {"ppo.epochs": 1, "ppo.minibatches": 1},
        {"ppo.epochs": 3, "ppo.minibatches": 1},
        {"ppo.epochs": 2, "ppo.minibatches": 3, "seed": 3},
    ],
    "gradient": [{"ppo.max_grad_norm": 1e3}, {"ppo.max_grad_norm": 0.05, "ppo.weight_decay": 0.1}],
    "rewards": [
        {"rewards.even.weight": 1.0, "rewards.tokens.weight": 0.0},
        {"rewards.even.weight": -0.7, "rewards.tokens.weight": 2.0},
        {"rewards.even.transforms": [{"type": "running_scale"}], "rewards.tokens.weight": 0.5},
        {
            "rewards.even.weight": 3.0,
            "rewards.tokens.transforms": [{"type": "running_standardize"}],
        },
    ],
    "none": [
        {},
        {"rewards.even.every": 3, "rewards.tokens.every": 4},
        {"rewards.even.every": 4, "rewards.even.on_none": "invalid"},
    ],
    "stop": [{}, {"ppo.stop_approx_kl": 1e-5}],
    "sampler": [
        {},
        {"rollout.top_k": 40},
        {"rollout.top_k": 40, "algorithm.importance_correction": "truncate"},
        {
            "rollout.top_k": 200,
            "algorithm.importance_correction": "mask",
            "algorithm.importance_limit": 1.5,
        },
    ],
    "discount": [
        {"algorithm.advantages": {"type": "gae", "gamma": 1.0, "lam": 0.95}},
        {"algorithm.advantages": {"type": "gae", "gamma": 0.9, "lam": 0.6}},
    ],
}

Choice = Mapping[str, int]
"""Factor -> which of its values."""


def allowed(choice: Choice) -> bool:
    """`full` measures the rollout and is no loss."""
    return (choice.get("estimator"), choice.get("placement")) != (4, 1)


def pairwise(factors: Mapping[str, list[Any]]) -> list[dict[str, int]]:
    """Few choices that hold every allowed pair of two factors' values: greedy, of random candidates."""
    draw, names = random.Random(0), list(factors)
    sizes = {name: range(len(factors[name])) for name in names}
    open_pairs = {
        frozenset({(a, i), (b, j)})
        for a, b in combinations(names, 2)
        for i, j in product(sizes[a], sizes[b])
        if allowed({a: i, b: j})
    }
    found = []
    while open_pairs:
        candidates = []
        for _ in range(60):
            choice = {name: draw.choice(sizes[name]) for name in names}
            choice |= dict(draw.choice(sorted(map(sorted, open_pairs))))
            if allowed(choice):
                candidates.append(choice)
        covered = [
            {frozenset(pair) for pair in combinations(choice.items(), 2)} & open_pairs
            for choice in candidates
        ]
        best = max(range(len(candidates)), key=lambda k: len(covered[k]))
        found.append(candidates[best])
        open_pairs -= covered[best]
    return found


RUNS = pairwise(FACTORS)


# Components whose formulas the reference is given


class PickyConfig(PluginConfig):
    every: int = 0


def judged(ids: Sequence[int], every: int) -> bool:
    """Whether a reward judges a response; it returns None for one of every `every`."""
    return every == 0 or sum(ids) % every != 0


class Even(RewardProvider[PickyConfig]):
    """A score of the whole response: the share of even token ids."""

    def score(self, batch: RewardBatch) -> list[float | None]:
        every = self.config.every
        return [sum(even(ids)) if judged(ids, every) else None for ids in batch.response_ids]


class Tokens(RewardProvider[PickyConfig]):
    """A reward of each token."""

    def score(self, batch: RewardBatch) -> list[list[float] | None]:
        every = self.config.every
        return [per_token(ids) if judged(ids, every) else None for ids in batch.response_ids]


def even(ids: Any) -> list[float]:
    return [0.0] * (len(ids) - 1) + [sum(i % 2 == 0 for i in ids) / len(ids)]


def per_token(ids: Any) -> list[float]:
    return [(i % 7) / 7 - 0.4 for i in ids]


class Integral(KLController[PluginConfig]):
    """A controller that remembers: the sum of all errors so far, and how often it was asked."""

    def initial(self) -> KLState:
        return KLState(0.05, {"sum": 0.0, "asked": 0.0})

    def update(self, state: KLState, measured: KLMeasurement) -> KLState:
        return KLState(*integral(state.coefficient, state.memory, measured.kl, measured.responses))


def integral(_: float, memory: Mapping[str, float], kl: float, responses: int) -> Any:
    total, asked = memory["sum"] + kl, memory["asked"] + 1
    return abs(0.05 + 0.02 * total + 0.001 * asked * responses), {"sum": total, "asked": asked}


def adaptive(
    coefficient: float, memory: Any, kl: float, responses: int, *, target: float, horizon: int
) -> Any:
    """Ziegler et al. 2019, section 2.2, and never more than twice or less than half."""
    factor = 1 + max(-0.2, min(0.2, kl / target - 1)) * responses / horizon
    return coefficient * max(0.5, min(2.0, factor)), memory


class Likely(AuxiliaryLoss[PluginConfig]):
    """A loss on the rollout itself: minus the log-probability of the sampled tokens."""

    coefficient = 0.3

    def loss(self, policy: Any, batch: Any) -> LossTerm:
        logprobs = policy.logprobs(batch.tokens)
        return LossTerm(-(logprobs * batch.mask).sum(), batch.mask.sum())


@cache
def registry() -> Registry:
    known = Registry()
    known.add("reward_providers", "even", Even)
    known.add("reward_providers", "tokens", Tokens)
    known.add("kl_controllers", "integral", Integral)
    known.add("auxiliary_losses", "likely", Likely)
    return known


# The engine's run


@dataclass
class Seen:
    """What the engine did in one update."""

    update: Update
    metrics: dict[str, float]
    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]


def changes(choice: Choice) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, number in choice.items():
        found |= FACTORS[name][number]
    return found


def parts_of(folder: Path, choice: Choice) -> tuple[PPOParts, Any]:
    """The engine's objects, and the language model as it was before there were any."""
    shown = [{"prompt": f"say {n}", "response": f"{n} times " + "so " * n} for n in range(1, 7)]
    (folder / "shown.jsonl").write_text("\n".join(map(json.dumps, shown)))
    base = copy.deepcopy(RECIPE)
    base["data"]["shown"] = {"path": str(folder / "shown.jsonl"), "heldout": 0.0}
    base |= {"losses": {}, "rewards": {"even": {"type": "even"}, "tokens": {"type": "tokens"}}}
    base["rollout"] = {"max_new_tokens": 8, "stop_strings": ["e"]}
    base["ppo"] = {
        "updates": UPDATES,
        "learning_rate": 3e-3,
        "microbatch_tokens": 60,
        "logits_chunk": 20,
        "max_grad_norm": 1.0,
    }
    base["runtime"] |= {"precision": "float64"}
    (folder / "recipe.yaml").write_text(json.dumps(base))
    given = [f"{key}={json.dumps(value)}" for key, value in changes(choice).items()]
    loaded = load_recipe(folder / "recipe.yaml", given, registry=registry())
    project = Project(loaded, folder, registry())
    model = project.models.policy()
    plain = copy.deepcopy(model)
    parts = PPOParts(project, model)
    if parts.models.reference.model is not model:  # else KL begins with 0
        with torch.no_grad():
            for weight in parts.models.reference.model.parameters():
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
                weight += 0.02 * noise
    return parts, plain


def played(parts: PPOParts) -> Iterator[Seen]:
    """Each update of the engine's run."""
    training, seen = parts.models.training, list[Seen]()
    names = {weight: name for name, weight in training.models.named_parameters()}
    gradients: list[dict[str, Tensor]] = []

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients.append(
            {names[w]: torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights}
        )

    def record(update: Update) -> None:
        metrics = update_metrics(
            update,
            parts.clock,
            penalty=parts.penalty,
            episodes=len(update.rollout) * (update.number + 1),
            reduce=parts.project.runtime.sum,
        )
        weights = {name: tensor.clone() for name, tensor in training.weights().items()}
        seen.append(Seen(update, metrics, gradients[:], weights))
        gradients.clear()

    hook = training.optimizer.register_step_pre_hook(before_step)
    run = watched(parts, record)
    train(run, RunState(0, run.control.initial()))
    hook.remove()
    yield from seen


# The reference's run


def plain_name(name: str) -> str:
    """An engine's weight as the reference calls it."""
    owner, _, name = name.partition(".")
    name = name.removeprefix("model.").replace(".base_layer", "")
    for letter in "AB":
        name = name.replace(f".lora_{letter}.default.weight", f".weight {letter}")
    return f"{owner} {'score.weight' if name == 'head.weight' else name}"


def reference_of(parts: PPOParts, plain: Any) -> reference.PPO:
    recipe, ppo = parts.project.recipe, parts.ppo
    algorithm = recipe.algorithm
    assert algorithm.value_loss is not None
    trained: dict[str, dict[str, Tensor]] = {"policy": {}, "critic": {}}
    for name, weight in parts.models.trained.named_parameters():
        if weight.requires_grad:
            owner, _, short = plain_name(name).partition(" ")
            trained[owner][short] = weight
    lora = recipe.model.lora
    policy = reference.Network(
        copy.deepcopy(plain), trained["policy"], lora.alpha / lora.rank if lora else 0.0
    )
    frozen = plain if adapted(parts.models.trained.policy.model) else parts.models.reference.model
    if recipe.model.critic.shared:
        critic = reference.Network(torch.nn.Module(), trained["critic"])
    else:
        critic = reference.Network(
            copy.deepcopy(parts.models.trained.critic.model), trained["critic"]
        )
    assert recipe.kl is not None
    controller = recipe.kl.controller
    options = controller.options
    control: Callable[..., Any] = {
        "fixed": lambda coefficient, memory, *_: (coefficient, memory),
        "adaptive": partial(
            adaptive, target=options.get("target", 0), horizon=options.get("horizon", 0)
        ),
        "integral": integral,
    }[controller.type]
    first = parts.controller.component.initial()
    settings = SimpleNamespace(
        **{name: getattr(ppo, name) for name in type(ppo).model_fields},
        seed=recipe.seed,
        temperature=recipe.rollout.temperature,
        top_k=recipe.rollout.top_k,
        correction=algorithm.importance_correction,
        limit=algorithm.importance_limit or 2.0,
        estimator=recipe.kl.estimator,
        placement=recipe.kl.placement,
        unit=options.get("unit", "nats_per_response"),
        gamma=algorithm.advantages.options["gamma"],
        lam=algorithm.advantages.options["lam"],
        clip=algorithm.policy_loss.options["clip"],
        value_clip=algorithm.value_loss.options["clip"],
        value_coefficient=algorithm.value_loss.coefficient,
        whiten_rewards=algorithm.whiten_rewards,
        whiten_advantages=algorithm.whiten_advantages,
        rewards={
            name: (entry.weight, *([t.type for t in entry.transforms] or ["none"]), entry.on_none)
            for name, entry in recipe.rewards.items()
        },
        coefficient=first.coefficient,
        memory=dict(first.memory),
        learning_rates={
            "policy": ppo.learning_rate,
            "critic": recipe.model.critic.learning_rate or ppo.learning_rate,
        },
    )
    frozen_network = reference.Network(copy.deepcopy(frozen), {})
    return reference.PPO(policy, frozen_network, critic, settings, auxiliary_of(parts), control)


def auxiliary_of(parts: PPOParts) -> dict[str, Any]:
    """Name -> (coefficient, step -> texts); drawn anew from the seed."""
    found: dict[str, Any] = {}
    for name, spec in parts.project.recipe.losses.items():
        if spec.type == "likely":
            found[name] = (0.3, None)
            continue
        component = next(loss.component for loss in parts.losses if loss.name == name)
        stream = Shuffled(component.examples(), key=(parts.project.recipe.seed, "losses", name))
        count = spec.options["examples_per_step"]

        def draw(step: int, stream: Any = stream, count: int = count) -> list[Any]:
            return [(e.ids, e.context_tokens) for e in stream.take(step * count, count)]

        found[name] = (spec.options.get("gamma") or spec.options["coefficient"], draw)
    return found


def texts_of(update: Update, skips: Mapping[str, int]) -> list[SimpleNamespace]:
    rollout = update.rollout
    assert list(rollout.samples) == list(range(len(rollout)))
    return [
        SimpleNamespace(
            prompt=list(prompt.ids),
            response=ids,
            ended=reason.value,
            scores={
                name: row(ids) if judged(ids, skips[name]) else None
                for name, row in (("even", even), ("tokens", per_token))
            },
        )
        for prompt, ids, reason in zip(
            rollout.prompts, rollout.response_ids(), rollout.stop_reasons, strict=True
        )
    ]


# The comparison


@pytest.fixture(autouse=True)
def _norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes norms in float32, whatever the model: two sound runs then differ by 1e-9 as
    soon as a float64 that differs in its last bit falls on the other side of a float32's border.
    """

    def forward(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
        scale = (hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return self.weight * (hidden * scale)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


def near(found: Tensor, expected: Tensor, what: str, *, least: float = 1e-3) -> None:
    """Equal but for rounding, relative to the whole tensor, or to `least` where it is smaller."""
    assert found.shape == expected.shape, what
    apart = float((found - expected).norm() / expected.norm().clamp(min=least))
    assert apart < LIMIT, (what, apart)


def compare_experience(exp: Experience, texts: list[Any], where: str) -> None:
    for name in ("logprobs", "reference", "values", "kl", "rewards", "advantages", "returns"):
        found = getattr(exp, name)
        for row, text in enumerate(texts):
            length = len(text.response)
            assert int(exp.mask[row].sum()) == length * text.valid
            if not text.valid and name in ("rewards", "advantages", "returns"):
                assert not getattr(exp, name)[row].any()
                continue
            what = f"{where}: {name} of response {row}"
            # KL is a difference of log-probabilities of several nats, whose rounding it has.
            near(found[row, :length], getattr(text, name), what, least=1.0)


def compare_metrics(found: Mapping[str, float], expected: Mapping[str, float], where: str) -> None:
    clock = ("time/", "speed/", "eps")
    measured = {name: value for name, value in found.items() if not name.startswith(clock)}
    assert measured.pop("train/microbatch_tokens") == 60
    assert measured.keys() == expected.keys(), where
    for name, value in measured.items():
        assert abs(value - expected[name]) <= LIMIT * max(1, abs(expected[name])), (
            where,
            name,
            value,
            expected[name],
        )


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_the_engine_and_an_independent_ppo_agree(tmp_path: Path, number: int) -> None:
    choice = RUNS[number]
    parts, plain = parts_of(tmp_path, choice)
    other = reference_of(parts, plain)
    for seen in played(parts):
        where = f"run {number}, update {seen.update.number}: {changes(choice)}"
        rewards = parts.project.recipe.rewards
        skips = {name: entry.options.get("every", 0) for name, entry in rewards.items()}
        texts = texts_of(seen.update, skips)
        expected = other.update(texts)
        compare_experience(seen.update.experience, texts, where)
        assert len(seen.gradients) == len(other.gradients), where
        for step, (mine, theirs) in enumerate(zip(seen.gradients, other.gradients, strict=True)):
            assert {plain_name(name) for name in mine} == theirs.keys()
            for name, gradient in mine.items():
                near(gradient, theirs[plain_name(name)], f"{where}: step {step}, {name}")
        for name, weight in seen.weights.items():
            if plain_name(name) in other.trained:
                near(weight, other.trained[plain_name(name)].detach(), f"{where}: {name}")
        compare_metrics(seen.metrics, expected, where)
    assert seen.update.number == UPDATES - 1

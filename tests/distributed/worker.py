"""One of several processes that play many small PPO runs one after the other and write their numbers.

    python -c 'launch([python, "-m", "tests.distributed.worker", DIRECTORY], processes=2)'

`test_invariance` plays the same runs in one process, through the same `play`, and compares.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rlframe.api import AuxiliaryLoss, LossTerm, PluginConfig
from rlframe.compose.ppo import PPOParts
from rlframe.compose.project import Project
from rlframe.distributed.child import finished, take_reports
from rlframe.distributed.training import Replicated, State, Training
from rlframe.engine.evaluation import Models
from rlframe.engine.experience import Experience, ExperienceBuilder
from rlframe.engine.kl_control import KLControl
from rlframe.engine.metrics import Meter
from rlframe.engine.objective import Objective
from rlframe.engine.ppo import RunState, train
from rlframe.engine.transforming import TransformChain
from rlframe.engine.update_metrics import Update, update_metrics
from rlframe.engine.updater import PolicyUpdater
from rlframe.functional.masked import Moments, moments
from rlframe.functional.running import statistics
from rlframe.models.policy import Policy
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from rlframe.types import KLState
from tests.playing import watched
from tests.rounding import smooth_adam

RECIPE: dict[str, Any] = {
    "version": 1,
    "data": {
        "reviews": {"generator": {"type": "product_reviews", "rows": 150}, "heldout": 0.2},
    },
    "model": {
        "policy": {
            "architecture": {
                "model_type": "llama",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 128,
                "initializer_range": 0.2,
            },
            "tokenizer": {"data": "reviews", "vocab_size": 280},
        },
        "critic": {"head": "normal"},
    },
    "prompts": {"data": "reviews", "first_words": 3},
    "rollout": {
        "prompts_per_update": 7,
        "samples_per_prompt": 2,
        "max_new_tokens": 10,
        "stop_strings": ["e"],  # lengths differ, and go on to differ
    },
    "rewards": {
        "vowel": {
            "type": "regex",
            "pattern": "[aou]",
            "transforms": [{"type": "running_standardize"}],
        },
        "better": {
            "type": "preference_difference",
            "reward": {"type": "length", "target_tokens": 3},
            "against": "others",
            "transforms": [{"type": "clip", "limit": 2.0}, {"type": "running_scale"}],
        },
        "ended": {"type": "eos_penalty", "penalty": 1.0},
    },
    "kl": {"controller": {"type": "adaptive", "target": 1.0, "horizon": 30, "initial": 0.1}},
    "losses": {
        "ptx": {"type": "ptx", "gamma": 0.5, "data": "reviews", "examples_per_step": 3},
        "own": {"type": "likely"},
    },
    "ppo": {
        "updates": 10,
        "epochs": 1,
        "minibatches": 2,
        "learning_rate": 3e-3,
        "decay": "constant",
        "max_grad_norm": 0.5,
        "microbatch_tokens": 64,
    },
    "algorithm": {"whiten_rewards": True},
    "runtime": {"device": "cpu", "threads": 1, "strategy": "ddp"},
}
"""7 prompts are 8 and 6 responses on two ranks; a step has 7 of them, in several micro-batches."""

EXACT: dict[str, dict[str, Any]] = {
    "some rows a pass": {},
    "one row a pass": {"ppo.microbatch_tokens": 1, "rollout.generation_batch": 1},
    "everything in a pass": {"ppo.microbatch_tokens": 100_000, "rollout.generation_batch": 3},
    "a rank without rows": {
        "rollout.prompts_per_update": 3,
        "ppo.minibatches": 4,  # 2, 2, 1 and 1 responses
        "losses.ptx.examples_per_step": 1,
        "kl.estimator": "full",
    },
    "shared critic, KL as a loss": {
        "model.critic.shared": True,
        "kl.placement": "loss",
        "kl.estimator": "k3",
        "ppo.epochs": 2,
        "ppo.stop_approx_kl": 3e-4,  # the second pass is made after some rollouts only
    },
    "frozen models in parts": {"runtime.frozen": "shard"},
    "frozen models on the CPU": {"runtime.frozen": "offload"},
}
"""Runs in float64: name -> what differs from RECIPE."""

NO_CRITIC: dict[str, Any] = {
    "model.critic": None,
    "algorithm.advantages": {"type": "rloo"},
    "algorithm.policy_loss": {"type": "gspo", "clip": 0.003, "clip_high": 0.006},
    "algorithm.reduction": "sequence",
}

REMOVED = object()
"""In the place of a value: the recipe is without the key."""

MASKED: dict[str, Any] = {
    "rewards.ended": {"type": "eos_penalty", "mode": "mask", "reasons": ["stop_string"]},
    "losses": REMOVED,
    "ppo.minibatches": 6,
}
"""Nothing is learned from the few that end early, and in a step of 2 or 3 responses from none."""

ALGORITHMS: dict[str, dict[str, Any]] = {
    "gae without what ends early": {
        "rewards.ended": MASKED["rewards.ended"],
        "algorithm.policy_loss": {"type": "clip", "clip": 0.02},
        "algorithm.value_loss": {"type": "plain"},
    },
    "gae and a stream of examples": {
        "losses.streamed": {"type": "streamed"},
        "algorithm.policy_loss": {"type": "clip", "clip": 0.02},
        "algorithm.value_loss": {"type": "plain"},
    },
    "gae that bootstraps, clip": {
        "algorithm.advantages": {"type": "gae", "bootstrap": True, "gamma": 0.9},
        "algorithm.policy_loss": {"type": "clip", "clip": 0.02, "clip_high": 0.1, "dual_clip": 1.1},
        "algorithm.value_loss": {"type": "plain"},
        "model.critic.shared": True,
    },
    "rloo, gspo": NO_CRITIC,
    "rloo, gspo, and a filter that is corrected for": {
        **NO_CRITIC,
        "rollout.top_k": 150,
        "algorithm.importance_correction": "mask",
        "algorithm.importance_limit": 1.25,  # some tokens are beyond it, and most are not
    },
    "group_relative, cispo": {
        "model.critic": None,
        "algorithm.advantages": {"type": "group_relative"},
        "algorithm.policy_loss": {"type": "cispo", "clip_low": 0.01, "clip_high": 0.01},
        "algorithm.reduction": "constant",
        "kl.placement": "loss",
    },
    "group_relative in units of the reward": {
        "model.critic": None,
        "algorithm.advantages": {"type": "group_relative", "divide_by_std": False},
        "algorithm.whiten_advantages": True,
        "rewards.vowel.transforms": [{"type": "group_standardize"}, {"type": "clip", "limit": 0.5}],
    },
    "reinforce_plus_plus, reinforce": {
        "model.critic": None,
        "algorithm.advantages": {"type": "reinforce_plus_plus", "gamma": 0.9},
        "algorithm.policy_loss": {"type": "reinforce"},
        "algorithm.reduction": "sequence",
        "kl.placement": "loss",
        "kl.estimator": "k2",
    },
}
"""Runs in float64 in more steps and smaller passes on two ranks than alone: name -> what differs."""

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "zero 1": {"runtime.zero_stage": 1},
    "zero 2": {"runtime.zero_stage": 2},
    "zero 3": {"runtime.zero_stage": 3, "runtime.deepspeed_config": "NO_SMALL_WEIGHTS"},
    "zero 3, optimizer offloaded": {"runtime.zero_stage": 3, "runtime.offload": "optimizer"},
    "zero 3, all offloaded": {
        "runtime.zero_stage": 3,
        "runtime.offload": "all",
        "runtime.deepspeed_config": "NO_SMALL_WEIGHTS",
    },
    "fsdp": {"runtime.strategy": "fsdp"},
    "fsdp, frozen in parts": {"runtime.strategy": "fsdp", "runtime.frozen": "shard"},
    "zero 3, frozen in parts": {"runtime.zero_stage": 3, "runtime.frozen": "shard"},
}
"""Runs in float32: name -> what differs from RECIPE and SMALLER."""

SMALLER = {
    "rollout.max_new_tokens": 6,  # stage 3 takes a millisecond a module
    # In each step a pass of PTX alone, as it takes more than the rollout, and one of both.
    "losses.ptx.examples_per_step": 5,
    "ppo.microbatch_tokens": 110,
    "ppo.logits_chunk": 25,  # so that ranks make other numbers of chunks in the same pass
}

NO_SMALL_WEIGHTS = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""Else stage 3 leaves weights of fewer than 1e5 elements whole: all of a test's, none of a user's."""

SAVED_AFTER, SHORT = 2, 3  # updates


class Likely(AuxiliaryLoss[PluginConfig]):
    """A loss on the rollout itself: minus the log-probability of the sampled tokens."""

    coefficient = 0.3

    def loss(self, policy: Any, batch: Any) -> LossTerm:
        logprobs = policy.logprobs(batch.tokens)
        return LossTerm(-(logprobs * batch.mask).sum(), batch.mask.sum())


class Passes:
    """Five rows, in another order in each pass; it counts what it gave out."""

    def __init__(self, examples: list[Any]) -> None:
        self.given, self.cursor = examples, 0

    def __iter__(self) -> Iterator[Any]:
        turn, start = divmod(self.cursor, len(self.given))
        for place in range(start, len(self.given)):
            self.cursor += 1
            yield self.given[(place * (turn % 4 + 1) + turn) % len(self.given)]

    def state_dict(self) -> dict[str, int]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.cursor = state["cursor"]


class Streamed(Likely):
    """The same on a stream, of which 4 examples are 2 on each of two ranks."""

    examples_per_step = 4

    def examples(self) -> Any:
        rows = self.context.training_rows("reviews")[:5]
        return Passes([self.context.tokenize(row) for row in rows])


@dataclass
class Played:
    """What a run came to; the tensors are on rank 0 alone."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    tokens: list[dict[str, list[int]]] = field(default_factory=list)
    """Per update: number of the response -> its tokens."""
    passes: list[list[int]] = field(default_factory=list)
    """Per update: forward passes through the wrapped models, by rank."""
    ran: list[dict[str, Any]] = field(default_factory=list)
    """By rank: which engine it was."""
    warned: list[str] = field(default_factory=list)
    """Warnings on rank 0."""
    kl: dict[str, Any] = field(default_factory=dict)
    """The controller's state after SAVED_AFTER updates."""
    judge: dict[str, list[float]] = field(default_factory=dict)
    """The statistics of rewards then."""
    seconds: float = 0.0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """weights/NAME at the end; first/NAME/KEY, the optimiser's after its first step; saved/weights/NAME
    and saved/optimizer/NAME/KEY after SAVED_AFTER updates."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def write(self, directory: Path, name: str) -> None:
        save_file(self.tensors, directory / f"{name}.safetensors")
        plain = {key: value for key, value in vars(self).items() if key != "tensors"}
        (directory / f"{name}.json").write_text(json.dumps(plain))

    @classmethod
    def read(cls, directory: Path, name: str) -> Played:
        plain = json.loads((directory / f"{name}.json").read_text())
        return cls(**plain, tensors=load_file(directory / f"{name}.safetensors"))


def play(
    directory: Path, changes: Mapping[str, Any], *, updates: int, after: Played | None = None
) -> Played:
    """Run `updates` updates of RECIPE with some keys changed; every rank comes here.

    Args:
      directory: for files of the recipe.
      changes: dotted keys.
      updates: how many in all.
      after: go on from the state that another run has saved after SAVED_AFTER updates.
    """
    start, played = time.process_time(), Played()
    exact = changes.get("runtime.precision") == "float64"
    with nullcontext() if exact else smooth_adam():
        parts = _parts(directory, changes)
    runtime, training = parts.project.runtime, parts.models.training
    counter = _Counter()
    episodes = len(parts.generator.prompts.take(0, parts.project.recipe.rollout.prompts_per_update))

    def record(update: Update) -> None:
        played.metrics.append(
            update_metrics(
                update,
                parts.clock,
                penalty=parts.penalty,
                episodes=episodes * (update.number + 1),
                reduce=runtime.sum,
            )
        )
        mine = dict(zip(update.rollout.samples, update.rollout.response_ids(), strict=True))
        everyones = {k: list(ids) for share in runtime.gather(mine) for k, ids in share.items()}
        played.tokens.append({str(k): everyones[k] for k in sorted(everyones)})
        played.passes.append(runtime.gather(counter.restart()))
        if update.number + 1 == SAVED_AFTER:
            played.kl, played.judge = asdict(update.next_kl), parts.scorer.state_dict()
            played.tensors |= _flat("saved/weights", {"": training.weights()})
            played.tensors |= _flat("saved/optimizer", training.optimizer_state())

    run = watched(parts, record)
    kl, first = run.control.initial(), 0
    if after is not None:
        first, kl = SAVED_AFTER, KLState(**after.kl)
        _restore(training, after, played)
        parts.scorer.load_state_dict(after.judge)
        run.updater._steps = SAVED_AFTER * parts.ppo.epochs * parts.ppo.minibatches
    else:
        _keep_first_step(training, played)
    parts.models.trained.register_forward_pre_hook(counter)
    train(replace(run, updates=updates), RunState(first, kl))
    reference = {"reference share": _share(parts.models.reference.parameters())}
    with parts.models.gathered():
        reference["reference share, whole"] = _share(parts.models.reference.parameters())
    played.ran = runtime.gather(_running(training) | reference)
    played.tensors |= _flat("weights", {"": training.weights()})
    played.seconds = time.process_time() - start
    return played


@cache
def _registry() -> Registry:
    """The installed components and ours; a look at the environment takes a fifth of a second."""
    registry = Registry()
    registry.add("auxiliary_losses", "likely", Likely)
    registry.add("auxiliary_losses", "streamed", Streamed)
    return registry


def _parts(directory: Path, changes: Mapping[str, Any]) -> PPOParts:
    if not (file := directory / "recipe.yaml").exists():
        file.write_text(json.dumps(RECIPE))
    given = [
        f"~{key}" if value is REMOVED else f"{key}={json.dumps(value)}"
        for key, value in changes.items()
    ]
    project = Project(load_recipe(file, given, registry=_registry()), directory, _registry())
    return PPOParts(project, project.models.policy())


class _Counter:
    """Counts how often a module was called."""

    calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1

    def restart(self) -> int:
        calls, self.calls = self.calls, 0
        return calls


def _flat(prefix: str, state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One level of names; copies, since the originals go on being trained."""
    return {
        "/".join(filter(None, (prefix, name, key))): value.detach().cpu().clone().contiguous()
        for name, entries in state.items()
        for key, value in entries.items()
    }


def _keep_first_step(training: Training, played: Played) -> None:
    """After one step Adam's first moment is the gradient, times 1 - 0.9."""
    step = training.step

    def once() -> float:
        norm = step()
        training.step = step
        played.tensors |= _flat("first", training.optimizer_state())
        return norm

    training.step = once


def _restore(training: Training, after: Played, played: Played) -> None:
    """Load what was saved, and keep what the strategy then says it has."""
    state: State = {}
    for path, value in after.part("saved/optimizer/").items():
        name, _, key = path.rpartition("/")
        state.setdefault(name, {})[key] = value
    training.load_weights(after.part("saved/weights/"))
    training.load_optimizer_state(state)
    played.tensors |= _flat("saved/weights", {"": training.weights()})
    played.tensors |= _flat("saved/optimizer", training.optimizer_state())


def _running(training: Training) -> dict[str, Any]:
    """What this rank really runs, asked of the engine."""
    found: dict[str, Any] = {"class": type(training).__name__}
    weights = list(training.models.parameters())
    numbers = [getattr(p, "ds_numel", p.numel()) for p in weights]
    if isinstance(training, Replicated):
        found["wrapped"] = type(training._wrapped).__name__
    elif found["class"] == "Zero":
        engine = training._engine
        found |= {
            "engine": type(engine).__name__,
            "stage": engine.zero_optimization_stage(),
            "ranks": engine.dp_world_size,
            "optimizer offloaded": bool(engine.zero_offload_optimizer()),
            "weights offloaded": bool(engine.zero_offload_param()),
            "weights in parts": sum(not getattr(p, "ds_persist", True) for p in weights),
        }
    else:
        found["sharded modules"] = sum(isinstance(m, FSDPModule) for m in training.models.modules())
    held = [state["exp_avg"] for state in training.optimizer.state.values()]
    share = sum(map(_held, held)) / sum(numbers)
    return found | {"weights": len(weights), "optimizer share": share}


def _held(x: Tensor) -> int:
    """Numbers that this rank has memory for."""
    return (x.to_local() if isinstance(x, DTensor) else x).numel()


def _share(weights: Iterable[Tensor]) -> float:
    every = list(weights)
    return sum(map(_held, every)) / sum(x.numel() for x in every)


# Defects, each planted by the name of what it breaks


def _alone(runtime: Any) -> Any:
    """A runtime that believes to be the only process, but still knows its place."""
    return SimpleNamespace(
        rank=runtime.rank, world_size=runtime.world_size, sum=lambda x: x, max=runtime.max
    )


def _normaliser_of_a_rank() -> Any:
    right = PolicyUpdater._normaliser

    def wrong(self: PolicyUpdater, *args: Any) -> Any:
        runtime, self._runtime = self._runtime, _alone(self._runtime)
        try:
            return right(self, *args)
        finally:
            self._runtime = runtime

    return patch.object(PolicyUpdater, "_normaliser", wrong)


def _never_exchanged() -> Any:
    def wrong(self: Replicated, *, last: bool) -> Any:
        wrapped = self._wrapped
        return wrapped.no_sync() if hasattr(wrapped, "no_sync") else nullcontext()

    return patch.object(Replicated, "accumulating", wrong)


def _whitened_by_rank() -> Any:
    def wrong(self: ExperienceBuilder, x: Tensor, mask: Tensor) -> Moments:
        return moments(x, mask)

    return patch.object(ExperienceBuilder, "_moments", wrong)


def _kl_by_rank() -> Any:
    right = Experience.measured
    return patch.object(
        Experience, "measured", lambda self, unit, _: right(self, unit, lambda x: x)
    )


def _statistics_by_rank() -> Any:
    return patch("rlframe.engine.transforming.statistics", lambda x, _: statistics(x, lambda y: y))


def _metrics_by_rank() -> Any:
    right = Meter.means

    def wrong(self: Meter, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        mine = right(self, lambda x: x)
        total = reduce(torch.tensor([*mine.values(), 1.0], dtype=torch.float64))
        return dict(zip(mine, (total[:-1] / total[-1]).tolist(), strict=True))

    return patch.object(Meter, "means", wrong)


@contextmanager
def _auxiliary_mean_of_means() -> Iterator[None]:
    """A mean per micro-batch, then the mean over micro-batches and ranks that have any."""
    divide, auxiliary = PolicyUpdater._divide, Objective._auxiliary
    number: dict[str, float] = {}

    def counting(self: PolicyUpdater, *args: Any) -> Any:
        batches, over = divide(self, *args)
        for name, whole in over.auxiliary.items():
            some = sum(bool(b.auxiliary[name].mask.any()) for b in batches if name in b.auxiliary)
            number[name] = whole / float(self._runtime.sum(torch.tensor(float(some))))
        return batches, over

    def wrong(self: Objective, models: Any, instance: Any, tokens: Any, meter: Meter) -> Tensor:
        total = auxiliary(self, models, instance, tokens, meter)
        return total / tokens.mask.sum().clamp(min=1) * number[instance.name]

    with ExitStack() as stack:
        stack.enter_context(patch.object(PolicyUpdater, "_divide", counting))
        stack.enter_context(patch.object(Objective, "_auxiliary", wrong))
        yield


DEFECTS: dict[str, Callable[[], Any]] = {
    "a normaliser that is not summed over ranks": _normaliser_of_a_rank,
    "gradients that are never exchanged": _never_exchanged,
    "whitening by rank": _whitened_by_rank,
    "KL measured by rank": _kl_by_rank,
    "reward statistics by rank": _statistics_by_rank,
    "metrics averaged by rank": _metrics_by_rank,
    "an auxiliary loss averaged by micro-batch": _auxiliary_mean_of_means,
}


# Trouble on one rank, which changes nothing


CRAMPED = {"ppo.microbatch_tokens": 56}
"""Of rank 1, which has memory for 30 tokens in a pass, and for 3 rows to sample."""


def _lacking(right: Callable[..., Any], size: Callable[..., int], most: int) -> Callable[..., Any]:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        if torch.distributed.get_rank() == 1 and size(*args) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return right(*args, **kwargs)

    return wrong


@contextmanager
def _cramped() -> Iterator[None]:
    def learned(_: Any, models: Any, batch: Any, *rest: Any) -> int:
        return 0 if batch.experience is None else batch.experience.sequences.tokens.numel()

    with ExitStack() as stack:
        for owner, name, size, most in (
            (Policy, "next_logits", lambda _, tokens, *rest: len(tokens), 3),
            (Models, "_one_pass", lambda _, part: part.tokens.numel(), 30),
            (Objective, "__call__", learned, 30),
        ):
            wrong = _lacking(getattr(owner, name), size, most)
            stack.enter_context(patch.object(owner, name, wrong))
        yield


@contextmanager
def _broken_off() -> Iterator[None]:
    """Rank 1's memory ends once, amid the last backward pass of a step, when DDP has some gradients."""
    right, ends = Replicated.backward, iter([True])

    def full(_: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def wrong(self: Replicated, loss: Tensor) -> None:
        last = self._wrapped.require_backward_grad_sync
        if not (torch.distributed.get_rank() == 1 and last and next(ends, False)):
            return right(self, loss)
        weights = list(self.models.parameters())
        hook = weights[len(weights) // 2].register_hook(full)
        try:
            return right(self, loss)
        finally:
            hook.remove()

    with patch.object(Replicated, "backward", wrong):
        yield


@contextmanager
def not_finite() -> Iterator[None]:
    """The second step's losses are infinite: those of rank 1 alone, where there are two."""
    step, loss, struck = PolicyUpdater._step, Objective.__call__, [False]

    def second(self: PolicyUpdater, *args: Any) -> float:
        mine = self._runtime.rank == self._runtime.world_size - 1
        struck[0] = mine and self._steps == 1
        return step(self, *args)

    def infinite(self: Objective, *args: Any) -> Any:
        found, part = loss(self, *args)
        return (found * math.inf if struck[0] else found), part

    with (
        patch.object(PolicyUpdater, "_step", second),
        patch.object(Objective, "__call__", infinite),
    ):
        yield


WITHOUT_MEMORY: dict[str, Callable[[], Any]] = {
    "no memory on a rank": _cramped,
    "no memory for a rank's last gradients": _broken_off,
}


# What two processes play


def strategy_changes(directory: Path, name: str) -> dict[str, Any]:
    """The overrides of one of STRATEGIES, with the DeepSpeed file that it may name."""
    changes = SMALLER | STRATEGIES[name]
    if "runtime.zero_stage" in changes:
        changes["runtime.strategy"] = "deepspeed"
    if "runtime.deepspeed_config" in changes:
        changes["runtime.deepspeed_config"] = str(directory / "deepspeed.json")
        (directory / "deepspeed.json").write_text(json.dumps(NO_SMALL_WEIGHTS))
    return changes


def without_critic(changes: Mapping[str, Any]) -> dict[str, Any]:
    """A strategy's overrides for a run without a critic, in which some steps count nothing."""
    kept = {key: value for key, value in changes.items() if not key.startswith("losses.")}
    return kept | NO_CRITIC | MASKED


def play_not_finite(directory: Path, changes: Mapping[str, Any]) -> Played:
    """Two updates, a step of which is skipped; PTX asks for whole distributions."""
    with not_finite():
        return play(directory, {**changes, "losses.ptx.label_smoothing": 0.2}, updates=2)


def runs(directory: Path) -> Iterator[tuple[str, Callable[[], Played]]]:
    """(name, how to play it), in order."""
    exact = {"runtime.precision": "float64"}
    for name, changes in EXACT.items():
        yield name, lambda changes=changes: play(directory, exact | changes, updates=10)
    for name, changes in ALGORITHMS.items():
        yield name, lambda changes=changes: play(directory, exact | changes, updates=4)
    for name, planted in DEFECTS.items():

        def spoiled(planted: Callable[[], Any] = planted) -> Played:
            # Or the run would stop at what differs between ranks, and no number would show it.
            with (
                planted(),
                patch.object(KLControl, "_agreed", lambda _, state: state),
                patch.object(TransformChain, "_refuse_other_states", lambda _: None),
            ):
                return play(directory, exact, updates=2)

        yield name, spoiled

    for name, lack in WITHOUT_MEMORY.items():

        def cramped(lack: Callable[[], Any] = lack) -> Played:
            with lack(), warnings.catch_warnings(record=True, action="always") as caught:
                played = play(directory, exact | CRAMPED, updates=2)
            played.warned = [str(warning.message) for warning in caught]
            return played

        yield name, cramped
    before = "alone"  # written by the test, in one process
    for name in STRATEGIES:
        changes = strategy_changes(directory, name)
        yield name, lambda changes=changes: play(directory, changes, updates=SHORT)
        without = without_critic(changes)
        yield f"{name}, no critic", lambda changes=without: play(directory, changes, updates=2)
        yield f"{name}, not finite", lambda changes=changes: play_not_finite(directory, changes)
        yield (
            f"{name} after {before}",
            lambda changes=changes, before=before: play(
                directory, changes, updates=SHORT, after=Played.read(directory, before)
            ),
        )
        before = name


def main(directory: Path) -> None:
    for name, run in runs(directory):
        played = run()
        rank = torch.distributed.get_rank()
        if rank == 0:
            sys.stderr.write(f"{name}: {played.seconds:.1f} s\n")
            played.write(directory, name)
        torch.distributed.barrier()  # the next run may read it


if __name__ == "__main__":
    reports = take_reports()
    main(Path(sys.argv[1]))
    finished(reports)

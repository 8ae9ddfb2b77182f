"""What a PPO run needs on paper: bytes on each GPU at the peak of an update.

Shapes in, bytes out: nothing is allocated. An update has seven moments at which it may peak, and
each is a sum of parts: sampling, the passes without gradient, the head at the end of a training
pass's forward, the begin of its backward, and the optimiser's step. Sizes are those of the longest
prompt with a response of full length, in as many rows as `microbatch_tokens` allows. docs/plan.md
has the equations.

Activations are counted tensor by tensor, as autograd keeps them for a block of transformers with
fused attention and without gradient checkpointing; tests hold the count against autograd.
Korthikanti et al. 2022 (https://arxiv.org/abs/2205.05198) count a GPT block in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rlframe.planning.gpus import GIB, Device
from rlframe.planning.strategies import (
    Placement,
    Precision,
    Strategy,
    Trained,
    accumulated,
    element,
    live,
    state,
    stepping,
    waiting,
)

Mode = Literal["float32", "bfloat16", "autocast"]
"""How numbers are computed: all float32, all bfloat16, or float32 weights under autocast (ddp)."""
MLP = Literal["gated", "gelu_new", "plain"]

# Bytes a token and unit of `intermediate` that autograd keeps, by mode. Gated: gate, its
# activation, up, and their product. gelu_new is written out in transformers: input, half of it,
# tanh, 1 + tanh, product; under autocast its cube makes three of them float32. Plain: the
# activation's input and its output.
_MLP_BYTES: dict[MLP, dict[Mode, int]] = {
    "gated": {"float32": 16, "bfloat16": 8, "autocast": 8},
    "gelu_new": {"float32": 20, "bfloat16": 10, "autocast": 16},
    "plain": {"float32": 8, "bfloat16": 4, "autocast": 4},
}
# Bytes a token and unit of `hidden` of a norm, with what the linear maps behind it keep of its result.
# RMSNorm: input and normalised input in float32 (the second in bfloat16 under it), result. LayerNorm
# is fused: input, result. Under autocast each linear map behind a norm keeps a bfloat16 copy of the
# result: q, k, v, gate and up, or qkv and the first of the MLP.
_NORM_BYTES: dict[bool, dict[Mode, int]] = {
    True: {"float32": 24, "bfloat16": 16, "autocast": 26},
    False: {"float32": 16, "bfloat16": 8, "autocast": 12},
}


@dataclass(frozen=True)
class Shape:
    """A transformer. Widths in numbers, sizes in parameters."""

    parameters: int
    block: int
    """Of the largest block."""
    lookup: int
    """Of an embedding that is only looked up, so that no product reads it."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int  # 0 for a model with a scalar head
    rms_norm: bool
    """Llama's norm, which autograd sees as five operations; else a fused LayerNorm."""
    mlp: MLP

    @property
    def outside(self) -> int:
        """Parameters in no block."""
        return self.parameters - self.layers * self.block


@dataclass(frozen=True)
class Workload:
    """One PPO update of a recipe."""

    policy: Shape
    critic: Shape | None
    """None for a head on the policy's trunk, which is as good as nothing, and without a critic."""
    reference: Shape
    rewards: tuple[Shape, ...]
    precision: Precision
    prompts: int
    samples: int
    """Responses to a prompt."""
    prompt_tokens: int
    """The longest."""
    mean_prompt_tokens: float
    response_tokens: int  # at most
    generation_batch: int | None
    sorts: bool
    """Whether the sampler sorts the vocabulary (top_p)."""
    epochs: int
    minibatches: int
    microbatch_tokens: int
    logits_chunk: int
    auxiliary: tuple[int, ...] = ()
    """Padded tokens an optimiser step of each auxiliary loss with data of its own, over all ranks."""
    placement: Placement = "replicate"
    """Of the models that are not trained."""
    cache_tokens: int | None = None
    """The most that the sampler keeps; None for all of a batch."""

    @property
    def trained(self) -> Trained:
        critic = self.critic
        return Trained(
            self.policy.parameters,
            critic.parameters if critic else 0,
            max(self.policy.block, critic.block if critic else 0),
            self.policy.outside + (critic.outside if critic else 0),
        )

    @property
    def frozen(self) -> tuple[Shape, ...]:
        return (self.reference, *self.rewards)

    @property
    def frozen_total(self) -> int:
        """Parameters."""
        return sum(shape.parameters for shape in self.frozen)


@dataclass(frozen=True)
class Pass:
    """The largest forward pass of a training step on one rank."""

    rows: int
    count: int
    """Passes of an optimiser step."""
    tokens: int
    """That the trunks read."""
    predictions: int
    """Response tokens: what the head is applied to."""
    auxiliary: int
    """Tokens of auxiliary losses in the same pass, read by the policy alone."""


def share(work: Workload, gpus: int) -> int:
    """Responses of a rank; prompts are dealt whole."""
    return -(-work.prompts // gpus) * work.samples


def largest_pass(work: Workload, gpus: int) -> Pass:
    """Rows of L tokens up to the budget of padded tokens, at least one: `engine/batching.py`."""
    longest = work.prompt_tokens + work.response_tokens
    mine = -(-share(work, gpus) // work.minibatches)
    rows = min(mine, max(1, work.microbatch_tokens // longest))
    own = [-(-tokens // gpus) for tokens in work.auxiliary]
    count = max([-(-mine // rows), *(-(-tokens // work.microbatch_tokens) for tokens in own)])
    return Pass(
        rows,
        count,
        rows * (longest - 1),
        rows * work.response_tokens,
        sum(-(-tokens // count) for tokens in own),
    )


def mode_of(strategy: Strategy, precision: Precision) -> Mode:
    """Autocast is ddp's way to bfloat16; the others compute in it."""
    return "autocast" if strategy.name == "ddp" and precision == "bfloat16" else precision


def block_activations(shape: Shape, mode: Mode) -> int:
    """Bytes a token that autograd keeps of one block: O(1) a token, since attention is fused.

    norms + MLP + (q, k, v, result) + in float32 the log-sum-exp of each head and the norms' statistics.
    """
    widths = 2 * shape.head_dim * (shape.heads + shape.kv_heads)
    return (
        _NORM_BYTES[shape.rms_norm][mode] * shape.hidden
        + _MLP_BYTES[shape.mlp][mode] * shape.intermediate
        + (4 if mode == "float32" else 2) * widths
        + 4 * shape.heads
        + (8 if shape.rms_norm else 16)
    )


def activations(shape: Shape, mode: Mode) -> int:
    """Bytes a token that a training pass keeps of a trunk: its blocks, and the norm behind them.

    The last norm keeps no result: the head is given a copy of the response's positions.
    """
    last = {True: (8, 6, 8), False: (4, 2, 4)}[shape.rms_norm]
    per_number = dict(zip(("float32", "bfloat16", "autocast"), last, strict=True))[mode]
    return shape.layers * block_activations(shape, mode) + per_number * shape.hidden


def fleeting(shape: Shape, mode: Mode) -> int:
    """Bytes a token alive at once in a pass without gradient: residual, norm, and the MLP's tensors."""
    copies = {"gated": 3, "gelu_new": 4, "plain": 2}[shape.mlp]
    size = 4 if mode == "float32" else 2
    return (4 if mode == "autocast" else size) * 2 * shape.hidden + size * (
        shape.hidden + copies * shape.intermediate
    )


@dataclass(frozen=True)
class Head:
    """Bytes of logits for a chunk of n positions, as `functional/logprobs.py` makes them.

    With one product: the forward pass keeps the logits of a training chunk and has, for so many
    columns at a time, two float32 copies besides, and a third of bfloat16 logits; the backward pass one
    (two) besides what was kept. Through the head as a module (autocast; ZeRO-3, whose hooks gather its
    weight): log-probabilities and probabilities are kept.
    """

    kept: int
    forward: int
    backward: int
    untrained: int
    """In a pass without gradient."""


def head(n: int, vocabulary: int, mode: Mode, columns: int | None, *, module: bool = False) -> Head:
    """The logits of n positions.

    Args:
      n: positions, at most a chunk.
      vocabulary: columns of the head.
      mode: of the computation.
      columns: reduced at a time; all if None.
      module: the head is asked as a module, as it always is under autocast.
    """
    whole, part = n * vocabulary, n * min(vocabulary, columns or vocabulary)
    if module or mode == "autocast":
        half = 0 if mode == "float32" else 2  # logits are bfloat16 before they are float32
        return Head(8 * whole, (12 + half) * whole, (16 + half) * whole, (12 + half) * whole)
    size, wide = (4, 0) if mode == "float32" else (2, 4)
    return Head(
        size * whole,
        size * whole + (8 + wide) * part,
        size * whole + (4 + wide) * part,
        (size + 8 + wide) * part,
    )


def cache(work: Workload, gpus: int, mode: Mode) -> int:
    """Bytes of keys and values of the responses that are written at once on a rank.

    Autocast turns keys into float32 where it rotates them.
    """
    rows = min(share(work, gpus), work.generation_batch or share(work, gpus))
    pair = {"float32": 8, "bfloat16": 4, "autocast": 6}[mode]
    tokens = rows * (work.prompt_tokens + work.response_tokens)
    each = pair * work.policy.layers * work.policy.kv_heads * work.policy.head_dim
    return min(tokens, work.cache_tokens or tokens) * each


Parts = Mapping[str, int]
"""What -> bytes."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    moments: Mapping[str, Parts]
    """Moment of an update -> its parts."""
    host: int
    """Bytes in the memory of the CPU, for this GPU."""

    @property
    def moment(self) -> str:
        """The fullest one."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def peak(self) -> int:
        return sum(self.moments[self.moment].values())


def memory(work: Workload, strategy: Strategy, device: Device, gpus: int) -> Memory:
    """Predict the parts of each moment of an update.

    Args:
      work: the update.
      strategy: how the trained models are spread.
      device: for its constant and the way it reduces logits.
      gpus: processes, one on each.
    """
    mode, trained = mode_of(strategy, work.precision), work.trained
    kept = state(strategy, work.precision, gpus)
    size = element(work.precision)
    apart = waiting(work.placement, strategy, work.precision, gpus)
    sequence = work.prompt_tokens + work.response_tokens
    # Ids in 8 bytes; of a response token a mask in 1 and eight numbers in float32.
    always = {
        "weights": round(kept.weights * trained.total),
        "optimizer": round(kept.optimizer * trained.total),
        "frozen": round(apart.on_gpu * work.frozen_total),
        "experience": share(work, gpus) * (8 * sequence + 33 * work.response_tokens),
        "runtime": round(device.runtime_gib * GIB),
    }
    if strategy.name == "ddp" and gpus > 1:  # its buckets are the gradients, and stay
        always["gradients"] = round(kept.gradients * trained.total)
    gathered = round(apart.gathered * work.frozen_total)
    gathered += size * trained.total if strategy.shards_weights else 0
    whole = {"gathered": gathered} if gathered else {}
    moments = {
        "sampling": {**always, **whole, **_sampling(work, mode, gpus)},
        "experience": {**always, **whole, **_untrained(work, mode, device, gpus)},
        **{
            name: {**always, **parts}
            for name, parts in _training(work, strategy, mode, device, gpus).items()
        },
    }
    return Memory(moments, round(kept.host * trained.total + apart.host * work.frozen_total))


def _sampling(work: Workload, mode: Mode, gpus: int) -> Parts:
    """The cache, the prompts' pass, and [B, V] logits with their copies in `functional/sampling.py`."""
    rows = min(share(work, gpus), work.generation_batch or share(work, gpus))
    size, wide = (4, 0) if mode == "float32" else (2, 4)
    # Beside the logits: float32 weights, the same padded, and in float64 for their sums; or, where they
    # are sorted, values, places, probabilities, their sums, and the places of the places.
    each = size + wide + (32 if work.sorts else 16)
    return {
        "cache": cache(work, gpus, mode),
        "activations": rows * work.prompt_tokens * fleeting(work.policy, mode),
        "logits": each * rows * work.policy.vocabulary,
    }


def _untrained(work: Workload, mode: Mode, device: Device, gpus: int) -> Parts:
    one = largest_pass(work, gpus)
    chunk = min(work.logits_chunk, one.predictions)
    shapes = [work.policy, *([work.critic] if work.critic else []), *work.frozen]
    return {
        "activations": one.tokens * max(fleeting(shape, mode) for shape in shapes),
        "logits": head(chunk, work.policy.vocabulary, mode, device.head_columns).untrained,
    }


def _training(
    work: Workload, strategy: Strategy, mode: Mode, device: Device, gpus: int
) -> Mapping[str, Parts]:
    """The moments of a training pass that is not the first of its step, and of the step."""
    one, trained, policy = largest_pass(work, gpus), work.trained, work.policy
    size = element(work.precision)
    chunk = min(work.logits_chunk, one.predictions)
    logits = head(chunk, policy.vocabulary, mode, device.head_columns, module=strategy.stage == 3)
    # The last chunk of each auxiliary loss waits as well.
    others = logits.kept * len(work.auxiliary)
    sums = accumulated(strategy, work.precision, trained, gpus, passes=one.count)
    buckets = strategy.name == "ddp" and gpus > 1
    before = sums if one.count > 1 and not buckets else 0
    critic = one.tokens * activations(work.critic, mode) if work.critic else 0
    read = (one.tokens + one.auxiliary) * activations(policy, mode)
    read += size * (one.predictions + one.auxiliary) * policy.hidden
    if mode == "autocast":  # weights are cast once a pass, and the casts wait for the backward pass
        lookups = policy.lookup + (work.critic.lookup if work.critic else 0)
        read += 2 * (trained.total - lookups)
    inside = {"buffers": live(strategy, work.precision, trained, lazy=device.lazy)}
    # The head's gradient is a sum over chunks: two of them at a time.
    pieces = 2 if one.predictions + one.auxiliary > work.logits_chunk else 1
    product = pieces * (4 if mode == "autocast" else size) * policy.vocabulary * policy.hidden
    arrived = 0 if buckets else before or sums * trained.critic // trained.total
    moments: dict[str, Parts] = {
        "head, forward": {
            "gradients": before,
            "activations": read + size * one.tokens * policy.hidden,
            "logits": logits.forward + others,
        },
        "begin of backward": {
            "gradients": before,
            "activations": read + critic + _first_block(work, mode, one.tokens),
            "logits": logits.kept + others,
        },
        "head, backward": {
            "gradients": arrived,
            "activations": read,
            "logits": logits.backward + others + product,
        },
        "end of backward": {"gradients": 0 if buckets else sums},
    }
    found = {name: {**inside, **parts} for name, parts in moments.items()}
    step = {"gradients": 0 if buckets else sums, "buffers": stepping(strategy, trained, gpus)}
    found["step"] = step
    if buckets:  # they are in `always` already
        found = {n: {k: v for k, v in p.items() if k != "gradients"} for n, p in found.items()}
    return found


def _first_block(work: Workload, mode: Mode, tokens: int) -> int:
    """Gradients of the MLP's tensors and the residual: what backward adds before it frees."""
    shape = work.critic or work.policy
    size = 4 if mode == "float32" else 2
    return size * tokens * 2 * (shape.intermediate + shape.hidden)

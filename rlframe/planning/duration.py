"""How long a PPO update takes on paper: operations, bytes moved and kernels started, over the speeds.

A trunk costs 2 FLOPs a token and parameter that a product reads, and 2 A C more a block for causal
attention over C tokens; the head 2 V H a response token. A backward pass costs twice its forward.
Writing a token costs the larger of its operations, the bytes of weights and cache that it reads, and
the kernels that Python has to start one by one (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361,
section 2.1; Pope et al. 2022, https://arxiv.org/abs/2211.05102, section 2).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rlframe.planning.gpus import PER_NODE, Device
from rlframe.planning.memory import Shape, Workload, cache, largest_pass, mode_of, share
from rlframe.planning.strategies import Strategy, element, waiting

# Counted in transformers' code: kernels that a block starts for one token, and a step beside its
# blocks.
_KERNELS = {"gated": 40, "gelu_new": 24, "plain": 18}
_KERNELS_A_STEP = 40
# AdamW reads weight, gradient and both moments and writes all but the gradient, in float32.
_ADAM_BYTES = 28
# Bytes/s of a server's memory, that all GPUs of a machine share when the CPU runs the optimiser.
_HOST_RATE = 200e9


@dataclass(frozen=True)
class Efficiency:
    """The share of a data sheet's speed that is assumed to be reached."""

    products: float = 0.4
    memory: float = 0.6
    link: float = 0.6


@dataclass(frozen=True)
class Seconds:
    """One update, phase by phase. Communication is added, as if nothing overlapped it."""

    sampling: float
    reward: float
    experience: float
    learn: float
    communication: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


def trunk_flops(shape: Shape, tokens: float, context: float) -> float:
    """A forward pass over so many tokens, in sequences of `context` tokens."""
    head = shape.vocabulary * shape.hidden
    products = 2 * (shape.parameters - shape.lookup - head)
    attention = 2 * shape.layers * shape.heads * shape.head_dim * context
    return tokens * (products + attention)


def head_flops(shape: Shape, predictions: float) -> float:
    """The logits of so many positions."""
    return 2 * predictions * shape.vocabulary * shape.hidden


def seconds(
    work: Workload,
    strategy: Strategy,
    device: Device,
    gpus: int,
    efficiency: Efficiency = Efficiency(),
) -> Seconds:
    """Predict an update on one rank; all ranks have as much to do.

    Args:
      work: the update: responses of full length to prompts of average length.
      strategy: how the trained models are spread.
      device: its speeds.
      gpus: processes, one on each.
      efficiency: what is reached of them.
    """
    rate = device.rate(work.precision) * efficiency.products
    context = work.mean_prompt_tokens + work.response_tokens
    responses = share(work, gpus)
    tokens, predictions = responses * context, responses * work.response_tokens
    trained = [work.policy, *([work.critic] if work.critic else [])]
    forward = sum(trunk_flops(shape, tokens, context) for shape in trained)
    logits = head_flops(work.policy, predictions)
    auxiliary = sum(work.auxiliary) * work.minibatches / gpus
    more = trunk_flops(work.policy, auxiliary, context) + head_flops(work.policy, auxiliary)
    passes = 3 * (forward + logits + more) + logits  # all chunks but one run the head twice
    judged = sum(trunk_flops(shape, tokens, context) for shape in work.rewards)
    seen = forward + logits + trunk_flops(work.reference, tokens, context)
    seen += head_flops(work.reference, predictions)
    return Seconds(
        sampling=_sampling(work, strategy, device, gpus, efficiency),
        reward=judged / rate,
        experience=seen / rate,
        learn=work.epochs * passes / rate + _steps(work, strategy, device, gpus, efficiency),
        communication=_communication(work, strategy, device, gpus, efficiency),
    )


def _sampling(
    work: Workload, strategy: Strategy, device: Device, gpus: int, efficiency: Efficiency
) -> float:
    """The prompts' pass, and a step a token for each batch of responses."""
    policy, responses = work.policy, share(work, gpus)
    mode = mode_of(strategy, work.precision)
    rate = device.rate(work.precision) * efficiency.products
    prompts = trunk_flops(policy, responses * work.mean_prompt_tokens, work.mean_prompt_tokens)
    rows = min(responses, work.generation_batch or responses)
    context = work.mean_prompt_tokens + work.response_tokens / 2
    flops = trunk_flops(policy, rows, 2 * context) + head_flops(policy, rows)
    # Autocast reads float32 weights, writes them in bfloat16 and reads those, for every token.
    weights = {"float32": 4, "bfloat16": 2, "autocast": 8}[mode]
    filled = context / (work.prompt_tokens + work.response_tokens)
    moved = weights * (policy.parameters - policy.lookup) + filled * cache(work, gpus, mode)
    started = policy.layers * _KERNELS[policy.mlp] + _KERNELS_A_STEP
    step = max(
        flops / rate, moved / (device.memory_rate * efficiency.memory), started * device.launch
    )
    return prompts / rate + -(-responses // rows) * work.response_tokens * step


def _steps(
    work: Workload, strategy: Strategy, device: Device, gpus: int, efficiency: Efficiency
) -> float:
    """AdamW's, bound by memory: the GPU's, or the CPU's and the way there and back."""
    steps, parameters = work.epochs * work.minibatches, work.trained.total
    sharded = strategy.name == "fsdp" or strategy.stage >= 1
    part = parameters / gpus if sharded else parameters
    if strategy.offload == "none":
        return steps * _ADAM_BYTES * part / (device.memory_rate * efficiency.memory)
    shared = part * min(gpus, PER_NODE)
    there_and_back = 2 * element(work.precision) * part / (device.host_link * efficiency.link)
    return steps * (_ADAM_BYTES * shared / (_HOST_RATE * efficiency.memory) + there_and_back)


def _communication(
    work: Workload, strategy: Strategy, device: Device, gpus: int, efficiency: Efficiency
) -> float:
    """Bytes that a ring carries, (N - 1)/N of a size for each gather or reduction.

    ddp reduces and gathers float32 gradients once a step; ZeRO-1 gradients and weights once a step,
    ZeRO-2 gradients in each pass; ZeRO-3 gathers weights twice a pass and reduces; FSDP gathers twice a
    pass and reduces float32 gradients once a step. Sharded weights are gathered whole for sampling, and
    again for the passes without gradient. Frozen models come once an update, from ranks or the CPU.
    """
    own, steps = element(work.precision), work.epochs * work.minibatches
    passes = steps * largest_pass(work, gpus).count
    carried = {
        "ddp": 8 * steps,
        "ZeRO-0": 2 * own * steps,
        "ZeRO-1": 2 * own * steps,
        "ZeRO-2": own * (passes + steps),
        "ZeRO-3": own * (3 * passes + 2),
        "fsdp": own * (2 * passes + 2) + 4 * steps,
    }[str(Strategy(strategy.name, strategy.stage))]
    size = carried * work.trained.total * (gpus - 1) / gpus
    time = size / (device.link * efficiency.link)
    if strategy.offload == "all":  # each rank's part of the weights comes from the CPU
        gathers = own * (2 * passes + 2) * work.trained.total / gpus
        time += gathers / (device.host_link * efficiency.link)
    apart = waiting(work.placement, strategy, work.precision, gpus)
    come = (apart.gathered - apart.on_gpu if apart.gathered else 0) * work.frozen_total
    return time + come / ((device.host_link if apart.host else device.link) * efficiency.link)

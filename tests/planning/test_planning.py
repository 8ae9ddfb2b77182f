"""Plans: hand-worked tables, what autograd keeps of real blocks, and properties of any shape."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rlframe.planning import duration
from rlframe.planning.gpus import GIB, GPUS, cpu
from rlframe.planning.memory import (
    Shape,
    Workload,
    activations,
    block_activations,
    cache,
    head,
    largest_pass,
    memory,
    share,
)
from rlframe.planning.remedies import MARGIN, remedies, verdict
from rlframe.planning.strategies import (
    STRATEGIES,
    Strategy,
    Trained,
    Waiting,
    accumulated,
    live,
    state,
    waiting,
)

H200 = GPUS["h200"]
DDP, FSDP = Strategy("ddp"), Strategy("fsdp")
ZERO = {stage: Strategy("deepspeed", stage) for stage in (0, 1, 2, 3)}

POLICY = Shape(
    parameters=1000, block=300, lookup=200, layers=2, hidden=10, intermediate=30, heads=2, kv_heads=1,
    head_dim=5, vocabulary=20, rms_norm=True, mlp="gated",
)  # fmt: skip
CRITIC = replace(POLICY, parameters=810, vocabulary=0)
SMALL = Workload(
    policy=POLICY, critic=CRITIC, reference=POLICY, rewards=(CRITIC,), precision="float32", prompts=8,
    samples=1, prompt_tokens=4, mean_prompt_tokens=3, response_tokens=6, generation_batch=None,
    sorts=False, epochs=2, minibatches=1, microbatch_tokens=40, logits_chunk=100,
)  # fmt: skip

# A Llama of about 8 billion parameters with a critic of its own.
BIG = Shape(
    parameters=8_030_261_248, block=218_112_000, lookup=525_336_576, layers=32, hidden=4096,
    intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocabulary=128_256, rms_norm=True,
    mlp="gated",
)  # fmt: skip
LARGE = replace(
    SMALL, policy=BIG, critic=replace(BIG, parameters=7_504_928_768, vocabulary=0), reference=BIG,
    rewards=(), precision="bfloat16", prompts=512, prompt_tokens=256, mean_prompt_tokens=128,
    response_tokens=768, epochs=4, microbatch_tokens=4096, logits_chunk=512,
)  # fmt: skip


# Bytes a parameter


def test_sixteen_bytes_a_parameter_on_one_gpu_as_zero_counts_mixed_precision_adam():
    for strategy in (DDP, FSDP, *ZERO.values()):
        assert state(strategy, "bfloat16", 1).on_gpu == 16, strategy


def test_the_table_of_the_zero_paper():
    """Figure 1 of Rajbhandari et al. 2020: 7.5 billion parameters on 64 GPUs, in decimal gigabytes."""
    message = {0: 120, 1: 31.4, 2: 16.6, 3: 1.9}
    for stage, gigabytes in message.items():
        found = 7.5 * state(ZERO[stage], "bfloat16", 64).on_gpu
        assert found == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("gpus", [2, 3, 8, 64])
def test_each_stage_keeps_no_more_than_the_one_before(precision, gpus):
    sizes = [state(s, precision, gpus).on_gpu for s in (DDP, ZERO[1], ZERO[2], ZERO[3])]
    assert sizes == sorted(sizes, reverse=True)


def test_in_float32_too_each_stage_steps_a_copy_of_its_part():
    assert [state(ZERO[s], "float32", 4).optimizer for s in (0, 1, 2, 3)] == [8, 3, 3, 3]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_offloaded_is_in_the_cpu_and_nothing_is_lost(stage, precision):
    none = state(ZERO[stage], precision, 4)
    moved = state(replace(ZERO[stage], offload="optimizer"), precision, 4)
    assert moved.on_gpu < none.on_gpu
    assert moved.on_gpu + moved.host == pytest.approx(none.on_gpu)


def test_fsdp_keeps_whole_gradients_between_the_passes_of_a_step():
    trained = Trained(policy=1000, critic=600, block=100, outside=300)
    assert accumulated(FSDP, "bfloat16", trained, 8, passes=2) == 4 * 1600
    assert accumulated(FSDP, "bfloat16", trained, 8, passes=1) == 4 * 1600 / 8 + 2 * 300


def test_buffers_that_nobody_touches_count_on_a_gpu_alone():
    trained = Trained(policy=1000, critic=600, block=100, outside=300)
    assert live(ZERO[2], "bfloat16", trained, lazy=True) == 2 * 1600
    assert live(ZERO[2], "bfloat16", trained, lazy=False) == 2 * 500_000_000
    assert live(ZERO[3], "bfloat16", trained, lazy=True) == 2 * (2 * 1600 + 2 * 1600)
    assert live(FSDP, "bfloat16", trained, lazy=False) == 2 * (2 * 100 + 300)
    assert live(DDP, "bfloat16", trained, lazy=False) == 0


def test_where_a_parameter_waits_that_is_not_trained():
    assert waiting("replicate", FSDP, "bfloat16", 4) == Waiting(2, 0, 0)
    assert waiting("shard", FSDP, "bfloat16", 4) == Waiting(0.5, 2, 0)
    assert waiting("offload", FSDP, "bfloat16", 4) == Waiting(0, 2, 2)
    assert waiting("shard", FSDP, "bfloat16", 1) == waiting("replicate", FSDP, "bfloat16", 1)
    assert waiting("shard", DDP, "bfloat16", 4) == Waiting(1, 4, 0)  # autocast's are float32


# Activations, against autograd


def kept_by_autograd(model: Any, tokens: torch.Tensor, *, autocast: bool) -> float:
    """Bytes a token that a trunk's forward pass keeps, weights and their casts left out."""
    weights = {tuple(p.shape) for p in model.parameters()}
    weights |= {shape[::-1] for shape in weights}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor):
        if tuple(tensor.shape) not in weights:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or another tensor would get its address
        return tensor

    casting = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), casting:
        model.base_model(input_ids=tokens, use_cache=False)
    return sum(sizes.values()) / tokens.numel()


def tiny_llama(layers: int) -> Any:
    return LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip


def tiny_gpt2(layers: int, activation: str) -> Any:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2Config(
        vocab_size=50, n_embd=64, n_layer=layers, n_head=4, activation_function=activation, **ends
    )


LLAMA = replace(POLICY, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16)
GPT2 = replace(LLAMA, intermediate=256, kv_heads=4, rms_norm=False, mlp="gelu_new")
CASES = {
    "llama float32": (tiny_llama, LLAMA, "float32"),
    "llama bfloat16": (tiny_llama, LLAMA, "bfloat16"),
    "llama autocast": (tiny_llama, LLAMA, "autocast"),
    "gpt2 float32": (lambda n: tiny_gpt2(n, "gelu_new"), GPT2, "float32"),
    "gpt2 bfloat16": (lambda n: tiny_gpt2(n, "gelu_new"), GPT2, "bfloat16"),
    "gelu float32": (lambda n: tiny_gpt2(n, "gelu"), replace(GPT2, mlp="plain"), "float32"),
    # GPT-2 under autocast is left out: CUDA computes its cube in float32, a CPU does not.
}


@pytest.mark.parametrize(("config", "shape", "mode"), CASES.values(), ids=CASES)
def test_the_count_is_what_autograd_keeps(config, shape, mode):
    tokens = torch.randint(0, 50, (3, 37))
    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
    found = [
        kept_by_autograd(
            AutoModelForCausalLM.from_config(config(n), dtype=dtype).eval(),
            tokens,
            autocast=mode == "autocast",
        )
        for n in (1, 2, 3)
    ]
    # A block is a block.
    assert found[2] - found[1] == pytest.approx(found[1] - found[0])
    assert block_activations(shape, mode) == pytest.approx(found[1] - found[0], rel=0.005)
    # Beside the blocks and the last norm there are ids, positions and rotations.
    rest = found[0] - activations(replace(shape, layers=1), mode)
    assert 0 <= rest < 64


def test_a_hand_worked_block():
    """Two norms of 3 H, a gated MLP of 4 I, q k v and the result, 2 (A + K): times 4 bytes."""
    numbers = 2 * 3 * 10 + 4 * 30 + 2 * (10 + 5)
    assert block_activations(POLICY, "float32") == 4 * numbers + 4 * 2 + 8


# Moments, worked by hand


def test_a_hand_worked_update_on_one_cpu():
    """8 responses of 6 tokens to 4: passes of 4 rows, 36 tokens for the trunks, 24 for the head."""
    device = cpu(memory_gib=1, flops=1e9, memory_rate=1e9, runtime_gib=0)
    one = largest_pass(SMALL, 1)
    assert (one.rows, one.count, one.tokens, one.predictions) == (4, 2, 36, 24)
    found = memory(SMALL, DDP, device, 1)
    weights, frozen = 4 * 1810, 4 * 1810
    always = {"weights": weights, "optimizer": 2 * weights, "frozen": frozen, "runtime": 0}
    always["experience"] = 8 * (8 * 10 + 33 * 6)
    trunk = 2 * (4 * 210 + 4 * 2 + 8) + 4 * 2 * 10
    assert activations(POLICY, "float32") == trunk
    assert dict(found.moments["step"]) == {**always, "gradients": weights, "buffers": 0}
    assert dict(found.moments["begin of backward"]) == {
        **always,
        "gradients": weights,  # of the pass before
        "buffers": 0,
        "activations": 36 * 2 * trunk + 4 * 24 * 10 + 4 * 36 * 2 * (30 + 10),
        "logits": 4 * 24 * 20,
    }
    assert found.moments["sampling"]["cache"] == 2 * 4 * 8 * 10 * 2 * 5
    assert found.moments["sampling"]["logits"] == 20 * 8 * 20
    assert found.peak == max(sum(parts.values()) for parts in found.moments.values())


def test_logits_of_a_chunk():
    assert head(512, 1000, "float32", None).kept == 4 * 512_000
    assert head(512, 1000, "float32", None).forward == 12 * 512_000
    assert head(512, 1000, "bfloat16", None).forward == 14 * 512_000
    assert head(512, 1000, "bfloat16", None).backward == 10 * 512_000
    # A head that is asked as a module keeps log-probabilities and probabilities, in float32.
    through = head(512, 1000, "float32", 100, module=True)
    assert (through.kept, through.forward) == (8 * 512_000, 12 * 512_000)
    assert head(512, 1000, "bfloat16", None, module=True) == head(512, 1000, "autocast", None)
    # In tiles, as on a CPU, only the kept logits grow with the vocabulary.
    assert head(8, 5000, "float32", 1000).forward == 8 * (4 * 5000 + 8 * 1000)


def test_autocast_makes_eighteen_bytes_a_parameter():
    found = memory(LARGE, DDP, H200, 1).moments["begin of backward"]
    none = replace(LARGE, microbatch_tokens=1)
    one = memory(none, DDP, H200, 1).moments["begin of backward"]["activations"]
    two = memory(replace(none, samples=2), DDP, H200, 1).moments["begin of backward"]
    assert two["activations"] == one  # it is rows in a pass that count, not responses
    products = LARGE.trained.total - 2 * BIG.lookup
    rows = largest_pass(LARGE, 1).rows
    casts = one - (found["activations"] - one) / (rows - 1)
    assert casts == pytest.approx(2 * products, rel=1e-6)
    assert found["weights"] + found["optimizer"] + found["gradients"] == 16 * LARGE.trained.total


def test_a_smaller_generation_batch_makes_the_cache_smaller():
    assert cache(replace(SMALL, generation_batch=2), 1, "float32") * 4 == cache(SMALL, 1, "float32")
    assert cache(replace(SMALL, generation_batch=99), 1, "float32") == cache(SMALL, 1, "float32")


def test_auxiliary_tokens_are_divided_among_ranks_and_passes():
    work = replace(SMALL, auxiliary=(160,))
    assert largest_pass(work, 1).auxiliary == 40  # four passes, where the responses alone need two
    assert largest_pass(work, 2).auxiliary == 40
    assert memory(work, DDP, H200, 1).peak > memory(SMALL, DDP, H200, 1).peak


def test_a_critic_on_the_policys_trunk_costs_less():
    for strategy in STRATEGIES:
        shared = memory(replace(LARGE, critic=None), strategy, H200, 8)
        assert shared.peak < memory(LARGE, strategy, H200, 8).peak


# Properties


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != DDP], ids=str)
@settings(deadline=None)
@given(
    prompts=st.integers(1, 600),
    budget=st.integers(1, 20_000),
    response=st.integers(1, 2000),
    minibatches=st.integers(1, 4),
    gpus=st.integers(1, 64),
)
def test_more_gpus_never_need_more_memory_each(
    strategy, prompts, budget, response, minibatches, gpus
):
    work = replace(
        LARGE,
        prompts=prompts,
        microbatch_tokens=budget,
        response_tokens=response,
        minibatches=minibatches,
    )
    fewer, more = (memory(work, strategy, H200, n).peak for n in (gpus, 2 * gpus))
    assert more <= fewer + 16  # bytes: shards are rounded


@pytest.mark.parametrize("gpus", [1, 8])
def test_offloading_never_needs_more_of_the_gpu(gpus):
    none, optimizer, everything = (
        memory(LARGE, Strategy("deepspeed", 3, offload), H200, gpus)
        for offload in ("none", "optimizer", "all")
    )
    assert none.peak > optimizer.peak > everything.peak
    assert none.host < optimizer.host < everything.host


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_frozen_models_that_wait_elsewhere_are_there_when_they_are_asked_and_not_in_training(
    strategy,
):
    size = 4 if strategy == DDP else 2
    frozen = size * LARGE.frozen_total
    asked = ("sampling", "experience")
    whole = memory(LARGE, strategy, H200, 8)
    for placement, kept, host in (("shard", frozen // 8, 0), ("offload", 0, frozen)):
        found = memory(replace(LARGE, placement=placement), strategy, H200, 8)
        for name, parts in found.moments.items():
            before = whole.moments[name]
            change = sum(parts.values()) - sum(before.values())
            assert parts["frozen"] == kept
            assert change == (kept if name in asked else kept - frozen), name
        assert found.host - whole.host == host


def test_bringing_frozen_models_takes_time_once_an_update():
    """An all-gather of 8 billion weights in bfloat16, and the same by the CPU's link, at full speed."""
    full = duration.Efficiency(1, 1, 1)

    def seconds(placement, epochs):
        work = replace(LARGE, placement=placement, epochs=epochs)
        return duration.seconds(work, ZERO[3], H200, 8, full).communication

    size = 2 * LARGE.frozen_total
    for epochs in (1, 4):
        none = seconds("replicate", epochs)
        assert seconds("shard", epochs) - none == pytest.approx(size * 7 / 8 / H200.link)
        assert seconds("offload", epochs) - none == pytest.approx(size / H200.host_link)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_activations_are_linear_in_the_tokens_of_a_pass(strategy):
    sizes = [
        memory(replace(LARGE, microbatch_tokens=rows * 1024), strategy, H200, 8).moments[
            "begin of backward"
        ]["activations"]
        for rows in (1, 2, 3, 4)
    ]
    steps = {after - before for before, after in pairwise(sizes)}
    assert len(steps) == 1
    assert steps.pop() > 0


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("device", [H200, cpu(memory_gib=1, flops=1e9, memory_rate=1e9)], ids=str)
def test_a_larger_vocabulary_needs_more(strategy, device):
    def peak(vocabulary):
        more = (vocabulary - BIG.vocabulary) * BIG.hidden
        shape = replace(
            BIG,
            vocabulary=vocabulary,
            parameters=BIG.parameters + 2 * more,
            lookup=BIG.lookup + more,
        )
        return memory(replace(LARGE, policy=shape, reference=shape), strategy, device, 4).peak

    assert peak(32_000) < peak(128_256) < peak(256_000)


# Time


def test_learning_costs_six_flops_a_parameter_and_token():
    """Forward 2 and backward 4, Kaplan et al. 2020, section 2.1: here of policy and critic."""
    work = replace(LARGE, epochs=1, logits_chunk=512)
    fast = replace(H200, memory_rate=1e30)
    found = duration.seconds(work, DDP, fast, 1, duration.Efficiency(1, 1, 1)).learn
    products = work.trained.total - 2 * BIG.lookup
    tokens = share(work, 1) * (128 + 768)
    assert found * H200.bfloat16 == pytest.approx(6 * products * tokens, rel=0.05)


def test_a_token_costs_at_least_reading_the_weights_and_starting_the_kernels():
    found = duration.seconds(LARGE, ZERO[2], H200, 8).sampling
    reading = 2 * (BIG.parameters - BIG.lookup) / (H200.memory_rate * 0.6)
    starting = (32 * 40 + 40) * H200.launch
    assert found > 768 * max(reading, starting)
    slow = replace(H200, memory_rate=H200.memory_rate / 8)
    assert duration.seconds(LARGE, ZERO[2], slow, 8).sampling > 2 * found


def test_epochs_multiply_what_is_learned_and_nothing_else():
    once, thrice = (duration.seconds(replace(LARGE, epochs=n), ZERO[2], H200, 8) for n in (1, 3))
    assert thrice.learn == pytest.approx(3 * once.learn)
    assert (thrice.sampling, thrice.experience) == (once.sampling, once.experience)


def test_one_gpu_talks_to_nobody_and_sharded_weights_talk_most():
    assert duration.seconds(LARGE, ZERO[2], H200, 1).communication == 0
    sizes = [duration.seconds(LARGE, s, H200, 8).communication for s in (ZERO[1], ZERO[2], ZERO[3])]
    assert sizes == sorted(sizes)


def test_ddp_carries_its_gradient_around_the_ring_once_a_step():
    found = duration.seconds(LARGE, DDP, H200, 8, duration.Efficiency(1, 1, 1)).communication
    assert found == pytest.approx(4 * 2 * 7 / 8 * 4 * LARGE.trained.total / H200.link)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_twice_the_gpus_are_faster_but_not_twice_as_fast(strategy):
    few, many = (duration.seconds(LARGE, strategy, H200, n).total for n in (4, 8))
    assert few / 2 < many < few


# Verdicts and remedies


def test_a_verdict_leaves_a_margin():
    whole = H200.memory_gib * GIB
    assert verdict(int((1 - MARGIN) * whole), H200) == "fits"
    assert verdict(int((1 - MARGIN) * whole) + 10, H200) == "tight"
    assert verdict(int(whole) + 10, H200) == "no"


def test_each_remedy_fits_when_it_is_taken():
    device = GPUS["a100-80gb"]
    found = remedies(LARGE, replace(ZERO[3], offload="optimizer"), device, 8)
    message = {r.change.split("=")[0].split()[0]: r for r in found}
    assert set(message) == {"runtime.offload", "runtime.frozen", "ppo.microbatch_tokens", "--gpus"}
    for remedy in found:
        assert verdict(remedy.peak, device) == "fits"
    tokens = int(message["ppo.microbatch_tokens"].change.split("=")[1])
    smaller = replace(LARGE, microbatch_tokens=tokens)
    taken = memory(smaller, replace(ZERO[3], offload="optimizer"), device, 8)
    assert taken.peak == message["ppo.microbatch_tokens"].peak


def test_frozen_models_go_to_the_cpu_where_shares_do_not_help():
    tight = replace(LARGE, rewards=(BIG,))

    for gpus, strategy, expected in ((8, ZERO[3], "shard"), (1, DDP, "offload")):
        without = [
            memory(replace(tight, placement=placement), strategy, H200, gpus).peak
            for placement in ("replicate", expected)
        ]
        enough = replace(H200, memory_gib=without[1] / GIB / (1 - MARGIN) + 0.01)
        assert verdict(without[0], enough) != "fits"
        changes = [remedy.change for remedy in remedies(tight, strategy, enough, gpus)]
        assert [change for change in changes if "frozen" in change] == [
            f"runtime.frozen={expected}"
        ]


def test_sampling_is_helped_by_a_smaller_batch():
    long = replace(LARGE, response_tokens=3000, microbatch_tokens=1, prompts=2048)
    assert memory(long, ZERO[3], H200, 8).moment == "sampling"
    changes = [remedy.change for remedy in remedies(long, ZERO[3], H200, 8)]
    assert any(change.startswith("rollout.generation_batch=") for change in changes)


def test_what_no_change_can_help_is_told_so():
    assert remedies(LARGE, DDP, GPUS["a10g"], 8) == []

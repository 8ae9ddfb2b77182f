"""From recipes to shapes: sizes are those of real models, and no weight is ever made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from rlframe.compose.plan import shape_of, strategy, workload
from rlframe.errors import RecipeError
from rlframe.planning.strategies import Strategy
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


@pytest.fixture
def plan():
    """The update of the quickstart with these changes."""
    registry = Registry()
    return lambda *changes: workload(load_recipe(QUICKSTART, changes, registry=registry), registry)


def llama(**changes):
    config = {
        "vocab_size": 100, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    return LlamaConfig(**{**config, **changes})


def test_a_hand_counted_llama():
    block = 16 * 16 + 2 * 8 * 16 + 16 * 16 + 3 * 16 * 40 + 2 * 16
    found = shape_of(llama(), "model.policy")
    assert (found.block, found.layers, found.lookup) == (block, 3, 1600)
    assert found.parameters == 3 * block + 2 * 1600 + 16
    assert found.outside == 2 * 1600 + 16
    assert (found.heads, found.kv_heads, found.head_dim, found.vocabulary) == (4, 2, 4, 100)
    assert (found.hidden, found.intermediate, found.rms_norm, found.mlp) == (16, 40, True, "gated")


def test_a_tied_embedding_is_counted_once_and_is_a_product():
    found = shape_of(llama(tie_word_embeddings=True), "model.policy")
    assert found.lookup == 0
    assert found.parameters == shape_of(llama(), "model.policy").parameters - 1600


def test_a_scalar_model_has_a_head_of_one_row():
    found = shape_of(llama(), "model.critic.initial", scalar=True)
    assert (found.vocabulary, found.lookup) == (0, 1600)
    assert found.parameters == shape_of(llama(), "model.policy").parameters - 1600 + 16


def test_gpt2_has_other_names_for_the_same():
    found = shape_of(GPT2Config(vocab_size=100, n_embd=16, n_layer=2, n_head=4), "model.policy")
    assert (found.hidden, found.intermediate, found.layers, found.kv_heads) == (16, 64, 2, 4)
    assert (found.rms_norm, found.mlp, found.lookup) == (False, "gelu_new", 1024 * 16)


def test_nothing_is_allocated_for_seventy_billion_parameters():
    shape = llama(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128_256,
    )  # fmt: skip
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type != "meta":
                made.append(out.numel())
            return out

    with Watch():
        found = shape_of(shape, "model.policy")
    assert found.parameters == 70_553_706_496  # as Meta counts Llama 3 70B
    assert max(made, default=0) < 10_000


def test_an_update_of_the_quickstart(plan):
    work = plan()
    assert work.policy.parameters == 734_080
    assert (work.prompts, work.response_tokens, work.microbatch_tokens) == (64, 36, 4096)
    assert work.critic == work.rewards[0]
    assert work.reference == work.policy
    assert work.policy.vocabulary == 512
    assert 1 < work.mean_prompt_tokens < work.prompt_tokens
    (ptx,) = work.auxiliary
    assert ptx % 16 == 0


def test_what_a_recipe_changes(plan):
    assert plan("~model.critic.initial", "model.critic.shared=true").critic is None
    assert plan("losses.ptx.gamma=0").auxiliary == ()
    assert plan("rollout.top_p=0.9").sorts
    assert plan("~rewards.satisfied").rewards == ()
    assert (plan().placement, plan("runtime.frozen=shard").placement) == ("replicate", "shard")


def test_a_reward_model_inside_another_reward_counts(plan):
    inner = "reward: {type: reward_model}"
    nested = f"{{type: preference_difference, against: reference, {inner}}}"
    assert len(plan(f"rewards.better={nested}").rewards) == 2


def test_a_machine_that_is_not_here_can_be_planned_for(plan):
    work = plan("runtime.device=cuda", "runtime.precision=bfloat16", "runtime.strategy=fsdp")
    assert work.precision == "bfloat16"


def test_the_recipes_own_strategy():
    def asked(*changes):
        return strategy(load_recipe(QUICKSTART, changes).recipe)

    assert asked() == Strategy("ddp")
    assert asked("runtime.strategy=deepspeed") == Strategy("deepspeed", 2)
    zero = asked("runtime.strategy=deepspeed", "runtime.zero_stage=3", "runtime.offload=all")
    assert zero == Strategy("deepspeed", 3, "all")


def test_errors_say_where_and_what(plan):
    with pytest.raises(RecipeError, match=r"^model\.reference: 'no/such' is neither a folder"):
        plan("model.reference=no/such")
    with pytest.raises(RecipeError, match=r"^model\.policy: 'no/such' is neither a folder"):
        plan("model.policy=no/such")
    with pytest.raises(RecipeError, match="float64 is for tests"):
        plan("runtime.precision=float64")
    with pytest.raises(RecipeError, match=r"^model\.lora: .* for an upper bound plan without it"):
        plan("model.lora={rank: 4}")
    with pytest.raises(RecipeError, match=r"^model\.policy\.architecture: .*'lama'.*'llama'"):
        plan("model.policy.architecture.model_type=lama")


def test_a_mixture_of_experts_is_refused():
    with pytest.raises(
        RecipeError, match=r"^model\.policy: a plan knows dense models, and mixtral"
    ):
        shape_of(MixtralConfig(), "model.policy")

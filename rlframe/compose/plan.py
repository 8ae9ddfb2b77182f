"""From a recipe to the shapes of a plan. Models are built on the meta device, without weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlframe.builtin.reward_model import RewardModel
from rlframe.compose.components import longest_example
from rlframe.compose.project import Project
from rlframe.compose.sampling import sampler_capabilities
from rlframe.errors import RecipeError
from rlframe.models import loading
from rlframe.models.pretrained import Pretrained, new
from rlframe.planning.memory import MLP, Shape, Workload
from rlframe.planning.strategies import Strategy
from rlframe.recipe import LoadedRecipe
from rlframe.recipe.references import initials
from rlframe.recipe.schema import NewModel, Recipe
from rlframe.recipe.schema import Runtime as RuntimeSection
from rlframe.registry.discovery import Registry
from rlframe.stage_table import REFERENCE, referred

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_GATES = ("gate_proj", "gate_up_proj")
# Activations that transformers writes out as several operations, each of which autograd keeps.
_WRITTEN_OUT = ("gelu_new", "gelu_fast", "gelu_python_tanh")


def workload(loaded: LoadedRecipe, registry: Registry) -> Workload:
    """The shapes of a recipe's PPO update.

    Args:
      loaded: a validated recipe.
      registry: the installed components.

    Raises:
      RecipeError: there is no PPO in it, or a model, tokenizer or data set that cannot be opened.
    """
    recipe = loaded.recipe
    if recipe.ppo is None:
        raise RecipeError("a plan is about PPO, and the recipe has no `ppo:`")
    if recipe.runtime.precision == "float64":
        raise RecipeError(
            "runtime.precision: a plan knows float32 and bfloat16; float64 is for tests"
        )
    if recipe.model.lora is not None:
        raise RecipeError(
            "model.lora: a plan knows training of all weights, which takes more memory than that of "
            "adapters; for an upper bound plan without it: `rlframe plan RECIPE ~model.lora`"
        )
    project = _on_cpu(loaded, registry)
    policy = _policy(project)  # and its tokenizer, which prompts need
    prompts = [len(prompt.ids) for part in project.prompts for prompt in part]
    ppo, rollout = recipe.ppo, recipe.rollout
    return Workload(
        policy=shape_of(policy, "model.policy"),
        critic=None if recipe.model.own_critic is None else _critic(recipe, policy),
        reference=_reference(project, policy),
        rewards=tuple(_rewards(project, policy)),
        precision=recipe.runtime.precision,
        prompts=rollout.prompts_per_update,
        samples=rollout.samples_per_prompt,
        prompt_tokens=max(prompts),
        mean_prompt_tokens=sum(prompts) / len(prompts),
        response_tokens=rollout.max_new_tokens,
        generation_batch=rollout.generation_batch,
        cache_tokens=sampler_capabilities(loaded).cache_tokens,
        sorts=rollout.top_p is not None and rollout.top_p < 1,
        epochs=ppo.epochs,
        minibatches=ppo.minibatches,
        microbatch_tokens=ppo.microbatch_tokens,
        logits_chunk=ppo.logits_chunk,
        auxiliary=tuple(_auxiliary(project)),
        placement=recipe.runtime.frozen,
    )


def strategy(recipe: Recipe) -> Strategy:
    """What the recipe asks for itself; `auto` is ddp, as without a launcher."""
    runtime = recipe.runtime
    name = "ddp" if runtime.strategy == "auto" else runtime.strategy
    return Strategy(name, (runtime.zero_stage or 2) if name == "deepspeed" else 0, runtime.offload)


def _on_cpu(loaded: LoadedRecipe, registry: Registry) -> Project:
    """The project as this machine can open it: the GPUs that are planned for need not be here."""
    recipe = loaded.recipe.model_copy(update={"runtime": RuntimeSection(device="cpu")})
    return Project(replace(loaded, recipe=recipe), Path(), registry)


# Models


def _policy(project: Project) -> Any:
    """The config of the policy, its vocabulary as large as the tokenizer needs."""
    policy, tokens = project.recipe.model.policy, len(project.tokenizer)
    if isinstance(policy, NewModel):
        return loading.new_config(policy.architecture, vocab_size=tokens)
    found = _config(policy, "model.policy")
    text = found.get_text_config()
    text.vocab_size = max(text.vocab_size, tokens)
    return found


def _config(name: str, path: str) -> Any:
    return Pretrained(name, at=path).config


def _trunk(recipe: Recipe, name: str, policy: Any, path: str) -> Any:
    """The config of the trunk that a scalar model stands on."""
    stage = referred(name)
    if stage is not None:
        name = initials(recipe).get((stage.name, "initial"), "policy")
    return policy if name == "policy" else _config(name, path)


def _critic(recipe: Recipe, policy: Any) -> Shape:
    path = "model.critic.initial"
    critic = recipe.model.own_critic
    assert critic is not None
    trunk = _trunk(recipe, critic.initial, policy, path)
    return shape_of(trunk, path, scalar=True)


def _reference(project: Project, policy: Any) -> Shape:
    name, path = project.recipe.model.reference, "model.reference"
    itself = name is None or name.startswith(REFERENCE)
    return shape_of(policy if itself else _config(str(name), path), path)


def _rewards(project: Project, policy: Any) -> list[Shape]:
    """One for each reward model, wherever it is named. Models of plugins are unknown."""
    found = []
    for where, chosen in project.loaded.chosen.items():
        if issubclass(chosen.component, RewardModel):
            path = ".".join(map(str, where))
            name = str(getattr(chosen.config, "model", ""))
            trunk = _trunk(project.recipe, name, policy, path)
            found.append(shape_of(trunk, path, scalar=True))
    return found


def shape_of(config: Any, path: str, *, scalar: bool = False) -> Shape:
    """Sizes of the model that a config makes.

    Args:
      config: of transformers.
      path: of the recipe, for errors.
      scalar: a classifier with one output instead of a language model.

    Raises:
      RecipeError: the architecture is not one that a plan knows.
    """
    config = type(config).from_dict(config.to_dict())
    if scalar:
        config.num_labels = 1
    text = config.get_text_config()
    if any(getattr(text, key, None) for key in _EXPERTS):
        raise RecipeError(
            f"{path}: a plan knows dense models, and {text.model_type} is a mixture of experts"
        )
    try:
        with torch.device("meta"):
            model: Any = new(config, "sequence" if scalar else "causal")
    except (ValueError, TypeError, RuntimeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    names = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [_size(part) for part in model.modules() if type(part).__name__ in names]
    heads = text.num_attention_heads
    return Shape(
        parameters=_size(model),
        block=max(blocks, default=0),
        lookup=_looked_up(model, scalar=scalar),
        layers=len(blocks) or text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=_intermediate(text),
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=0 if scalar else text.vocab_size,
        rms_norm=any("RMSNorm" in type(part).__name__ for part in model.modules()),
        mlp=_mlp(model, text),
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _looked_up(model: Any, *, scalar: bool) -> int:
    head = None if scalar else getattr(model.get_output_embeddings(), "weight", None)
    tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
    return sum(table.numel() for table in tables if table is not head)


def _intermediate(text: Any) -> int:
    for key in ("intermediate_size", "n_inner", "ffn_dim"):
        if getattr(text, key, None):
            return int(getattr(text, key))
    return 4 * int(text.hidden_size)


def _mlp(model: nn.Module, text: Any) -> MLP:
    if any(name.rpartition(".")[2] in _GATES for name, _ in model.named_modules()):
        return "gated"
    activation = getattr(text, "activation_function", None) or getattr(text, "hidden_act", None)
    return "gelu_new" if activation in _WRITTEN_OUT else "plain"


# Auxiliary losses


def _auxiliary(project: Project) -> list[int]:
    """Padded tokens per step of each loss that counts: every example as long as the longest."""
    found = []
    for name in project.recipe.losses:
        loss = project.instance("losses", name)
        longest = longest_example(loss, project) if loss.component.coefficient != 0 else None
        if longest is not None:
            found.append(loss.component.examples_per_step * longest)
    return found

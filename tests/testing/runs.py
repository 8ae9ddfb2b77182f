"""Whole runs of a tiny recipe with one component in it, as a user would start them.

The policy gives each of its eight tokens the same probability, so that a handful of responses has all
that texts can have: nothing at all, spaces at both ends, other scripts, and a cut at the limit.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlframe.api import Component
from rlframe.compose import run_recipe
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from rlframe.runs.display import SilentDisplay
from rlframe.testing.examples import example_config
from tests.testing.expected import OTHERS

TOKENS = ("a", "b", " ", "é", "👍", "7", "\n", "<end>")
PROMPTS = 12

RECIPE: dict[str, Any] = {
    "version": 1,
    "data": {"reviews": {"path": "rows.jsonl", "heldout": 0.3}},
    "model": {"policy": "model"},
    "prompts": {"data": "reviews"},
    "rollout": {"prompts_per_update": 3, "samples_per_prompt": 2, "max_new_tokens": 6},
    "rewards": {"reward": {"type": "length", "target_tokens": 3}},
    "kl": {"controller": {"type": "adaptive", "target": 6.0}},
    "ppo": {"updates": 1, "epochs": 1, "learning_rate": 0.01, "max_bad_steps": 1},
    "evaluation": {"prompts": 1},
    "runtime": {"device": "cpu", "threads": 1},
}

PLACES: dict[str, tuple[str, ...]] = {
    "data_generators": ("data", "{}", "generator"),
    "reward_providers": ("rewards", "{}"),
    "reward_transforms": ("rewards", "reward", "transforms"),
    "kl_controllers": ("kl", "controller"),
    "auxiliary_losses": ("losses", "{}"),
    "advantage_estimators": ("algorithm", "advantages"),
    "policy_losses": ("algorithm", "policy_loss"),
    "value_losses": ("algorithm", "value_loss"),
    "samplers": ("rollout", "sampler"),
    "hooks": ("hooks", "{}"),
}
"""Kind -> where a component of it stands in a recipe; {} is its name there."""

Tried = tuple[str, type[Component[Any]]]
"""(kind, component); its type in the recipe is the name of the class."""


class Ran(NamedTuple):
    """What became of a run."""

    error: Exception | None
    """What ended it; None if it finished."""
    warned: list[str]
    """What was warned about."""


def world(folder: Path) -> Path:
    """Write the model and the rows of `RECIPE` into a folder."""
    ids = {token: number for number, token in enumerate(TOKENS)}
    words = Tokenizer(models.WordLevel(ids, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=TOKENS[-1])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=64,
        eos_token_id=len(TOKENS) - 1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"ab{7 * n}", "response": " b" * (n + 1)} for n in range(PROMPTS)]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    return folder


def recipe(folder: Path, tried: Sequence[Tried], also: Mapping[str, Any]) -> Any:
    """`RECIPE` with components in it.

    Args:
      folder: that `world` has filled.
      tried: at most one of a kind that a recipe can have one of.
      also: dotted key -> value, for what the components need around them.
    """
    made = copy.deepcopy(RECIPE)
    made["data"]["reviews"]["path"] = str(folder / "rows.jsonl")
    made["model"]["policy"] = str(folder / "model")
    generated = [c.__name__ for kind, c in tried if kind == "data_generators"]
    if generated:
        made["prompts"]["data"] = dict.fromkeys(generated, 1.0)
    for key, value in also.items():
        _put(made, tuple(key.split(".")), copy.deepcopy(value))
    for kind, component in tried:
        written = {"type": component.__name__, **plain_config(component)}
        path = tuple(key.format(component.__name__) for key in PLACES[kind])
        if kind == "reward_transforms":
            _put(made, path, [*made["rewards"]["reward"].get("transforms", []), written])
            continue
        _put(made, path, written)
        if kind == "samplers":
            made["rollout"]["reproducible"] = False
        if kind == "advantage_estimators" and _without_critic(component):
            made["model"]["critic"] = None
    return made


def plain_config(component: type[Component[Any]]) -> dict[str, Any]:
    """Of the keys that a component is tried with, those that a recipe can write."""
    return {key: x for key, x in example_config(component).items() if not callable(x)}


def _without_critic(component: Any) -> bool:
    try:
        return not component.needs(component.Config()).critic
    except AttributeError:  # one of the defects
        return False


def _put(tree: Any, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def registry_of(tried: Iterable[Tried]) -> Registry:
    """A registry with these components, and those that recipes have around them."""
    registry = Registry()
    for kind, component in tried:
        registry.add(kind, component.__name__, component)
    for (kind, name), helper in OTHERS.items():
        registry.add(kind, name, helper)
    return registry


def ran(
    folder: Path,
    directory: Path,
    registry: Registry,
    tried: Sequence[Tried],
    also: Mapping[str, Any],
) -> Ran:
    """Run the recipe from its start to its end."""
    directory.mkdir()
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(recipe(folder, tried, also)), encoding="utf-8")
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = load_recipe(path, registry=registry)
            run_recipe(loaded, directory / "run", SilentDisplay(), registry=registry)
        except Exception as raised:
            error = raised
    return Ran(error, [str(w.message) for w in caught])

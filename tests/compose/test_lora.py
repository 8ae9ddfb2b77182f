"""LoRA in whole runs: by every strategy, in one piece or in two, it is the same run."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlframe.compose import run_recipe
from rlframe.compose.ppo import PPOParts
from rlframe.distributed.launch import launch
from rlframe.errors import RecipeError
from rlframe.models import lora
from rlframe.models.loading import weights_hash
from rlframe.recipe import load_recipe
from rlframe.runs.resuming import Allowance
from tests.compose.test_resume import Ends
from tests.compose.test_run import STAGES, Notes
from tests.conftest import TINY
from tests.rounding import smooth_adam

STRATEGIES = {  # ZeRO-1 goes the ways of ZeRO-2
    "ddp": [],
    "zero2": ["runtime.strategy=deepspeed", "runtime.zero_stage=2"],
    "zero3": ["runtime.strategy=deepspeed", "runtime.zero_stage=3"],
    "fsdp": ["runtime.strategy=fsdp"],
}
RESULTS = ("ppo/adapter/adapter_model", "ppo/policy/model", "ppo/critic/model")


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Path:
    model = {**copy.deepcopy(TINY["model"]), "lora": {"rank": 4}}
    return tiny_recipe(
        model=model,
        ppo={"updates": 3, "learning_rate": 1e-2, "minibatches": 2, "epochs": 1},
        rollout={"prompts_per_update": 4, "max_new_tokens": 6},
        evaluation={"prompts": 2},
    )


def train(recipe: Path, directory: Path, *overrides: str, **options: Any) -> Path:
    return run_recipe(load_recipe(recipe, overrides), directory, Notes(), **options).directory


def results(directory: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(directory / f"{name}.safetensors") for name in RESULTS]


def rows(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "objective/kl" in row]


def furthest(one: Path, other: Path) -> float:
    """The largest difference between two runs' weights."""
    differences = []
    for a, b in zip(results(one), results(other), strict=True):
        assert a.keys() == b.keys()
        differences += [float((a[name] - b[name]).abs().max()) for name in a]
    return max(differences)


def test_every_strategy_trains_the_same_adapters_and_goes_on_from_its_checkpoint(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, each run stopped after the first of three updates, against one in one piece.

    So does the moving average of the adapters, of which test_ema.py has that of whole weights.
    """
    ema = "ppo.ema=0.7"
    with smooth_adam():
        alone = train(recipe, tmp_path / "alone", ema)
    average = load_file(alone / "ppo" / "ema" / "model.safetensors")
    assert rows(alone)[2]["objective/kl"] != 0.0
    arguments = [f"{name}={','.join([ema, *keys])}" for name, keys in STRATEGIES.items()]
    module = "tests.compose.lora_ranks"
    command = [sys.executable, "-W", "ignore", "-m", module, str(recipe), str(tmp_path), *arguments]
    monkeypatch.chdir(Path(__file__).parents[2])  # where `tests` is
    assert launch(command, processes=2, threads=1).exit_code == 0
    for name in STRATEGIES:
        assert furthest(alone, tmp_path / name) < 1e-4, name
        found = load_file(tmp_path / name / "ppo" / "ema" / "model.safetensors")
        for key, expected in average.items():
            assert torch.allclose(found[key], expected, rtol=0, atol=1e-4), (name, key)
        message = rows(tmp_path / name)
        assert message[0]["objective/kl"] == 0.0, name
        for key in ("objective/scores", "objective/kl", "val/ratio", "loss/policy_avg"):
            for mine, theirs in zip(rows(alone), message, strict=True):
                assert theirs[key] == pytest.approx(mine[key], abs=1e-4), (name, key)


def test_only_adapters_and_critic_are_trained_and_the_reference_costs_no_second_model(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[PPOParts, dict[str, torch.Tensor]]] = []
    built = PPOParts.__init__

    def noted(self: PPOParts, *args: Any) -> None:
        built(self, *args)
        weights = self.models.trained.state_dict()
        seen.append((self, {name: tensor.clone() for name, tensor in weights.items()}))

    monkeypatch.setattr(PPOParts, "__init__", noted)
    directory = train(recipe, tmp_path / "run")
    ((parts, before),) = seen
    assert isinstance(parts.models.reference, lora.WithoutAdapters)
    assert parts.models.reference.model is parts.models.trained.policy.model
    for name, tensor in parts.models.trained.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        assert moved == ("lora_" in name or name.startswith("critic.")), name
    held = {
        id(p) for group in parts.models.training.optimizer.param_groups for p in group["params"]
    }
    assert held == {id(p) for p in parts.models.trained.parameters() if p.requires_grad}
    assert rows(directory)[1]["objective/kl"] != 0.0

    plain = AutoModelForCausalLM.from_pretrained(directory / "ppo" / "policy")
    tokens = torch.tensor([[1, 5, 9, 30]])
    with torch.no_grad():
        expected = parts.models.trained.policy.model(tokens).logits
        torch.testing.assert_close(plain(tokens).logits, expected, atol=1e-4, rtol=1e-4)


def test_the_first_ratios_are_exactly_one(recipe: Path, tmp_path: Path) -> None:
    one_step = ("ppo.minibatches=1", "ppo.updates=1")
    assert rows(train(recipe, tmp_path / "run", *one_step))[0]["val/ratio"] == 1.0


def test_a_run_that_was_killed_goes_on_bit_for_bit_after_sft_and_with_a_shared_critic(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    model = {
        **copy.deepcopy(TINY["model"]),
        "critic": {"shared": True, "head": "normal"},
        "lora": {"rank": 4, "targets": ["q_proj", "lm_head"]},
    }
    recipe = tiny_recipe(
        model=model,
        sft={**STAGES["sft"], "epochs": 0.3},
        ppo={"updates": 3, "learning_rate": 1e-2, "minibatches": 2},
        checkpoints={"every": 1},
    )
    calm = train(recipe, tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(load_recipe(recipe), tmp_path / "ended", Ends("ppo", 2))
    ended = train(recipe, tmp_path / "ended", resume=Allowance())
    names = ("adapter/adapter_model", "policy/model", "critic/value_head")
    for name in names:
        a, b = (load_file(path / "ppo" / f"{name}.safetensors") for path in (calm, ended))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    config = json.loads((calm / "ppo" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(calm / "sft")
    before = AutoModelForCausalLM.from_pretrained(calm / "sft")
    after = AutoModelForCausalLM.from_pretrained(calm / "ppo" / "policy")
    assert weights_hash(before) != weights_hash(after)


def test_a_wrong_target_is_refused_before_anything_is_trained(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.lora\.targets: 'q_poj'.*Did you mean 'q_proj'"):
        train(recipe, tmp_path / "run", "model.lora.targets=[q_poj]")
    assert not (tmp_path / "run").exists()

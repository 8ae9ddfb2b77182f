"""The average of the policy's weights in whole runs: what it is, where it lies, and that it goes on."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlframe.compose import run_recipe
from rlframe.distributed.launch import launch
from rlframe.distributed.training import Replicated
from rlframe.models.loading import weights_hash
from rlframe.recipe import load_recipe
from rlframe.runs.checkpointer import Checkpointer
from rlframe.runs.resuming import Allowance
from tests.compose.test_lora import STRATEGIES
from tests.compose.test_resume import Ends
from tests.compose.test_run import Notes
from tests.conftest import TINY
from tests.rounding import smooth_adam

DECAY = 0.7


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Path:
    return tiny_recipe(
        ppo={"updates": 4, "learning_rate": 1e-2, "minibatches": 2, "epochs": 1, "ema": DECAY},
        rollout={"prompts_per_update": 4, "max_new_tokens": 6},
        evaluation={"prompts": 2},
        checkpoints={"every": 1, "keep_last": 5},
    )


def train(recipe: Path, directory: Path, *overrides: str, **options: Any) -> Path:
    return run_recipe(load_recipe(recipe, overrides), directory, Notes(), **options).directory


def averaged(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "ema" / "model.safetensors")


def plain(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "policy" / "model.safetensors")


def test_it_is_the_average_of_the_policies_that_checkpoints_hold(
    recipe: Path, tmp_path: Path
) -> None:
    run = train(recipe, tmp_path / "run")
    start = train(recipe, tmp_path / "start", "ppo.updates=1", "ppo.learning_rate=1e-30")
    mean = plain(start / "ppo")
    for path in (*(run / "checkpoints" / "ppo" / f"00000{n}" for n in (1, 2, 3)), run / "ppo"):
        now = plain(path)
        mean = {name: DECAY * mean[name] + (1 - DECAY) * now[name] for name in now}
        found = averaged(path)
        assert found.keys() == now.keys()
        for name in now:
            assert torch.allclose(found[name], mean[name], rtol=0, atol=1e-6), (path, name)
    away = max(float((found[name] - now[name]).abs().max()) for name in now)
    assert away > 1e-3
    model = AutoModelForCausalLM.from_pretrained(run / "ppo" / "ema")
    policy = AutoModelForCausalLM.from_pretrained(run / "ppo" / "policy")
    assert weights_hash(model) != weights_hash(policy)
    assert AutoTokenizer.from_pretrained(run / "ppo" / "ema").eos_token == "<eos>"


@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
def test_a_run_that_was_killed_has_the_average_of_one_that_was_not(
    recipe: Path, tmp_path: Path, adapters: bool
) -> None:
    keys = ["model.lora={rank: 4}"] if adapters else []
    calm = train(recipe, tmp_path / "calm", *keys)
    for steps in (2, 3):
        again = {"resume": Allowance()} if steps > 2 else {}
        with pytest.raises(KeyboardInterrupt):
            run_recipe(load_recipe(recipe, keys), tmp_path / "ended", Ends("ppo", steps), **again)
    ended = train(recipe, tmp_path / "ended", *keys, resume=Allowance())
    names = ["ema/model"] + (["ema_adapter/adapter_model"] if adapters else [])
    for name in names:
        one, other = (load_file(run / "ppo" / f"{name}.safetensors") for run in (calm, ended))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    now = load_file(calm / "ppo" / "policy" / "model.safetensors")
    assert any(not torch.equal(tensor, now[key]) for key, tensor in averaged(calm / "ppo").items())


def test_adapters_are_averaged_and_merged_into_a_plain_model(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, tmp_path / "run", "model.lora={rank: 4}", "checkpoints.every=null")
    adapter = load_file(run / "ppo" / "ema_adapter" / "adapter_model.safetensors")
    (a,), (b,) = (
        [adapter[name] for name in adapter if f"layers.0.mlp.up_proj.{part}" in name]
        for part in ("lora_A", "lora_B")
    )
    base = train(recipe, tmp_path / "base", "ppo.updates=1", "ppo.learning_rate=1e-30")
    name = "model.layers.0.mlp.up_proj.weight"
    expected = plain(base / "ppo")[name] + 32 / 4 * b @ a
    assert torch.allclose(averaged(run / "ppo")[name], expected, atol=1e-5)
    assert float((b @ a).abs().max()) > 1e-4
    assert averaged(run / "ppo").keys() == plain(run / "ppo").keys()


def test_any_strategy_averages_the_same_and_goes_on_from_its_checkpoint(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, each run stopped after the first of four updates, against one in one piece.

    test_lora.py has the average of adapters.
    """
    tied = "model.policy.architecture.tie_word_embeddings=true"
    own_keys = [tied, "checkpoints.every=null"]
    with smooth_adam():
        alone = train(recipe, tmp_path / "alone", *own_keys)
    arguments = [f"{name}={','.join([*own_keys, *keys])}" for name, keys in STRATEGIES.items()]
    module = "tests.compose.lora_ranks"
    command = [sys.executable, "-W", "ignore", "-m", module, str(recipe), str(tmp_path), *arguments]
    monkeypatch.chdir(Path(__file__).parents[2])  # where `tests` is
    assert launch(command, processes=2, threads=1).exit_code == 0
    expected = averaged(alone / "ppo")
    for name in STRATEGIES:
        found = averaged(tmp_path / name / "ppo")
        assert found.keys() >= expected.keys()  # sharded, tied weights are written under both names
        for key in expected:
            assert torch.allclose(found[key], expected[key], rtol=0, atol=1e-4), (name, key)
    now = plain(alone / "ppo")
    assert max(float((expected[key] - now[key]).abs().max()) for key in now) > 1e-3


def test_tied_weights_are_averaged_once_and_saved_as_the_policy_is(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    model = copy.deepcopy(TINY["model"])
    model["policy"]["architecture"]["tie_word_embeddings"] = True
    recipe = tiny_recipe(model=model, ppo={"updates": 2, "learning_rate": 1e-2, "ema": DECAY})
    run = train(recipe, tmp_path / "run")
    assert averaged(run / "ppo").keys() == plain(run / "ppo").keys()
    found = AutoModelForCausalLM.from_pretrained(run / "ppo" / "ema")
    table = found.get_input_embeddings().weight
    assert torch.equal(found.get_output_embeddings().weight, table)
    policy = AutoModelForCausalLM.from_pretrained(run / "ppo" / "policy")
    assert not torch.equal(policy.get_input_embeddings().weight, table)


def test_without_it_no_weights_are_gathered_and_nothing_is_written(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    weights, save = Replicated.weights, Checkpointer.save_result
    monkeypatch.setattr(
        Replicated, "weights", lambda self: (calls.append("weights"), weights(self))[1]
    )
    monkeypatch.setattr(
        Checkpointer, "save_result", lambda self, name: (calls.append("end"), save(self, name))[1]
    )
    run = train(recipe, tmp_path / "off", "ppo.ema=null", "checkpoints.every=null")
    assert calls == ["end", "weights"]
    assert not (run / "ppo" / "ema").exists()
    calls.clear()
    train(recipe, tmp_path / "on", "checkpoints.every=null")
    assert calls == ["weights"] * 5 + ["end", "weights"]  # at first, and after each of four updates


def test_a_run_that_is_to_have_one_from_now_on_begins_with_the_weights_of_now(
    recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_recipe(load_recipe(recipe, ["ppo.ema=null"]), tmp_path / "run", Ends("ppo", 3))
    run = train(recipe, tmp_path / "run", resume=Allowance(force=True))
    store = run / "checkpoints" / "ppo"
    before, after = plain(store / "000002"), plain(store / "000003")
    found = averaged(store / "000003")
    for name in after:
        expected = DECAY * before[name] + (1 - DECAY) * after[name]
        assert torch.allclose(found[name], expected, rtol=0, atol=1e-6), name

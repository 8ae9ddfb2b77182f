"""Where the advantage estimator has no critic there is none: in no file, no metric and no plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from rlframe.compose.plan import workload
from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from tests.compose.test_resume import Ends, resume, train
from tests.compose.test_run import lasting

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
RLOO = {"advantages": {"type": "rloo"}, "policy_loss": {"type": "gspo"}, "reduction": "sequence"}


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Path:
    return tiny_recipe(
        rollout={"prompts_per_update": 6, "samples_per_prompt": 3, "max_new_tokens": 8},
        algorithm=RLOO,
        ppo={"updates": 4, "learning_rate": 1e-3, "minibatches": 2, "epochs": 2},
        checkpoints={"every": 2},
        evaluation={"prompts": 4, "every": 2},
    )


def test_a_run_goes_on_bit_for_bit_and_no_file_knows_of_a_critic(
    recipe: Path, tmp_path: Path
) -> None:
    calm, ended = train(recipe, tmp_path / "calm"), tmp_path / "ended"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, ended, display=Ends("ppo", 3))
    resume(ended)
    rows = []
    for run in (calm, ended):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        rows.append(lasting([json.loads(line) for line in lines]))
        assert not (run / "ppo" / "critic").exists()
        kept = [*run.rglob("*.safetensors")]
        assert len(kept) > 1  # the result, and what a checkpoint keeps
        for path in kept:
            with safe_open(path, "pt") as file:
                assert not [name for name in file.keys() if "critic" in name], path  # noqa: SIM118
    assert rows[0] == rows[1]
    results = [(run / "ppo" / "policy" / "model.safetensors").read_bytes() for run in (calm, ended)]
    assert results[0] == results[1]
    assert not [key for row in rows[0] for key in row if "critic" in key or "value" in key]


def test_a_run_with_a_critic_does_not_go_on_without_one(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rollout = {"prompts_per_update": 4, "samples_per_prompt": 2, "max_new_tokens": 8}
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(rollout=rollout), tmp_path / "run", display=Ends("ppo", 1))
    run, changes = tmp_path / "run", ["algorithm.advantages.type=rloo"]
    with pytest.raises(
        RecipeError, match=r"(?s)model.critic: nothing reads this.*value_loss: nothing"
    ):
        resume(run, *changes)
    changes += ["model.critic=null", "algorithm.value_loss=null"]
    for allowed in ({}, {"force": True}):
        with pytest.raises(RecipeError, match=r"model\.critic"):
            resume(run, *changes, **allowed)


def test_a_plan_has_no_critic() -> None:
    changes = ("~model.critic", "algorithm.advantages.type=rloo", "rollout.samples_per_prompt=4")
    loaded = load_recipe(QUICKSTART, changes, registry=Registry())
    assert workload(loaded, Registry()).critic is None

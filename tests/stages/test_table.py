"""A fourth stage is three places: real ones, in a copy of the package, with real runs."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from rlframe.recipe.schema import Recipe
from rlframe.stage_table import STAGES, referred, running
from tests.compose.test_run import STAGES as SECTIONS
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]

SECTION = '''

class DPOStage(FineTuning):
    """Direct preference optimisation."""

    beta: PositiveFloat = Field(0.1, description="nats")
    preferred_label: bool | int | str = 1
'''
FIELD = "    dpo: DPOStage | None = None\n"
LINE = """    Stage(
        "dpo",
        check="rlframe.data.stage_rows:check_pairs",
        run="rlframe.stages.dpo:DPORun",
        result="policy",
    ),
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of rlframe that has one stage more, by a change in three places."""
    folder = tmp_path_factory.mktemp("package")
    copied = folder / "rlframe"
    shutil.copytree(ROOT / "rlframe", copied, ignore=shutil.ignore_patterns("__pycache__"))
    insert(copied / "recipe" / "schema.py", SECTION, before="\n\nclass RolloutSection")
    insert(copied / "recipe" / "schema.py", FIELD, before="    prompts: Prompts | None")
    shutil.copy(ROOT / "tests" / "stages" / "dpo.py", copied / "stages" / "dpo.py")
    insert(copied / "stage_table.py", LINE, before='    Stage("ppo"')
    return folder


def insert(path: Path, text: str, *, before: str) -> None:
    whole = path.read_text()
    assert whole.count(before) == 1
    path.write_text(whole.replace(before, text + before))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four stages; the reference of PPO is what the new one leaves."""
    sections = {
        **SECTIONS,
        "dpo": {"data": "reviews", "batch_size": 32, "learning_rate": 1e-3, "epochs": 0.5},
        "ppo": {"updates": 2, "learning_rate": 1e-3},
        "checkpoints": {"every": 1},
    }
    data = {**copy.deepcopy(TINY), **sections}
    data["model"]["reference"] = "stage:dpo"
    data["model"]["critic"] = {"shared": True}
    path = tmp_path_factory.mktemp("recipe") / "four.yaml"
    YAML(typ="safe").dump(data, path)
    return path


def python(package: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What a Python prints that imports the changed copy in place of the package."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"},
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def ran(package: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `four_stages.py` found."""
    done = python(
        package, ROOT / "tests/stages/four_stages.py", recipe, tmp_path_factory.mktemp("runs")
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["package"] == str(package / "rlframe")
    return found


def test_it_runs_in_its_place_and_leaves_what_the_others_leave(ran: dict[str, Any]) -> None:
    headlines = [line for line in ran["said"] if " held out" in line or "updates on" in line]
    assert [line.partition(":")[0] for line in headlines] == ["sft", "reward_model", "dpo", "ppo"]
    assert "pairs from 'reviews'" in headlines[2]
    (row,) = ran["figures"]
    assert list(ran["finished"]) == ["sft", "reward_model", "dpo"]
    assert ran["finished"]["dpo"] == {"dpo/accuracy": row["dpo/accuracy"]}
    assert f"dpo: the chosen text is the likelier one in {row['dpo/accuracy']:.1%}" in ran["said"]
    assert ran["checkpoints"] == ["dpo", "ppo", "reward_model", "sft"]
    assert ran["trained"]


def test_the_stage_after_it_starts_from_what_it_leaves(ran: dict[str, Any]) -> None:
    """The reference is `stage:dpo`: a policy that began elsewhere would be away from it."""
    assert ran["kl_before_training"] == 0.0


def test_it_is_resumed_bit_for_bit_and_not_run_again(ran: dict[str, Any]) -> None:
    assert ran["resumed"]
    assert not any(
        line.startswith(("sft:", "reward_model:", "dpo:")) for line in ran["said_when_resumed"]
    )
    assert any("resuming after update" in line for line in ran["said_when_resumed"])


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_damaged_result_alone_is_made_again(ran: dict[str, Any], stage: str) -> None:
    """Also that of the policy before a later one, from which PPO starts all the same."""
    found = ran["damaged"][stage]
    assert any(f"The stage {stage} is run again" in line for line in found["said"])
    again = {"sft", "dpo"} - {stage}
    assert not any(line.startswith(f"{other}: ") for line in found["said"] for other in again)
    assert found["same"]


def test_its_result_has_a_name_where_it_fits_and_nowhere_else(ran: dict[str, Any]) -> None:
    message = "model.critic.initial: 'stage:dpo' cannot stand here; use 'stage:reward_model'"
    assert message in ran["as_critic"]
    message = "'stage:reward_model' cannot stand here; use 'stage:sft' or 'stage:dpo'"
    assert message in ran["as_reference"]
    message = "'stage:dpo' is the result of a stage, but `dpo:` is not in this recipe"
    assert message in ran["absent"]
    assert "dpo.data: there is no data set 'nothing'" in ran["without_data"]


def test_validate_knows_it_and_imports_no_torch(
    package: Path, recipe: Path, tmp_path: Path
) -> None:
    script = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "from rlframe.cli.main import main; main()"
    )
    done = python(package, "-c", script, "validate", recipe, "--json")
    shown, torch = done.stdout.splitlines()
    assert json.loads(shown)["stages"] == ["sft", "reward_model", "dpo", "ppo"]
    assert torch == "False"

    rows = (json.dumps({"text": f"without a label {number}"}) for number in range(30))
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    overrides = (f"data.texts={{path: {tmp_path / 'texts.jsonl'}}}", "dpo.data=texts")
    done = python(package, "-c", script, "validate", recipe, "--json", *overrides)
    problems = json.loads(done.stdout.splitlines()[0])["problems"]
    assert {problem["path"] for problem in problems} == {"dpo"}
    assert any("texts.jsonl:1: this row is neither a pair" in p["message"] for p in problems)


def test_a_recipe_runs_the_stages_that_it_has_in_the_order_of_the_table() -> None:
    sections: dict[str, Any] = dict.fromkeys(stage.name for stage in STAGES)
    recipe = Recipe.model_construct(**{**sections, "ppo": object(), "sft": object()})
    assert [stage.name for stage in running(recipe)] == ["sft", "ppo"]


def test_a_name_refers_to_a_stage_only_as_a_whole() -> None:
    for stage in STAGES:
        assert referred(f"stage:{stage.name}") is stage
        assert referred(stage.name) is None
    assert referred("stage:nothing") is None
    assert referred(None) is None


def test_the_table_for_newcomers_names_the_three_places() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| a stage |")]
    for place in ("rlframe/recipe/schema.py", "rlframe/stages/", "rlframe/stage_table.py"):
        assert place in row
    assert row.count("`rlframe/") == 3

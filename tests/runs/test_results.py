"""Which folder of a run holds the model that a path, a stage and a checkpoint mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlframe.errors import RunError, SetupError
from rlframe.runs.directory import RunDirectory
from rlframe.runs.results import WrongChoiceError, find_model, language_stages
from rlframe.runs.store import CheckpointStore

RECIPE = {"version": 1, "sft": {"epochs": 1}, "reward_model": {"epochs": 1}, "ppo": {"updates": 3}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose three stages and two checkpoints have models of one file."""
    files = RunDirectory(tmp_path / "run")
    files.begin(source="", resolved=RECIPE, digest="0", plugins={})

    def model(path: Path) -> None:
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps({"model_type": "llama"}))

    def both(path: Path) -> None:
        for name in ("policy", "ema", "critic"):
            model(path / name)

    files.write_result("sft", model)
    files.write_result("reward_model", model)
    files.write_result("ppo", both)
    for stage, fill in (("ppo", both), ("sft", lambda path: (path / "state").write_text("x"))):
        store = CheckpointStore(files.path / "checkpoints" / stage, keep_last=3, keep_best=0)
        for number in (1, 2):
            store.write(number, fill)
    return files.path


def test_a_run_means_the_last_stage_and_options_another_one(run: Path) -> None:
    assert language_stages({"recipe": RECIPE}) == ["sft", "ppo"]
    assert find_model(run).folder == run / "ppo" / "policy"
    assert find_model(run, stage="sft").folder == run / "sft"
    checkpoint = run / "checkpoints" / "ppo" / "000002"
    assert find_model(run, checkpoint=2).folder == checkpoint / "policy"
    found = find_model(run)
    assert (found.run, found.stage, found.manifest["recipe"]) == (run, "ppo", RECIPE)


@pytest.mark.parametrize(
    ("inside", "folder", "stage"),
    [
        ("ppo", "ppo/policy", "ppo"),
        ("ppo/ema", "ppo/ema", "ppo"),
        ("sft", "sft", "sft"),
        ("checkpoints/ppo/000001", "checkpoints/ppo/000001/policy", "ppo"),
        ("checkpoints/ppo/000001/ema", "checkpoints/ppo/000001/ema", "ppo"),
    ],
)
def test_a_path_inside_of_a_run_belongs_to_it(
    run: Path, inside: str, folder: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_model(run / inside)
    assert (found.folder, found.stage, found.run) == (run / folder, stage, run)
    monkeypatch.chdir((run / inside).parent)
    assert find_model(Path(Path(inside).name)).run == run


@pytest.mark.parametrize(
    "inside",
    ["ppo/critic", "reward_model", "checkpoints", "checkpoints/ppo", "checkpoints/sft/000001"],
)
def test_what_holds_no_language_model_is_refused(run: Path, inside: str) -> None:
    with pytest.raises(SetupError, match="holds no language model"):
        find_model(run / inside)


def test_a_folder_elsewhere_belongs_to_no_run(run: Path) -> None:
    folder = run / "mine" / "model"
    folder.mkdir(parents=True)
    with pytest.raises(SetupError, match="nor a model"):
        find_model(folder)
    (folder / "config.json").write_text("{}")
    assert find_model(folder).run is None


@pytest.mark.parametrize(
    ("stage", "checkpoint", "said"),
    [
        ("pp0", None, "'pp0' is no stage of this run. Did you mean 'ppo'?"),
        ("reward_model", None, "'reward_model' leaves a model that scores texts"),
        (None, 3, "the stage ppo has no checkpoint 3 with a model. There are 1, 2"),
        ("sft", 1, "There is none of this stage that holds a model"),
    ],
)
def test_what_a_run_does_not_have_is_a_wrong_choice(
    run: Path, stage: str | None, checkpoint: int | None, said: str
) -> None:
    with pytest.raises(WrongChoiceError) as caught:
        find_model(run, stage=stage, checkpoint=checkpoint)
    assert said in str(caught.value)
    assert caught.value.option == ("--checkpoint" if checkpoint else "--stage")
    with pytest.raises(WrongChoiceError, match="is no run directory"):
        find_model(run / "ppo", stage=stage, checkpoint=checkpoint)


def test_files_that_were_cut_short_are_noticed_and_nothing_is_written(run: Path) -> None:
    before = sorted(run.rglob("*"))
    hidden = run / "checkpoints" / "ppo" / ".writing-000003"
    hidden.mkdir()  # as of a run that is training
    find_model(run, checkpoint=1)
    assert sorted(run.rglob("*")) == sorted([*before, hidden])
    (run / "ppo" / "policy" / "config.json").write_text("")
    with pytest.raises(RunError, match="was a copy cut short"):
        find_model(run)

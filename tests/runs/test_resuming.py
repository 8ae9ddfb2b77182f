"""What may have changed when a run is resumed, what may if that is meant, and what may not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlframe.errors import PluginError, RecipeError, SetupError
from rlframe.runs.directory import RESOLVED, RunDirectory
from rlframe.runs.resuming import Allowance, changed, damaged_results
from rlframe.runs.store import CheckpointStore

RECIPE: dict[str, Any] = {
    "version": 1,
    "seed": 0,
    "data": {"reviews": {"path": "a.jsonl", "heldout": 0.1}},
    "model": {"policy": "models/m"},
    "rewards": {"mine": {"type": "length", "weight": 1.0}},
    "ppo": {
        "updates": 4,
        "decay": "linear",
        "warmup_updates": 1,
        "max_grad_norm": 0.2,
        "epochs": 4,
    },
    "runtime": {"device": "cpu", "threads": None},
    "checkpoints": {"every": 5},
}
INPUTS: dict[str, Any] = {
    "data.reviews": {"sha256": "d1", "train": 9, "heldout": 1},
    "model.policy": {"files": {"config.json": "m1", "model.safetensors": "m2"}},
    "rewards.mine.words": {"files": {"": "w1"}},
    "rewards.mine.token": {"value": "v1"},
}
PLUGINS: dict[str, Any] = {
    "rewards.mine": {
        "name": "length",
        "distribution": "acme",
        "version": "1.0",
        "target": "acme:Length",
        "sha256": "s1",
    }
}


def run(path: Path, *, status: str = "interrupted", results: tuple[str, ...] = ()) -> RunDirectory:
    """A run directory that has come so far."""
    files = RunDirectory(path)
    files.begin(source="-", resolved=RECIPE, digest="digest", plugins=PLUGINS, inputs=INPUTS)
    for stage in results:
        files.write_result(stage, lambda folder: folder.joinpath("weights").write_text("whole"))
        if stage != "ppo":
            files.finish(stage, {})
    files.end(status)
    return files


def recipe(**changes: Any) -> dict[str, Any]:
    """The recipe with dotted keys changed."""
    return with_keys(RECIPE, changes)


def with_keys(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(dict(plain))
    for key, value in changes.items():
        node, *path = found, *key.split("__")
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = value
    return found


def inputs(**changes: Any) -> dict[str, Any]:
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in (INPUTS | given).items() if value is not None}


def check(
    path: Path, now: Any = RECIPE, given: Any = INPUTS, plugins: Any = PLUGINS, **allowed: Any
) -> list[str]:
    names = frozenset(allowed.pop("names", ()))
    may = {"force": False, "plugins_may_change": False} | allowed
    allowance = Allowance(force=may["force"], plugins=may["plugins_may_change"], names=names)
    return allowance.check(path, now, plugins, given)


def test_a_run_that_nothing_has_changed_of_is_that_run(tmp_path: Path) -> None:
    run(tmp_path / "run")
    assert check(tmp_path / "run") == []


SAFE = {
    "runtime__device": ("cuda", 'runtime.device: "cpu" -> "cuda" (safe)'),
    "runtime__threads": (2, "runtime.threads: nothing -> 2 (safe)"),
    "checkpoints__every": (7, "checkpoints.every: 5 -> 7 (safe)"),
}


@pytest.mark.parametrize("key", SAFE)
def test_a_key_that_changes_no_number_may_change(tmp_path: Path, key: str) -> None:
    value, said = SAFE[key]
    run(tmp_path / "run")
    assert check(tmp_path / "run", recipe(**{key: value})) == [said]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ppo__max_grad_norm", 0.1, "ppo.max_grad_norm: 0.2 -> 0.1 (needs --force)"),
        ("rewards__mine__weight", 2.0, "rewards.mine.weight: 1.0 -> 2.0 (needs --force)"),
        ("ppo__ema", 0.9, "ppo.ema: nothing -> 0.9 (needs --force)"),
    ],
)
def test_a_key_of_another_experiment_needs_force(
    tmp_path: Path, key: str, value: Any, said: str
) -> None:
    run(tmp_path / "run")
    now = recipe(**{key: value})
    with pytest.raises(RecipeError) as caught:
        check(tmp_path / "run", now)
    assert said in str(caught.value)
    assert str(caught.value).endswith("Add --force if that is meant, or begin a new run.")
    assert "Put back" not in str(caught.value)
    assert check(tmp_path / "run", now, force=True) == [said]


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("seed", 1, "seed: 0 -> 1 (refused)"),
        ("version", 2, "version: 1 -> 2 (refused)"),
        ("model__policy", "models/n", 'model.policy: "models/m" -> "models/n" (refused)'),
        ("prompts", {"data": "other"}, 'prompts.data: nothing -> "other" (refused)'),
    ],
)
def test_what_things_were_made_with_is_refused_whatever_is_forced(
    tmp_path: Path, key: str, value: Any, refused: str
) -> None:
    run(tmp_path / "run")
    given = inputs(model__policy=None) if key == "model__policy" else INPUTS  # one of the hub
    for force in (False, True):
        with pytest.raises(RecipeError) as caught:
            check(tmp_path / "run", recipe(**{key: value}), given, force=force)
        assert refused in str(caught.value)
        assert "Begin a new run for what is refused." in str(caught.value)


def test_data_that_lies_elsewhere_is_the_same_data(tmp_path: Path) -> None:
    run(tmp_path / "run")
    said = check(tmp_path / "run", recipe(data__reviews__path="b.jsonl"))
    assert said == ['data.reviews.path: "a.jsonl" -> "b.jsonl" (safe: the same content)']


@pytest.mark.parametrize("path", ["a.jsonl", "b.jsonl"])
def test_other_data_is_allowed_by_name_alone(tmp_path: Path, path: str) -> None:
    run(tmp_path / "run")
    now = recipe(data__reviews__path=path)
    given = inputs(data__reviews={"sha256": "d2", "train": 10, "heldout": 1})
    for keys in ({}, {"force": True}, {"names": ["model.policy"]}):
        with pytest.raises(RecipeError) as caught:
            check(tmp_path / "run", now, given, **keys)
        assert "Put back what it had, or add --allow-changed data.reviews" in str(caught.value)
        assert str(caught.value).count("add --allow-changed") == 1
    said = check(tmp_path / "run", now, given, names=["data.reviews"])
    assert all(line.endswith("(allowed)") for line in said)
    assert len(said) == (1 if path == "a.jsonl" else 2)


def test_a_variable_with_another_value_is_allowed_by_name_alone(tmp_path: Path) -> None:
    run(tmp_path / "run")
    given = inputs(rewards__mine__token={"value": "v2"})
    with pytest.raises(RecipeError, match=r"add --allow-changed rewards\.mine\.token"):
        check(tmp_path / "run", given=given)
    assert len(check(tmp_path / "run", given=given, names=["rewards.mine.token"])) == 1


def test_a_variable_that_fills_nothing_any_more_is_said_as_a_key(tmp_path: Path) -> None:
    run(tmp_path / "run")
    assert check(tmp_path / "run", given=inputs(rewards__mine__token=None)) == []


def test_a_file_that_a_component_names_may_be_its_own(tmp_path: Path) -> None:
    run(tmp_path / "run")
    (said,) = check(tmp_path / "run", given=inputs(rewards__mine__words={"files": {"": "w2"}}))
    assert said.startswith("rewards.mine.words: ")
    assert said.endswith("(a component reads it)")


def test_a_model_that_is_gone_is_refused_while_the_recipe_names_it(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"model\.policy: it is gone"):
        check(tmp_path / "run", given=inputs(model__policy=None))


def edit(path: Path) -> None:
    file = path / RESOLVED
    file.write_text(file.read_text().replace("max_grad_norm: 0.2", "max_grad_norm: 0.3"))


def test_a_resolved_recipe_that_somebody_has_edited_is_said_key_by_key(tmp_path: Path) -> None:
    run(tmp_path / "run")
    edit(tmp_path / "run")
    with pytest.raises(RecipeError) as caught:
        check(tmp_path / "run")
    assert f"{RESOLVED}: somebody has edited it: ppo.max_grad_norm 0.2 -> 0.3" in str(caught.value)
    assert f"add --allow-changed {RESOLVED}" in str(caught.value)
    (said,) = check(tmp_path / "run", names=[RESOLVED])
    assert said.endswith("(allowed)")


def test_another_form_of_the_same_recipe_is_no_edit(tmp_path: Path) -> None:
    run(tmp_path / "run")
    file = tmp_path / "run" / RESOLVED
    file.write_text("# mine\n" + file.read_text())
    assert check(tmp_path / "run") == []


def stored(path: Path, **changes: Any) -> None:
    origin = {"stage": "ppo", "run": "?", "recipe": "digest", "inputs": {}} | changes
    store = CheckpointStore(path / "checkpoints" / "ppo", keep_last=9, keep_best=0, origin=origin)
    store.write(3, lambda folder: folder.joinpath("state.json").write_text("{}"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "theirs"}, "000003 is of another run, theirs; this one is"),
        ({"stage": "sft"}, "000003 is of the stage sft"),
        ({"inputs": {"data.reviews": "another"}}, "000003 was made from another data.reviews"),
        ({"recipe": "another"}, "000003 was made with another recipe"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_a_checkpoint_of_another_run_is_named(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    files = run(tmp_path / "run")
    own = files.origin("ppo")
    stored(tmp_path / "run", **own)
    assert check(tmp_path / "run") == []
    stored(tmp_path / "run", **(own | changes))
    with pytest.raises(RecipeError) as caught:
        check(tmp_path / "run")
    assert words in str(caught.value)
    assert "add --allow-changed checkpoints" in str(caught.value)
    (said,) = check(tmp_path / "run", names=["checkpoints"])
    assert said.startswith("checkpoints: ")


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(path, status="finished", results=("sft", "ppo"))
    said = r"is finished: there is nothing to resume\. .*ppo\.updates=8"
    with pytest.raises(SetupError, match=said):
        check(path)
    with pytest.raises(SetupError, match=said):
        Allowance().begun(path)
    assert Allowance().begun(path, ["ppo.updates=9"]) == path / RESOLVED


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_unless_a_result_is_damaged(tmp_path: Path, stage: str) -> None:
    path = tmp_path / "run"
    run(path, status="finished", results=("sft", "ppo"))
    (path / stage / "weights").write_text("torn")
    assert [*damaged_results(path, Allowance().read(path))] == [stage]
    assert Allowance().begun(path) == path / RESOLVED
    assert check(path) == []


def test_a_finished_run_can_be_given_more_updates_and_not_fewer(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(path, status="finished", results=("ppo",))
    said = check(path, recipe(ppo__updates=6))
    assert said == [
        "ppo.updates: 4 -> 6 (more)",
        "ppo: 6 updates instead of 4; the learning-rate schedule (linear, warm-up 1) is recomputed "
        "over 6",
    ]
    with pytest.raises(SetupError, match="nothing to resume"):
        check(path, recipe(ppo__updates=3))


def test_more_updates_of_a_run_that_is_not_finished_are_another_experiment(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"ppo\.updates: 4 -> 6 \(needs --force\)"):
        check(tmp_path / "run", recipe(ppo__updates=6))


@pytest.mark.parametrize("what", ["distribution", "version", "target", "sha256"])
def test_another_plugin_is_refused_unless_that_is_meant(tmp_path: Path, what: str) -> None:
    run(tmp_path / "run")
    now = {"rewards.mine": PLUGINS["rewards.mine"] | {what: "other"}}
    with pytest.raises(PluginError, match="add --allow-changed-plugins if the change is meant"):
        check(tmp_path / "run", plugins=now)
    (said,) = check(tmp_path / "run", plugins=now, plugins_may_change=True)
    was = PLUGINS["rewards.mine"][what]
    assert said == f"rewards.mine (length): {what} was {was}, is other"


def test_a_plugin_that_the_recipe_names_anew_is_no_change_of_one(tmp_path: Path) -> None:
    run(tmp_path / "run")
    assert check(tmp_path / "run", plugins=PLUGINS | {"rewards.new": {"name": "new"}}) == []


def test_a_name_that_means_nothing_in_the_run_is_said(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run"
    known = ["manifest.json", RESOLVED, "checkpoints", *INPUTS]
    assert Allowance(names=frozenset(known)).misspelt(path) is None
    said = Allowance(names=frozenset(["data.review"])).misspelt(path)
    assert said is not None
    assert "'data.review' is nothing that" in said
    assert "Did you mean 'data.reviews'?" in said
    assert all(name in said for name in known)


def test_libraries_of_other_versions_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "run")
    monkeypatch.setattr("rlframe.runs.resuming.rlframe.__version__", "9.9")
    monkeypatch.setattr("rlframe.runs.resuming.installed_version", lambda name: "7.0")
    said = check(tmp_path / "run")
    assert any(line.startswith("rlframe was ") and ", is 9.9: numbers may" in line for line in said)
    assert any(line.startswith("torch was ") and ", is 7.0: numbers" in line for line in said)


def test_leaves_that_differ_are_listed_with_those_that_are_new_or_gone() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": {}, "gone": None, "left": 3}
    now = {"a": {"b": 2, "c": [1, 2]}, "d": {"e": 5}, "left": None, "new": 4}
    assert list(changed(before, now)) == [
        ("a.b", 1, 2),
        ("d", {}, None),
        ("left", 3, None),
        ("d.e", None, 5),
        ("new", None, 4),
    ]

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rlframe.errors import SetupError
from rlframe.runs.directory import RunDirectory, as_yaml, default_directory, refuse_used


def begun(path: Path) -> RunDirectory:
    files = RunDirectory(path)
    files.begin(
        source="version: 1\n", resolved={"version": 1}, digest="abc", plugins={"kl": "fixed"}
    )
    return files


def test_runs_never_share_a_directory(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    with pytest.raises(SetupError, match="not empty"):
        RunDirectory(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    RunDirectory(tmp_path / "empty")


def test_a_place_that_can_not_be_written_is_an_environment_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be created"):
        RunDirectory(tmp_path / "file" / "run")


def test_the_manifest_follows_the_run(tmp_path: Path) -> None:
    files = begun(tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    first = json.loads(manifest.read_text())
    assert first["status"] == "running"
    assert first["libraries"]["torch"]
    files.end("finished", figures={"sft/perplexity": math.nan})
    last = json.loads(manifest.read_text())
    assert (last["status"], last["digest"]) == ("finished", "abc")
    assert last["figures"] == {"sft/perplexity": None}
    assert last["started"] <= last["ended"]


def test_metrics_are_valid_json_line_by_line_whatever_the_numbers(tmp_path: Path) -> None:
    files = begun(tmp_path / "run")
    files.metrics({"a": 1.5, "b": math.inf, "c": [math.nan, 1]})
    files.metrics({"a": 2.5})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert rows == [{"a": 1.5, "b": None, "c": [None, 1]}, {"a": 2.5}]


def test_a_default_directory_is_named_after_its_recipe() -> None:
    assert default_directory(Path("recipes/quickstart.yaml")).parent == Path("runs")
    assert default_directory(Path("recipes/quickstart.yaml")).name.startswith("quickstart-")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ([2, 3], "1 of 3 updates, the first of them 1"),
        ([1, 2], "1 of 3 updates, the first of them 3"),
        ([2], "2 of 3 updates, the first of them 1"),
        ([1, 2, 3], None),
        ([1, 2, 3, 4], None),
    ],
)
def test_updates_that_are_missing_among_the_metrics_are_counted(
    tmp_path: Path, there: list[int], message: str | None
) -> None:
    files = begun(tmp_path / "run")
    for update in there:
        files.metrics({"stage": "ppo", "update": update, "episode": 8})
    found = files.forget_after(3)
    assert (found is None) == (message is None), found
    assert message is None or message in str(found)


def test_a_resumed_run_reads_what_was_answered_before_and_knows_damage(tmp_path: Path) -> None:
    files, answers = begun(tmp_path / "run"), [{"sample": 0, "score": 0.5}]
    files.samples("before", answers)
    files.samples("after", answers)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert set(manifest["samples"]) == {"before"}
    again = RunDirectory(tmp_path / "run", manifest=manifest)
    assert again.read_samples("before") == answers
    (tmp_path / "run" / "samples" / "before.jsonl").write_text('{"sample": 0, "score": 0.6}\n')
    assert again.read_samples("before") is None


def test_a_place_that_can_not_be_read_is_an_environment_error(tmp_path: Path) -> None:
    """Its name is longer than any file system has; no permission keeps root out."""
    with pytest.raises(SetupError, match="cannot be read: File name too long"):
        refuse_used(tmp_path / ("x" * 300))


def test_the_resolved_recipe_has_a_line_for_every_key(tmp_path: Path) -> None:
    text = as_yaml({"version": 1, "kl": {"controller": {"type": "fixed"}}, "hooks": [{"a": 1}]})
    assert text.splitlines() == [
        "version: 1",
        "kl:",
        "  controller:",
        "    type: fixed",
        "hooks:",
        "- a: 1",
    ]


def test_a_result_says_how_many_updates_it_took_and_a_stage_that_makes_none_says_0(
    tmp_path: Path,
) -> None:
    run = begun(tmp_path / "run")

    def fill(path: Path) -> None:
        (path / "model").write_text("weights", encoding="utf-8")

    run.write_result("sft", fill)
    run.write_result("ppo", fill, number=7)
    assert [run.result(stage)["number"] for stage in ("sft", "ppo")] == [0, 7]


@pytest.mark.parametrize("main", [True, False])
def test_only_the_process_that_writes_waits_for_its_metrics_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: bool
) -> None:
    begun(tmp_path / "run").metrics({"update": 1})
    synced: list[Path] = []
    monkeypatch.setattr("rlframe.runs.records.sync", synced.append)
    RunDirectory(tmp_path / "run", main=main, manifest={}).sync()
    assert synced == ([tmp_path / "run" / "metrics.jsonl"] if main else [])

"""`rlframe doctor`: a run in sentences or JSON, and the environment for a bug report."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

import rlframe as package
from rlframe.reports import environment


@pytest.fixture
def run(rlframe, recipe, tmp_path):
    """A finished run whose KL coefficient is 0."""
    folder = tmp_path / "run"
    ended = rlframe("train", recipe, "kl.controller.coefficient=0", "sft=null", "--output", folder)
    assert ended.code == 0, ended.err
    return folder


def test_a_real_run_is_judged_in_sentences_and_in_json(rlframe, run):
    ended = rlframe("doctor", run)
    assert (ended.code, ended.err) == (0, "")
    head, *found = ended.out.split("\n\n")
    assert head.startswith(f"{run}: finished, 1 update; ")
    (zero,) = [text for text in found if "[coefficient_zero]" in text]
    assert zero.endswith("change: kl.controller.coefficient=0.05")
    assert "kl/coefficient: 0 (update 1)" in zero
    assert "[too_short]" in ended.out
    page = json.loads(rlframe("doctor", run, "--json").out)
    assert (page["status"], page["updates"]) == ("finished", 1)
    by_name = {found["name"]: found for found in page["findings"]}
    evidence = by_name["coefficient_zero"]["evidence"]
    assert evidence["kl/coefficient"] == [{"updates": [1, 1], "value": 0.0}]

    # a run that is still written, or was edited, is judged by what can be read
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "ppo", "upd')
    (run / "samples" / "notes.jsonl").write_text("of somebody else\n")
    assert json.loads(rlframe("doctor", run, "--json").out) == page
    # what a run says is data: neither markup nor escapes
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "error": "[red]\x1b[2Jbroken"}))
    assert "The run ended with: [red]\\u001b[2Jbroken" in rlframe("doctor", run).out

    (run / "metrics.jsonl").unlink()
    assert "there are no PPO updates to judge yet" in rlframe("doctor", run).out
    (run / "samples" / "before.jsonl").write_text("{")
    ended = rlframe("doctor", run)
    assert ended.code == 5
    assert "before.jsonl cannot be read" in ended.err


def test_what_is_no_run_is_an_error_of_the_environment(rlframe, tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        ended = rlframe("doctor", path)
        assert ended.code == 5
        assert f"{path} holds no run: " in ended.err


def test_the_environment_has_versions_and_plugins_and_no_secrets(rlframe, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_never_to_be_shown")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = json.loads(rlframe("doctor", "--json").out)
    assert found["rlframe"] == package.__version__
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    shown = rlframe("doctor").out
    assert f"torch: {metadata.version('torch')}\n" in shown
    assert "CPU threads: " in shown
    assert "hf_never" not in shown + json.dumps(found)


def test_the_environment_is_known_although_packages_are_missing(monkeypatch, rlframe):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", missing)
    monkeypatch.setitem(sys.modules, "rlframe.registry.discovery", None)
    shown = rlframe("doctor").out
    assert "torch: not installed\n" in shown
    assert "plugins: not known: " in shown


def test_gpus_are_those_that_the_driver_lists(monkeypatch):
    def driver(command, **_):
        return subprocess.CompletedProcess(command, 0, "NVIDIA H200, 143771 MiB, 570.1\n", "")

    monkeypatch.setattr(environment.subprocess, "run", driver)
    assert environment.environment()["gpus"] == ["NVIDIA H200, 143771 MiB, 570.1"]

    def slow(command, **_):
        raise subprocess.TimeoutExpired(command, 5)

    monkeypatch.setattr(environment.subprocess, "run", slow)
    assert "timed out" in environment.environment()["gpus"]

"""Runs that are resumed after something has happened to their files, their data or their models."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from rlframe.builtin.product_reviews import product_reviews
from rlframe.cli.main import main
from rlframe.runs.sealed import sealed_text
from tests import foreign
from tests.situations import Situation, recipe

STOPPED = "checkpoints.stop_after_minutes=0.0001"
ON = "checkpoints.stop_after_minutes=null"
OLD = Path(__file__).parent.parent / "runs" / "old_format"


def rlframe(*words: str) -> int:
    """Run a command in this process; its exit code."""
    before, sys.argv = sys.argv, ["rlframe", *words]
    try:
        main()
    except SystemExit as ending:
        return int(ending.code or 0)
    finally:
        sys.argv = before
    return 0


@cache
def made(*overrides: str, code: int) -> Path:
    """A folder with data, a model, a recipe that names both, and its run."""
    folder = Path(tempfile.mkdtemp(prefix="rlframe-situations-"))
    foreign.rows(folder / "rows.jsonl", list(product_reviews(120, seed=3)))
    foreign.saved(folder / "policy", "zephyr")
    recipe(
        folder,
        data={"reviews": {"path": "rows.jsonl", "heldout": 0.3}},
        model={"policy": "policy"},
        checkpoints={"every": 1},
    )
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert rlframe("train", "recipe.yaml", "--output", "run", *overrides) == code
    finally:
        os.chdir(here)
    return folder


def stopped(folder: Path) -> Path:
    """A run that was stopped after its first update of two."""
    shutil.copytree(made(STOPPED, code=130), folder, dirs_exist_ok=True)
    return folder / "run"


def finished(folder: Path) -> Path:
    """A run that has ended."""
    shutil.copytree(made(code=0), folder, dirs_exist_ok=True)
    return folder / "run"


def resumed(
    change: Callable[[Path], Any], *words: str, of: Callable[[Path], Path] = stopped
) -> Callable[[Path], list[str]]:
    """Resume a run after its directory, or the folder around it, was changed."""

    def make(folder: Path) -> list[str]:
        run = of(folder)
        change(run)
        return ["resume", "run", *words]

    return make


def nothing(run: Path) -> None:
    """Leave everything as it was."""


def edit(name: str, *changes: tuple[str, str]) -> Callable[[Path], Any]:
    """Replace text in a file of the run, or beside it."""

    def change(run: Path) -> None:
        path = run / name
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text, f"{old} is not in {path}"
            text = text.replace(old, new, 1)
        path.write_text(text, encoding="utf-8")

    return change


def become(name: str, content: bytes | None) -> Callable[[Path], Any]:
    """Give a file of the run another content, or none."""

    def change(run: Path) -> None:
        (run / name).unlink() if content is None else (run / name).write_bytes(content)

    return change


def cut(name: str) -> Callable[[Path], Any]:
    """Leave the first half of a file."""

    def change(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: len(content) // 2])

    return change


def flipped(name: str) -> Callable[[Path], Any]:
    """Change the last byte of a file."""

    def change(run: Path) -> None:
        content = bytearray((run / name).read_bytes())
        content[-1] ^= 1
        (run / name).write_bytes(content)

    return change


def a_row_more(run: Path) -> None:
    with (run.parent / "rows.jsonl").open("a") as file:
        file.write('{"text": "one more review of one more thing"}\n')


def moved(run: Path) -> None:
    (run.parent / "rows.jsonl").rename(run.parent / "elsewhere.jsonl")
    (run.parent / "policy").rename(run.parent / "model")


def metrics_of_a_bad_day(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_bytes(b"\n\0\0\0\0\nnot json\n[1]\n" + path.read_bytes() + b'\n{"stage": "pp')


def of_another_run(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(made(code=0) / "run" / "checkpoints", run / "checkpoints")


def of_a_later_format(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["sha256"]
    text = sealed_text({**manifest, "format": 9, "rlframe": "7.0"})
    (run / "manifest.json").write_text(text)


def every_checkpoint_damaged(run: Path) -> None:
    for path in (run / "checkpoints").glob("*/*/state.json"):
        path.unlink()


def a_lock_that_is_a_folder(run: Path) -> None:
    (run / ".lock").unlink()
    (run / ".lock").mkdir()


def copied(folder: Path) -> list[str]:
    stopped(folder).rename(folder / "copy")
    return ["resume", "copy", ON]


def old(folder: Path) -> list[str]:
    shutil.copytree(OLD, folder / "run")
    return ["resume", "run"]


def used(folder: Path) -> list[str]:
    stopped(folder)
    return ["train", "recipe.yaml", "--output", "run"]


def a_file_in_the_way(folder: Path) -> list[str]:
    (folder / "run").write_text("")
    return ["train", recipe(folder), "--output", "run/inside"]


def of_a_variable(folder: Path) -> Path:
    """A run whose horizon comes from the environment."""
    before = os.environ.get("RLFRAME_HORIZON")
    os.environ["RLFRAME_HORIZON"] = "100"
    try:
        template = made(STOPPED, "kl.controller.horizon=${env:RLFRAME_HORIZON}", code=130)
    finally:
        del os.environ["RLFRAME_HORIZON"]
        if before is not None:
            os.environ["RLFRAME_HORIZON"] = before
    shutil.copytree(template, folder, dirs_exist_ok=True)
    return folder / "run"


BEGUN = "run was begun with something else"

SITUATIONS = [
    Situation(
        "a row of the data has changed",
        resumed(edit("../rows.jsonl", ("camera", "kamera"))),
        3,
        (BEGUN, "data.reviews: it has", "but other content", "add --allow-changed data.reviews"),
    ),
    Situation(
        "the data has a row more",
        resumed(a_row_more),
        3,
        (BEGUN, "data.reviews: it had", "to train on + held out), and has"),
    ),
    Situation(
        "changed data is allowed by its name",
        resumed(a_row_more, ON, "--allow-changed", "data.reviews"),
        0,
        ("data.reviews: it had", "(allowed)", "resuming after update 1"),
    ),
    Situation(
        "data and model lie elsewhere and are the same",
        resumed(moved, ON, "data.reviews.path=elsewhere.jsonl", "model.policy=model"),
        0,
        ('model.policy: "policy" -> "model" (safe: the same content)', "resuming after update 1"),
    ),
    Situation(
        "the data is gone",
        resumed(lambda run: (run.parent / "rows.jsonl").unlink()),
        3,
        ("rows.jsonl",),
    ),
    Situation(
        "the weights of the model have changed",
        resumed(flipped("../policy/model.safetensors")),
        3,
        (BEGUN, "model.policy: model.safetensors has changed", "--allow-changed model.policy"),
    ),
    Situation(
        "the resolved recipe was edited",
        resumed(edit("recipe.resolved.yaml", ("learning_rate: 0.001", "learning_rate: 0.01"))),
        3,
        (
            "recipe.resolved.yaml: somebody has edited it: ppo.learning_rate 0.001 -> 0.01",
            "add --allow-changed recipe.resolved.yaml",
        ),
    ),
    Situation(
        "the resolved recipe was made unreadable",
        resumed(edit("recipe.resolved.yaml", ("version: 1", "version: [1"))),
        3,
        ("run/recipe.resolved.yaml:", "not valid YAML"),
    ),
    Situation(
        "the resolved recipe is gone",
        resumed(become("recipe.resolved.yaml", None)),
        3,
        ("run/recipe.resolved.yaml: there is no such recipe file",),
    ),
    Situation(
        "the manifest was edited",
        resumed(edit("manifest.json", ('"interrupted"', '"failed"'))),
        5,
        ("run/manifest.json was changed after rlframe had written it", "--allow-changed"),
    ),
    Situation(
        "the manifest is empty",
        resumed(become("manifest.json", b"")),
        5,
        ("run/manifest.json is damaged: it is empty", "start again with another --output"),
    ),
    Situation(
        "the manifest is full of zeros, as after a loss of power",
        resumed(become("manifest.json", bytes(4096))),
        5,
        ("run/manifest.json is damaged: it is empty",),
    ),
    Situation(
        "the manifest is torn",
        resumed(cut("manifest.json")),
        5,
        ("run/manifest.json is damaged: it is not JSON",),
    ),
    Situation(
        "the manifest is JSON of something else",
        resumed(become("manifest.json", b"[1, 2]")),
        5,
        ("run/manifest.json is damaged: it does not say the status of a run",),
    ),
    Situation(
        "the manifest is gone",
        resumed(become("manifest.json", None)),
        5,
        ("run holds no run: it has no manifest.json",),
    ),
    Situation(
        "there is no such run",
        lambda folder: ["resume", "runs/nowhere"],
        5,
        ("runs/nowhere holds no run: there is no such directory",),
    ),
    Situation(
        "a run that was written before run directories had a format",
        old,
        5,
        ("run was written by rlframe 0.1.0 in format 1", "this rlframe reads format 4"),
    ),
    Situation(
        "a run of a later rlframe",
        resumed(of_a_later_format),
        5,
        ("run was written by rlframe 7.0 in format 9",),
    ),
    Situation(
        "checkpoints of another run",
        resumed(of_another_run),
        3,
        (
            "checkpoints: run/checkpoints/ppo/000001 is of another run",
            "--allow-changed checkpoints",
        ),
    ),
    Situation(
        "every checkpoint is damaged",
        resumed(every_checkpoint_damaged),
        1,
        ("there is no checkpoint to resume from", "state.json is missing"),
    ),
    Situation(
        "blank, torn and foreign lines among the metrics",
        resumed(metrics_of_a_bad_day, ON),
        0,
        ("metrics.jsonl: 2 of its lines are no JSON objects", "resuming after update 1"),
    ),
    Situation(
        "the samples of the beginning are torn",
        resumed(cut("samples/before.jsonl"), ON),
        0,
        ("before.jsonl is missing or damaged: the held-out prompts are answered again",),
    ),
    Situation(
        "metrics that somebody has emptied",
        resumed(become("metrics.jsonl", b""), ON),
        0,
        ("metrics.jsonl lacks 1 of 1 updates",),
    ),
    Situation("a run directory that was copied elsewhere", copied, 0, ("resuming after update 1",)),
    Situation(
        "a lock that cannot be taken",
        resumed(a_lock_that_is_a_folder),
        5,
        ("run/.lock: cannot be written",),
    ),
    Situation(
        "what is allowed to change is misspelt",
        resumed(nothing, "--allow-changed", "data.revews"),
        2,
        ("'data.revews'", "Did you mean", "'data.reviews'?"),
    ),
    Situation(
        "a finished run",
        resumed(nothing, of=finished),
        5,
        ("run is finished: there is nothing to resume", "rlframe resume run ppo.updates=4"),
    ),
    Situation(
        "a finished run with another key that changes nothing more",
        resumed(nothing, "checkpoints.every=3", of=finished),
        5,
        ("run is finished: there is nothing to resume",),
    ),
    Situation(
        "a finished run that is given more updates",
        resumed(nothing, "ppo.updates=4", of=finished),
        0,
        ("ppo: 4 updates instead of 2; the learning-rate schedule (linear", "recomputed over 4"),
    ),
    Situation(
        "a finished run whose result was damaged",
        resumed(flipped("ppo/policy/model.safetensors"), of=finished),
        0,
        ("resuming after update 1",),
    ),
    Situation(
        "a variable of the recipe has another value",
        resumed(nothing, of=of_a_variable),
        3,
        ("kl.controller.horizon: its variable has another value",),
        ("Traceback", "4711"),
        (("RLFRAME_HORIZON", "4711"),),
    ),
    Situation(
        "a variable of the recipe is not set",
        resumed(nothing, of=of_a_variable),
        3,
        ("kl.controller.horizon: the environment variable 'RLFRAME_HORIZON' is not set",),
    ),
    Situation("a run directory that is used", used, 5, ("run is not empty",)),
    Situation("a run directory below a file", a_file_in_the_way, 5, ("cannot be created",)),
]

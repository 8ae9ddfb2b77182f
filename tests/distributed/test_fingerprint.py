"""A plugin that differs on one machine is reported before step 0, to two processes of torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlframe.builtin.product_reviews import product_reviews
from tests import foreign
from tests.cli.broken import distribution
from tests.cli.conftest import TINY

ROOT = Path(__file__).parents[2]


def train(
    folder: Path, sites: list[Path], *overrides: str, folders: list[Path] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run a recipe as one run of as many processes as there are places that plugins come from.

    Each process works in `folder`, or in one of `folders`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rlframe", "train", "recipe.yaml", *overrides]
    command += ["--output", str(folder / "run")]
    meeting = {"WORLD_SIZE": str(len(sites)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank, site in enumerate(sites):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": f"{ROOT}:{site}"}
        started.append(
            subprocess.Popen(
                command,
                cwd=folders[rank] if folders else folder,
                env={**os.environ, **meeting, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=240) for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, *streams)
        for process, streams in zip(started, said, strict=True)
    ]


def installed(site: Path, words: str) -> Path:
    """A reward in a package, of one version whatever its other module holds."""
    (site / "acme").mkdir(parents=True)
    distribution(site, "acme", offers={"polite": "Reward"}).rename(site / "acme" / "__init__.py")
    (site / "acme" / "words.py").write_text(words)
    return site


def test_a_plugin_that_differs_on_one_rank_is_named_before_anything_is_written(
    tmp_path: Path,
) -> None:
    words = {"one": "POLITE = ['please']\n", "other": "POLITE = ['please', 'thanks']\n"}
    sites = [installed(tmp_path / name, text) for name, text in words.items()]
    (tmp_path / "recipe.yaml").write_text(
        TINY.replace("brevity: {type: length, target_tokens: 4}", "kind: {type: polite}")
    )
    message = (
        "error: sha256 of the plugin at rewards.kind is not the same on all ranks: rank 1 has "
    )
    for done in train(tmp_path, sites):
        assert done.returncode == 5, done.stderr
        assert message in done.stderr
        assert "Install the same versions on every machine" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["data.reviews", "model.reference"])
def test_data_or_a_model_that_differs_on_one_rank_is_named_before_anything_is_written(
    what: str, tmp_path: Path
) -> None:
    """As on two machines whose copies of a file are not of the same day."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for number, folder in enumerate(folders):
        content = [*product_reviews(60, seed=1)]
        if what == "data.reviews":
            content[30] = {**content[30], "text": content[30]["text"] + " !" * number}
        foreign.rows(folder / "rows.jsonl", content)
        foreign.saved(folder / "model", "zephyr", seed=number * (what == "model.reference"))
        (folder / "recipe.yaml").write_text(TINY)
    overrides = ["data.reviews={path: rows.jsonl, heldout: 0.3}", "model.policy=model"]
    overrides += ["model.reference=model", "prompts.first_words=2"]
    # Where every rank has the same policy, the reference is the model that differs.
    if what == "model.reference":
        overrides[1] = f"model.policy={folders[0] / 'model'}"
    for done in train(tmp_path, folders, *overrides, folders=folders):
        assert done.returncode == 5, done.stderr
        assert f"error: the content of {what} " in done.stderr
        assert "is not the same on all ranks: rank 1 has" in done.stderr
    assert not (tmp_path / "run").exists()

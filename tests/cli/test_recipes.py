"""`rlframe recipes`: the recipes come with the package, however it is installed."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rlframe.recipe.yaml12 import read_file

ROOT = Path(__file__).parents[2]
NAMES = sorted(
    path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
    for path in (ROOT / "recipes").rglob("*.yaml")
)


def test_every_recipe_is_listed_with_what_it_is_for(rlframe):
    listed = json.loads(rlframe("recipes", "list", "--json").out)
    assert [entry["name"] for entry in listed] == NAMES
    assert all(entry["about"] for entry in listed)
    lines = rlframe("recipes", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_stands_alone_and_is_what_ships(rlframe, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert rlframe("recipes", "copy", name, "mine.yaml").code == 0
    assert (tmp_path / "mine.yaml").read_text() == (ROOT / "recipes" / f"{name}.yaml").read_text()
    assert "extends" not in read_file(Path("mine.yaml")).data


def test_a_copy_takes_its_own_name_in_a_folder_and_never_overwrites(rlframe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = rlframe("recipes", "copy", "quickstart")
    assert (ended.code, ended.err) == (0, "")
    assert "rlframe train quickstart.yaml" in ended.out
    (tmp_path / "quickstart.yaml").write_text("mine")
    again = rlframe("recipes", "copy", "quickstart.yaml", tmp_path)
    assert again.code == 5
    assert "exists already" in again.err
    assert (tmp_path / "quickstart.yaml").read_text() == "mine"


def test_a_name_that_is_none_is_told_with_a_guess(rlframe):
    ended = rlframe("recipes", "copy", "quikstart")
    assert ended.code == 3
    assert "Did you mean 'quickstart'? There are: " in ended.err


def test_a_folder_that_is_not_there_ends_with_5(rlframe, tmp_path):
    assert rlframe("recipes", "copy", "quickstart", tmp_path / "no" / "where.yaml").code == 5


def test_a_wheel_has_the_recipes(tmp_path):
    pytest.importorskip("setuptools", minversion="77")  # a wheel is built with what is installed
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("rlframe", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--no-index", "-w", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in NAMES:
            kept = archive.read(f"rlframe/recipe_files/{name}.yaml").decode()
            assert kept == (ROOT / "recipes" / f"{name}.yaml").read_text()

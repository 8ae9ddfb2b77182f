"""A manifest is what rlframe wrote, or it is refused in words that say why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlframe.errors import SetupError
from rlframe.runs.manifest import FORMAT, read_manifest, write_manifest

MANIFEST = {
    "format": FORMAT,
    "status": "running",
    "argv": ["rlframe", "ü", "\udcff"],
    "figures": {"loss": float("nan"), "kl": 0.25},
}


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    found = read_manifest(tmp_path)
    assert found == {**MANIFEST, "figures": {"loss": None, "kl": 0.25}}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_manifest(tmp_path) == found  # spaces mean nothing


def test_every_cut_and_every_changed_character_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    whole = path.read_bytes().rstrip(b"\n")
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SetupError, match=r"manifest.json (is damaged|cannot be read)"):
            read_manifest(tmp_path)
    for place in (p for p, byte in enumerate(whole) if byte not in b" \n"):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(SetupError, match=r"manifest.json|in format"):
            read_manifest(tmp_path)


def test_one_that_was_edited_is_taken_if_that_is_meant(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace("running", "failed"))
    with pytest.raises(SetupError, match=r"--allow-changed manifest\.json"):
        read_manifest(tmp_path)
    assert read_manifest(tmp_path, edited=True)["status"] == "failed"


@pytest.mark.parametrize("number", [None, 1, FORMAT + 1, "2"])
def test_another_format_is_refused_and_never_misread(number: object, tmp_path: Path) -> None:
    content = {key: value for key, value in MANIFEST.items() if key != "format"}
    if number is not None:
        content["format"] = number
    write_manifest(tmp_path, {**content, "rlframe": "0.0.9"})
    for edited in (False, True):
        with pytest.raises(
            SetupError, match=rf"written by rlframe 0.0.9 in format .* reads format {FORMAT}"
        ):
            read_manifest(tmp_path, edited=edited)


def test_who_names_another_folder_than_a_run_is_given_the_nearest(tmp_path: Path) -> None:
    run = tmp_path / "first-run"
    run.mkdir()
    (run / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SetupError, match=f"no such directory. Did you mean '{run}'"):
        read_manifest(tmp_path / "first-rum")
    with pytest.raises(
        SetupError, match=rf"no manifest.json. Did you mean '{run}', the newest run"
    ):
        read_manifest(tmp_path)
    with pytest.raises(SetupError, match=r"there is no such directory\.$"):
        read_manifest(tmp_path / "nowhere" / "first-run")

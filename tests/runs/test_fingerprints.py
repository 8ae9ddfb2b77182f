"""Equal content has equal fingerprints wherever it lies; whatever makes another run has another."""

from __future__ import annotations

import os
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import numpy
import pytest

from rlframe.runs.fingerprints import difference, of_path, of_rows, sketch_of_path

ROWS = [{"text": "a", "n": 1}, {"text": "b\u2028c", "n": 2}, {"text": "d", "n": None}]


def test_rows_are_known_by_their_content_order_and_side() -> None:
    same = of_rows(ROWS[:2], ROWS[2:])
    assert same == of_rows(iter([dict(row) for row in ROWS[:2]]), tuple(ROWS[2:]))
    assert (same["train"], same["heldout"]) == (2, 1)
    others = [
        of_rows(ROWS[:1], ROWS[1:]),
        of_rows(ROWS[1::-1], ROWS[2:]),
        of_rows([ROWS[0], {**ROWS[1], "n": 3}], ROWS[2:]),
        of_rows([ROWS[0], {**ROWS[1], "new": None}], ROWS[2:]),
        of_rows(ROWS, []),
    ]
    digests = [found["sha256"] for found in (same, *others)]
    assert len({*digests}) == len(digests)


class Picture:
    """Of no library, without an equality; only its bytes tell it apart."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def tobytes(self) -> bytes:
        return self.content


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (b"\xff\0", b"\xff\0", b"\xfe\0"),
        (numpy.arange(3), numpy.arange(3), numpy.arange(3) + 1),
        (Picture(b"a"), Picture(b"a"), Picture(b"b")),
        (date(2024, 1, 1), date(2024, 1, 1), date(2024, 1, 2)),
        ({1, 2, 3}, {3, 2, 1}, {1, 2}),
        ("\ud800", "\ud800", "\ud801"),
        ({("a", 1): 2}, {("a", 1): 2}, {("a", 1): 3}),
        (float("nan"), float("nan"), 0.0),
    ],
)
def test_a_row_may_hold_what_json_has_no_name_for(one: Any, same: Any, other: Any) -> None:
    found = [of_rows([{"x": value}], [])["sha256"] for value in (one, same, other)]
    assert found[0] == found[1] != found[2]


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 20_000)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        (path / name).write_text(name)
    (path / "README.md").write_text("of no account")
    return path


def test_a_model_folder_is_known_by_its_files_and_not_by_their_times(tmp_path: Path) -> None:
    one = folder(tmp_path / "one")
    two = Path(shutil.copytree(one, tmp_path / "elsewhere"))
    (two / "README.md").write_text("other words")
    os.utime(two / "config.json", (0, 0))
    assert of_path(one) == of_path(two)
    assert sketch_of_path(one) == sketch_of_path(two)
    assert [*of_path(one)["files"]] == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    before = of_path(two)
    times = (two / "model.safetensors").stat()
    content = bytearray((two / "model.safetensors").read_bytes())
    content[3_000_000] ^= 1  # far from both ends, of the same size and time
    (two / "model.safetensors").write_bytes(content)
    os.utime(two / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert sketch_of_path(one) == sketch_of_path(two)
    assert difference(before, of_path(two)) == "model.safetensors has changed"
    (two / "tokenizer.json").unlink()
    (two / "vocab.txt").write_text("")
    assert difference(before, of_path(two)) == (
        "tokenizer.json is gone, vocab.txt is new, model.safetensors has changed"
    )
    assert sketch_of_path(one) != sketch_of_path(two)


@pytest.mark.parametrize("change", ["size", "first byte", "last byte", "name"])
def test_every_rank_sees_what_differs_at_the_ends(change: str, tmp_path: Path) -> None:
    one = folder(tmp_path / "one")
    before, path = sketch_of_path(one), one / "model.safetensors"
    content = bytearray(path.read_bytes())
    if change == "name":
        path.rename(one / "other.safetensors")
    else:
        content = content[:-1] if change == "size" else content
        content[0 if change == "first byte" else -1] ^= 1 if change != "size" else 0
        path.write_bytes(content)
    assert sketch_of_path(one) != before


def test_a_file_alone_is_known_too(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("a")
    before = of_path(tmp_path / "words")
    (tmp_path / "words").write_text("b")
    assert difference(before, of_path(tmp_path / "words")) == "it has changed"


def test_what_differs_is_said_in_the_readers_words() -> None:
    one, more = of_rows(ROWS[:2], ROWS[2:]), of_rows(ROWS, ROWS[2:])
    assert difference(one, more) == "it had 2 + 1 rows (to train on + held out), and has 3 + 1 rows"
    other = of_rows(ROWS[:1] + ROWS[2:], ROWS[2:])
    assert difference(one, other) == "it has 2 + 1 rows as before, but other content"
    assert difference({"value": "a"}, {"value": "b"}) == "its variable has another value"
    assert difference(one, {"files": {}}) == "it was read from another kind of place"

r"""Rows survive whatever else is in their file; "\n" alone ends one."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rlframe.runs.records import MetricsFile, jsonl, of_jsonl

SEPARATORS = [chr(n) for n in range(0x2100) if unicodedata.category(chr(n)) in ("Zl", "Zp", "Cc")]


def update(number: int) -> dict[str, object]:
    return {"stage": "ppo", "update": number, "episode": 8 * number}


def written(path: Path, *rows: dict[str, object]) -> MetricsFile:
    file = MetricsFile(path)
    for row in rows:
        file.append(row)
    return file


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_a_row_may_hold_every_separator_and_control_character(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    texts = [f"a{character}b" for character in [*SEPARATORS, "\ud800", "\udfff", "\ufeff"]]
    content: list[dict[str, object]] = [{"stage": "x", "text": text} for text in texts]
    file = written(path, *content)
    assert file.repair() is None
    assert rows(path) == content == of_jsonl(jsonl(content))


@given(st.text(st.characters()))
def test_any_text_comes_back(text: str) -> None:
    assert of_jsonl(jsonl([{"text": text}, {}])) == [{"text": text}, {}]


def test_what_is_no_row_is_taken_out_and_kept_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = written(path, {"stage": "sft"}, update(1))
    whole = path.read_bytes()
    bad = b"\n  \n\0\0\0\0\nnot json\n[1, 2]\n\xff\xfe\n{\n"
    path.write_bytes(bad + whole + b'{"note": "of a person"}\n\0\0\n{"stage": "ppo", "upd')
    message = file.repair()
    assert message is not None
    assert "4 of its lines" in message
    assert rows(path) == [{"stage": "sft"}, update(1), {"note": "of a person"}]
    kept = (tmp_path / "metrics.unreadable").read_text()
    assert kept.split("\n")[:2] == ["not json", "[1, 2]"]
    assert file.repair() is None
    file.append(update(2))
    assert file.updates() == [1, 2]


def test_a_torn_last_line_is_no_part_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = written(path, update(1))
    path.write_bytes(path.read_bytes() + b'{"stage": "ppo", "update": 2')
    assert file.repair() is None
    file.append(update(2))
    assert rows(path) == [update(1), update(2)]


def test_rows_of_others_stay_when_some_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = written(path, {"mine": 1}, update(1), {"stage": "sft"}, update(2))
    file.keep(lambda row: row["stage"] != "ppo")
    assert rows(path) == [{"mine": 1}, {"stage": "sft"}]


def test_without_a_file_there_is_nothing_to_do(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.sync()
    file.keep(lambda row: True)
    assert (file.repair(), file.updates(), [*tmp_path.iterdir()]) == (None, [], [])

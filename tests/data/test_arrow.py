"""Files as Arrow tables: mapped into memory, kept by their content, made once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from rlframe.data import arrow
from rlframe.data.arrow import file_rows
from rlframe.data.files import data_file
from rlframe.errors import SetupError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, into which files of any size go."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(arrow, "_IN_MEMORY", 0)
    return tmp_path / "cache" / "rlframe"


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [{"text": f"t{i}", "more": {"i": i}} for i in range(2100)]


def test_rows_are_mapped_from_a_file_of_the_cache(tmp_path, cache):
    rows = file_rows(data_file(lines(tmp_path / "a.jsonl", ROWS)))
    (made,) = cache.iterdir()
    assert list(rows) == ROWS
    assert str(made) in Path("/proc/self/maps").read_text()
    assert rows.place(1500) == f"{tmp_path / 'a.jsonl'}:1501"


def test_equal_content_is_read_once_wherever_it_is_and_other_content_anew(tmp_path, cache):
    one = lines(tmp_path / "a.jsonl", ROWS[:3])
    file_rows(data_file(one))
    (made,) = cache.iterdir()
    before = made.stat()
    other = lines(tmp_path / "b.jsonl", ROWS[:3])
    assert file_rows(data_file(other)).place(0) == f"{other}:1"
    assert made.stat() == before
    # The same size and the same time of change say nothing about the content.
    time = one.stat().st_mtime_ns
    lines(one, [ROWS[0], ROWS[2], ROWS[1]])
    os.utime(one, ns=(time, time))
    assert list(file_rows(data_file(one))) == [ROWS[0], ROWS[2], ROWS[1]]
    assert len(list(cache.iterdir())) == 2


def test_equal_bytes_of_another_kind_are_another_table(tmp_path, cache):
    lines(tmp_path / "a.jsonl", ROWS[:2])
    (tmp_path / "a.txt").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert list(file_rows(data_file(tmp_path / "a.jsonl"))) == ROWS[:2]
    assert list(file_rows(data_file(tmp_path / "a.txt"))) == [
        {"text": json.dumps(row)} for row in ROWS[:2]
    ]


def test_a_file_that_is_refused_leaves_nothing_in_the_cache(tmp_path, cache):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n":\n')
    for _ in range(2):
        with pytest.raises(Exception, match=":2: not valid JSON"):
            file_rows(data_file(path))
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said_with_the_way_out(tmp_path, cache):
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(SetupError, match=r"HF_DATASETS_CACHE=FOLDER") as caught:
        file_rows(data_file(lines(tmp_path / "a.jsonl", ROWS[:2])))
    assert str(cache) in str(caught.value)


def test_small_files_need_no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert list(file_rows(data_file(lines(tmp_path / "a.jsonl", ROWS)))) == ROWS
    assert not (tmp_path / "cache").exists()


def test_processes_that_read_a_file_at_the_same_time_get_the_same_rows(tmp_path):
    path = lines(tmp_path / "a.jsonl", ROWS)
    program = (
        "import sys, hashlib, json; from pathlib import Path; from rlframe.data import arrow\n"
        "from rlframe.data.files import data_file\n"
        "arrow._IN_MEMORY = 0\n"
        "rows = list(arrow.file_rows(data_file(Path(sys.argv[1]))))\n"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, env=environment
        )
        for _ in range(3)
    ]
    answers = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(answers) == 1
    assert len(list((tmp_path / "cache" / "rlframe").iterdir())) == 1

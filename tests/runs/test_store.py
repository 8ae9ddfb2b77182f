from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from rlframe.errors import RunError
from rlframe.runs.store import CheckpointStore
from rlframe.runs.trees import save_tree

FILES = {"state.json": b"{}\n", "empty": b"", "policy/model.safetensors": bytes(range(256)) * 20}


def fill(directory: Path) -> None:
    for name, content in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)


def filled(root: Path, *numbers: int, keep_last: int = 9, keep_best: int = 0) -> CheckpointStore:
    store = CheckpointStore(root, keep_last=keep_last, keep_best=keep_best)
    for number in numbers:
        store.write(number, fill)
    return store


def listing(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def test_what_was_written_is_found_again(tmp_path: Path) -> None:
    root = tmp_path / "run" / "checkpoints"
    store = CheckpointStore(root, keep_last=2, keep_best=0)
    assert store.newest() is None
    assert store.numbers() == []
    assert store.write(7, fill, score=0.25) == root / "000007" == store.path(7)
    store.write(1234567, fill)
    assert store.numbers() == [7, 1234567]
    store.verify(7)
    newest = CheckpointStore(root, keep_last=2, keep_best=0).newest()
    assert newest is not None
    assert (newest.number, newest.path, newest.score) == (1234567, root / "1234567", None)
    assert newest.passed_over == ()
    content = listing(root / "000007")
    record = json.loads(content.pop("checksums.json"))
    assert content == FILES
    assert (record["number"], record["score"], record["format"]) == (7, 0.25, 2)
    assert {n: f["size"] for n, f in record["files"].items()} == {
        name: len(data) for name, data in FILES.items()
    }


def test_others_may_read_a_checkpoint(tmp_path: Path) -> None:
    before = os.umask(0o022)
    filled(tmp_path, 1)
    os.umask(before)
    assert (tmp_path / "000001").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "000001" / "checksums.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None])
def test_a_score_that_is_no_number_is_none(score: float | None, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=1)
    store.write(1, fill, score=0.0)
    store.write(2, fill, score=score)
    store.write(3, fill, score=score)
    assert store.numbers() == [1, 3]
    newest = store.newest()
    assert newest is not None
    assert newest.score is None


@pytest.mark.parametrize(("last", "best"), [(0, 0), (1, -1)])
def test_a_store_that_keeps_nothing_is_a_programmers_mistake(
    last: int, best: int, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="keep_"):
        CheckpointStore(tmp_path, keep_last=last, keep_best=best)


def test_the_file_of_checksums_is_the_stores_own(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        filled(tmp_path).write(1, lambda path: (path / "checksums.json").touch())
    assert not list(tmp_path.iterdir())


# ---- what stays


@given(
    scores=st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=6),
    last=st.integers(1, 3),
    best=st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_the_last_and_the_best_stay(scores: list[float | None], last: int, best: int) -> None:
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        store = CheckpointStore(Path(directory), keep_last=last, keep_best=best)
        for number, score in enumerate(scores):
            store.write(number, lambda path: None, score=score)
            assert len(list(Path(directory).iterdir())) == len(store.numbers())
        scored = [(score, number) for number, score in enumerate(scores) if score is not None]
        highest = [number for _, number in sorted(scored, reverse=True)[:best]]
        assert store.numbers() == sorted({*range(len(scores))[-last:], *highest})


def test_an_old_one_goes_only_when_the_new_one_is_there(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, keep_last=1)

    def look(path: Path) -> None:
        store.verify(1)
        fill(path)

    store.write(2, look)
    assert store.numbers() == [2]


def test_a_damaged_one_takes_no_sound_ones_place(tmp_path: Path) -> None:
    store = filled(tmp_path, 10, 20, keep_last=2)
    (tmp_path / "000020" / "empty").unlink()
    store.write(25, fill)
    assert store.numbers() == [10, 25]


def test_after_a_return_to_an_earlier_one_the_later_ones_stay_until_they_come_again(
    tmp_path: Path,
) -> None:
    store = filled(tmp_path, 10, 20, 30, keep_last=2)
    (tmp_path / "000030" / "empty").unlink()
    store.write(25, fill)
    assert store.numbers() == [20, 25, 30]
    store.write(30, fill)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["000025", "000030"]
    store.verify(30)


# ---- damage


def message(store: CheckpointStore, number: int) -> str:
    """What is said of a checkpoint that is not sound."""
    with pytest.raises(RunError) as caught:
        store.verify(number)
    return str(caught.value)


@pytest.mark.parametrize("name", [*FILES, "checksums.json"])
def test_every_damage_to_a_file_is_found_and_named(name: str, tmp_path: Path) -> None:
    store = filled(tmp_path, 3)
    file = tmp_path / "000003" / name
    whole = file.read_bytes()
    every = range(len(whole)) if len(whole) < 1000 else [0, 1, 255, 256, 4096, len(whole) - 1]
    for place in every:
        for flip in (0x01, 0x07):  # 0x07 makes a carriage return of a newline
            file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            assert re.search(f"000003 is damaged: .*{name}|of format [^2]", message(store, 3))
    for length in {0, 1, len(whole) // 2, len(whole) - 1} & {*range(len(whole))}:
        file.write_bytes(whole[:length])
        assert re.search(f"000003 is damaged: .*{name}", message(store, 3))
    for more in (b"\0", b"\n", whole + b" "):
        file.write_bytes(whole + more)
        assert re.search(f"000003 is damaged: .*{name}", message(store, 3))
    file.unlink()
    assert f"000003 is damaged: {name} is missing" in message(store, 3)
    file.mkdir()
    assert f"000003 is damaged: {name}" in message(store, 3)
    file.rmdir()
    file.write_bytes(whole)
    store.verify(3)


def test_lost_files_are_told_with_both_sizes_and_a_guess(tmp_path: Path) -> None:
    store = filled(tmp_path, 3)
    os.truncate(tmp_path / "000003" / "policy" / "model.safetensors", 100)
    said = message(store, 3)
    assert "model.safetensors has 100 bytes, not 5120: was a copy cut short?" in said
    shutil.rmtree(tmp_path / "000003" / "policy")
    assert "policy/model.safetensors is missing" in message(store, 3)


def test_one_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    said = message(filled(tmp_path, 3, 5), 4)
    assert "000004: there is no such checkpoint. There are: 3, 5" in said


def test_a_renamed_one_is_not_taken_for_a_later_one(tmp_path: Path) -> None:
    store = filled(tmp_path, 3)
    shutil.copytree(tmp_path / "000003", tmp_path / "000009")
    assert "written as number 3, and renamed" in message(store, 9)
    newest = store.newest()
    assert newest is not None
    assert newest.number == 3


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    store = filled(tmp_path, 3)
    for name in ("12", "0000012", "٠٠٠٠١٢", "notes", ".nfs000012"):
        (tmp_path / name).mkdir()
    (tmp_path / "000003" / "notes.txt").write_text("the one for the paper")
    assert store.numbers() == [3]
    store.verify(3)
    store.write(4, fill)
    assert len(list(tmp_path.iterdir())) == 7


def test_the_newest_sound_one_is_found_and_the_others_are_told(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2, 3, 4)
    (tmp_path / "000002" / "state.json").unlink()
    (tmp_path / "000003" / "state.json").write_bytes(b"[]\n")
    (tmp_path / "000004" / "checksums.json").unlink()
    newest = store.newest()
    assert newest is not None
    assert newest.number == 1
    fourth, third, second = newest.passed_over
    assert "000004 is damaged: checksums.json is missing" in fourth
    assert "000003 is damaged: the content of state.json has changed" in third
    assert "000002 is damaged: state.json is missing" in second


def test_if_none_is_sound_it_is_told_why_of_each(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2)
    (tmp_path / "000001" / "empty").unlink()
    (tmp_path / "000002" / "state.json").write_bytes(b"")
    with pytest.raises(RunError) as caught:
        store.newest()
    assert "000001 is damaged: empty is missing" in str(caught.value)
    assert "000002 is damaged: state.json has 0 bytes, not 3" in str(caught.value)
    assert "start again" in str(caught.value)


def test_a_checkpoint_of_a_later_format_asks_for_a_later_rlframe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlframe.runs.sealed.FORMAT", 3)
    store = filled(tmp_path, 1)
    monkeypatch.undo()
    said = message(store, 1)
    assert "of format 3, and this rlframe reads format 2: resume with the version" in said


# ---- writers that fail


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(1), ValueError("x"), OSError(errno.EIO, "I/O")],
    ids=repr,
)
@pytest.mark.parametrize("number", [2, 3], ids=["again", "new"])
def test_a_writer_that_raises_leaves_all_as_it_was(
    error: BaseException, number: int, tmp_path: Path
) -> None:
    store = filled(tmp_path, 1, 2, keep_last=1)
    before = listing(tmp_path)

    def fail(path: Path) -> None:
        fill(path)
        raise error

    with pytest.raises(type(error)) as caught:
        store.write(number, fail)
    assert caught.value is error
    assert listing(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["000002"]


def test_what_could_not_be_removed_does_not_hinder_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, f"{path} is busy")

    store = filled(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        with pytest.raises(OSError, match=r"\.writing-000002 is busy"):
            store.write(2, into_dev_full)
    store.write(2, fill)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["000001", "000002"]


def test_interrupted_between_the_two_renames_the_old_one_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, 1)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.startswith(".writing"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(1, lambda path: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["000001"]
    assert listing(tmp_path / "000001").items() >= FILES.items()


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "new" / "root")
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))

    def noted_rename(self: Path, target: Path) -> Path:
        done.append(f"rename {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    store.write(1, fill)
    writing = "new/root/.writing-000001"
    contents = [f"{writing}/{name}" for name in [*FILES, "checksums.json", "policy"]]
    named = done.index("rename 000001")
    assert {".", "new", writing, *contents} == {*done[:named]}
    assert done[named - 1] == writing
    assert done[named + 1 :] == ["new/root"]


# ---- a full disk


def raises(error: BaseException) -> Callable[[Path], None]:
    def fail(path: Path) -> None:
        fill(path)
        raise error

    return fail


def into_dev_full(path: Path) -> None:
    fill(path)
    with open("/dev/full", "wb") as file:  # where each write finds the disk full
        file.write(b"x")


@pytest.mark.parametrize(
    "fail",
    [
        into_dev_full,
        raises(OSError(errno.EDQUOT, "over quota")),
        raises(SafetensorError("I/O error: No space left on device (os error 28)")),
    ],
    ids=["/dev/full", "quota", "safetensors"],
)
def test_a_full_disk_is_told_with_what_is_left_and_what_to_do(
    fail: Callable[[Path], None], tmp_path: Path
) -> None:
    store = filled(tmp_path, 10, 20)
    (tmp_path / "000020" / "empty").unlink()
    before = listing(tmp_path)
    with pytest.raises(RunError) as caught:
        store.write(30, fail)
    text = str(caught.value)
    assert f"{tmp_path}: no space left while checkpoint 000030" in text
    assert "5 KiB and is removed" in text
    assert "iB are free now" in text
    assert f"{tmp_path / '000010'} is intact" in text
    assert "Free some space, or keep fewer (checkpoints.keep_last" in text
    assert listing(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_with_nothing_before_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no earlier checkpoint"):
        filled(tmp_path / "new").write(1, into_dev_full)
    store = filled(tmp_path, 1)
    (tmp_path / "000001" / "empty").unlink()
    with pytest.raises(RunError, match="000001 is damaged: empty is missing"):
        store.write(2, into_dev_full)


def test_who_interrupts_on_a_full_disk_is_obeyed(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        try:
            into_dev_full(path)
        except OSError:
            raise KeyboardInterrupt from None

    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path).write(1, interrupted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs root to mount; /dev/full is tested above: {done.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def too_much(path: Path) -> None:
    save_tree(path / "state", [torch.zeros(50_000), "x"])


def too_much_json(path: Path) -> None:
    save_tree(path / "state", ["x" * 300_000])


def to_the_last_byte(path: Path) -> None:
    """Leaves no room for the file of checksums."""
    with (path / "state").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("fail", [too_much, too_much_json, to_the_last_byte])
def test_a_disk_that_fills_up_leaves_what_was_there(
    fail: Callable[[Path], None], small_disk: Path
) -> None:
    store = CheckpointStore(small_disk / "root", keep_last=1, keep_best=0)
    store.write(1, lambda path: save_tree(path / "state", [torch.zeros(25_000)]))
    with pytest.raises(RunError, match=r"no space left .*000001 is intact"):
        store.write(2, fail)
    assert store.numbers() == [1]
    store.verify(1)
    assert not list((small_disk / "root").glob(".*"))
    store.write(2, fill)
    assert store.numbers() == [2]


# ---- writers that are killed

WRITER = """
import sys
from pathlib import Path
from rlframe.runs.store import CheckpointStore

store = CheckpointStore(Path(sys.argv[1]), keep_last=2, keep_best=0)
def fill(path):
    (path / "inner").mkdir()
    for name in ("a", "b", "inner/c"):
        (path / name).write_bytes(b"%d" % number * 5000)
number = (store.numbers() or [0])[-1]
while True:
    number += 1
    for _ in range(2):  # the second replaces the first
        store.write(number, fill)
        print(number, flush=True)
"""


def test_killed_at_any_moment_a_writer_leaves_its_newest_checkpoint_sound(tmp_path: Path) -> None:
    chance = random.Random(0)
    acknowledged, leftovers = 0, 0
    for _ in range(30):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        time.sleep(chance.uniform(0, 0.03))
        writer.kill()
        acknowledged = max([acknowledged, first, *map(int, writer.stdout.read().split())])
        writer.wait()
        writer.stdout.close()
        leftovers += len(list(tmp_path.glob(".*")))
        store = CheckpointStore(tmp_path, keep_last=2, keep_best=0)
        newest = store.newest()
        assert newest is not None
        assert newest.passed_over == ()
        assert newest.number in (acknowledged, acknowledged + 1)
        assert (newest.path / "inner" / "c").read_bytes() == b"%d" % newest.number * 5000
        assert not list(tmp_path.glob(".*"))
    assert leftovers  # or the moments were badly chosen


STEPS = """
import os, shutil, sys
from pathlib import Path
from rlframe.runs.store import CheckpointStore

base = Path(sys.argv[1])

def content(text):
    def fill(path):
        (path / "a").write_text(text)
        (path / "inner").mkdir()
        (path / "inner" / "b").write_text(text)
    return fill

def work(store):
    store.write(1, content("second"))
    store.write(2, content("third"))

def killed_after(root, steps):
    def count(event, _):
        nonlocal steps
        if event.split(".")[0] in ("os", "open", "shutil"):
            steps -= 1
            if steps < 0:
                os._exit(9)
    store = CheckpointStore(root, keep_last=1, keep_best=0)
    sys.addaudithook(count)
    work(store)
    os._exit(0)

for steps in range(1000):
    root = base / str(steps)
    CheckpointStore(root, keep_last=1, keep_best=0).write(1, content("first"))
    child = os.fork()
    if not child:
        killed_after(root, steps)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    hidden = sum(1 for _ in root.glob(".*"))
    store = CheckpointStore(root, keep_last=1, keep_best=0)
    for number in store.numbers():
        store.verify(number)  # nor is one on its way out ever seen in part
    newest = store.newest()
    text = (newest.path / "inner" / "b").read_text()
    left = len(list(root.glob(".*")))
    print(code, hidden, newest.number, text, len(newest.passed_over), left)
    shutil.rmtree(root)
    if code == 0:
        break
"""


def test_killed_before_any_of_its_steps_a_writer_leaves_a_sound_checkpoint(tmp_path: Path) -> None:
    """At each operation on files, one after the other, of a replacement and of a removal."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows: list[Any] = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["9"] * (len(rows) - 1) + ["0"]
    assert len(rows) > 50
    assert any(int(row[1]) == 2 for row in rows), "never between the two renames"
    assert {(row[4], row[5]) for row in rows} == {("0", "0")}
    seen = [(int(row[2]), row[3]) for row in rows]
    order = [(1, "first"), (1, "second"), (2, "third")]
    assert seen == sorted(seen, key=order.index)
    assert {*seen} == {*order}

"""The power is cut after each sync of a run's writer: what is found is a run that can be resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

RUN = """
import json, os, random, shutil, sys
from pathlib import Path

sys.path.insert(0, os.getcwd())
from rlframe.errors import SetupError
from rlframe.runs.directory import RunDirectory, RESOLVED, sha256_of
from rlframe.runs.manifest import read_manifest
from rlframe.runs.store import CheckpointStore
from tests.benchmarks import power

base = Path(sys.argv[1])
draw = random.Random(0)


def fill(text):
    def write(path):
        (path / "inner").mkdir()
        for name in ("a", "inner/b"):
            (path / name).write_text(text * 3000)
    return write


def facts(number):
    given = {"version": 1, "number": number}
    return dict(source="s", resolved=given, digest=str(number), plugins={}, inputs={"x": number})


def live(run):
    '''A run as far as it goes: begun or resumed, a stage, two checkpoints, the end.'''
    if (run / "manifest.json").exists():
        manifest = read_manifest(run)
        files = RunDirectory(run, manifest=manifest)
        files.begin(**facts(len(manifest["resumed"]) + 1))
    else:
        shutil.rmtree(run, ignore_errors=True)
        files = RunDirectory(run)
        files.begin(**facts(0))
    if files.finished("sft") is None:
        files.forget("sft")
        files.write_result("sft", fill("sft"))
        files.metrics({"stage": "sft"})
        files.finish("sft", {"loss": 1.0})
    store = CheckpointStore(
        run / "checkpoints" / "ppo", keep_last=1, keep_best=0, origin=files.origin("ppo")
    )
    newest = store.newest()
    if newest is None:
        files.samples("before", [{"text": "u\\u2028v"}])
    else:
        assert files.read_samples("before") == [{"text": "u\\u2028v"}]
    done = newest.number if newest else 0
    assert files.forget_after(done) is None, (run / "metrics.jsonl").read_bytes()
    for update in range(done + 1, 4):
        files.metrics({"stage": "ppo", "update": update, "episode": update})
        if update < 3:
            files.sync()
            store.write(update, fill(str(update)))
    files.write_result("ppo", fill("ppo"), number=3)
    files.end("finished")


def check(run):
    '''What a machine finds after the loss.'''
    if not (run / "manifest.json").exists():
        return "nothing"
    manifest = read_manifest(run)
    text = (run / RESOLVED).read_text()
    assert sha256_of(text) in manifest["resolved_sha256"]
    files = RunDirectory(run, manifest=manifest)
    if files.finished("sft") is not None:
        files.result("sft")
    if manifest["status"] == "finished":
        files.result("ppo")
        rows = (run / "metrics.jsonl").read_text().rstrip("\\0").split("\\n")[:-1]
        assert [json.loads(row).get("update") for row in rows] == [None, 1, 2, 3]
    newest = CheckpointStore(run / "checkpoints" / "ppo", keep_last=1, keep_best=0).newest()
    assert newest is None or newest.passed_over == ()
    return manifest["status"]


def cut_after(room, syncs):
    variables = power.watched(room, base / "journal", syncs=syncs)
    child = os.fork()
    if not child:
        os.environ.update(variables)
        sys.path.insert(0, variables["PYTHONPATH"].split(os.pathsep)[0])
        sys.modules.pop("sitecustomize", None)
        import sitecustomize

        try:
            live(room / "run")
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    power.cut(room, base / "journal", draw)
    return code


for syncs in range(1, 200):
    room = base / f"room-{syncs}"
    room.mkdir()
    first = cut_after(room, syncs)
    found = check(room / "run")
    again = cut_after(room, max(1, syncs // 2))  # and once more, when it is resumed
    check(room / "run")
    last = cut_after(room, 0)
    assert (last, check(room / "run")) == (0, "finished"), (syncs, last)
    print(json.dumps([first, found, again]))
    shutil.rmtree(room)
    if first == 0:
        break
"""


def test_whenever_the_power_is_cut_the_run_is_whole() -> None:
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # whose syncs take no time
    with TemporaryDirectory(dir=memory) as directory:
        done = subprocess.run(
            [sys.executable, "-c", RUN, directory],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": ""},
        )
    assert done.returncode == 0, done.stderr + done.stdout
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [first for first, *_ in rows] == [-9] * (len(rows) - 1) + [0]
    assert len(rows) > 40
    found = [status for _, status, _ in rows]
    order = ["nothing", "running", "finished"]
    assert found == sorted(found, key=order.index)
    assert {*found} == {*order}
    assert not [again for *_, again in rows if again not in (0, -9)]

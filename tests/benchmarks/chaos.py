"""A run that is killed again and again ends as if nothing had happened.

    python tests/benchmarks/chaos.py --faults 50

A small recipe with all three stages runs once undisturbed. Then it runs again, and at random moments
it is killed (SIGKILL to one rank, SIGKILL to all, SIGTERM, SIGINT), its disk is filled up, a bit is
flipped in its newest checkpoint, or the power is cut: its files are then what was synced of them, and
nothing else (`power.py`). After each fault `rlframe resume` continues. At the end the weights of every
stage are the same to the last bit, and so are all metrics but those of the clock. Faults are drawn by a
seed; when one strikes depends on the machine, but for half of the losses of power, which strike after
the n-th sync of the process that writes.

The full disk is a tmpfs of a few MiB, which takes the right to mount; without it that fault is left
out, and the last lines say so.

Measured with the command above, two processes, every kind in one run: 14 SIGKILL to all and 6 to
one rank, 6 SIGHUP, 6 losses of power, 5 full disks, 5 terminals that disappeared, 5 SIGTERM and 3
flipped bits; nothing differed from the undisturbed run. It took 65 minutes beside other jobs. An
earlier run, when there were fewer kinds, had 12 full disks, 10 SIGTERM, 9 SIGKILL to all and 6 to one
rank, 7 SIGINT and 6 flipped bits; nothing differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import power
from ruamel.yaml import YAML

RECIPE: dict[str, Any] = {
    "version": 1,
    "data": {"reviews": {"generator": {"type": "product_reviews", "rows": 400}, "heldout": 0.2}},
    "model": {
        "policy": {
            "architecture": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": 128,
            },
            "tokenizer": {"data": "reviews", "vocab_size": 300},
        },
        "critic": {"initial": "stage:reward_model"},
    },
    "sft": {"data": "reviews", "epochs": 3, "batch_size": 8, "learning_rate": 3e-3},
    "reward_model": {"data": "reviews", "epochs": 3, "batch_size": 8, "learning_rate": 1e-3},
    "prompts": {"data": "reviews", "first_words": 3},
    "rollout": {"prompts_per_update": 16, "max_new_tokens": 24},
    "rewards": {
        "liked": {"type": "reward_model", "model": "stage:reward_model"},
        "short": {"type": "length", "target_tokens": 8},
    },
    "kl": {"controller": {"type": "adaptive", "target": 2.0, "horizon": 200, "initial": 0.1}},
    "losses": {"ptx": {"type": "ptx", "gamma": 0.5, "data": "reviews", "examples_per_step": 4}},
    "ppo": {"updates": 150, "epochs": 2, "minibatches": 2, "learning_rate": 1e-3},
    "evaluation": {"prompts": 4, "every": 7},
    "checkpoints": {"every": 6, "keep_last": 3},
    "runtime": {"device": "cpu", "threads": 1},
}

FAULTS = (
    *("kill a rank", "kill all", "SIGTERM", "SIGINT", "SIGHUP", "full disk", "flipped bit"),
    *("power loss", "lost terminal"),
)
TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
"""A terminal in a process of its own: it ends, and with it what shows the command's output."""
MODELS = ("sft", "reward_model", "ppo/policy", "ppo/critic")
DISK_MIB = 24


def rlframe(
    *arguments: str,
    log: Path,
    variables: Mapping[str, str] = MappingProxyType({}),
    terminal: bool = False,
) -> subprocess.Popen[bytes]:
    """Start the command line in a process group of its own, or in a terminal."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "rlframe", *arguments]
    if terminal:
        command = [sys.executable, "-c", TERMINAL, *command]
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=environment,
        )


def ranks(parent: int) -> list[int]:
    """The processes at the ends of a command's tree; the process itself if it started none."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [rank for pid in listed for rank in ranks(int(pid))] or [parent]


def end_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a command, and wait until its ranks, which die with it, are gone."""
    with suppress(OSError):  # it may be ending
        running = ranks(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        while any(Path(f"/proc/{rank}").exists() for rank in running):
            time.sleep(0.01)


def lose_terminal(terminal: subprocess.Popen[bytes]) -> None:
    """End a terminal, which sends SIGHUP to what runs in it, and wait until that has ended."""
    with suppress(OSError):
        running = ranks(terminal.pid)
        terminal.kill()
        while any(Path(f"/proc/{rank}").exists() for rank in running):
            time.sleep(0.01)


def progress(run: Path) -> int:
    """Grows with every checkpoint."""
    found = [int(p.name) for p in (run / "checkpoints").glob("*/[0-9]*")]
    return sum(found)


def flip_a_bit(run: Path, draw: random.Random) -> bool:
    """Change one bit of the newest checkpoint of the stage at work, if an older one is there too."""
    stages = [s for s in ("ppo", "reward_model", "sft") if (run / "checkpoints" / s).is_dir()]
    kept = sorted((run / "checkpoints" / stages[0]).glob("[0-9]*")) if stages else []
    if len(kept) < 2:
        return False
    files = [f for f in kept[-1].rglob("*") if f.is_file() and f.stat().st_size]
    file = draw.choice(files)
    place = draw.randrange(file.stat().st_size)
    with file.open("r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ (1 << draw.randrange(8))]))
    return True


def fill_disk(run: Path) -> Path:
    """Leave less room than a checkpoint takes."""
    filler = run.parent / "filler"
    # The run may write at the same time, and leave even less.
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        left = shutil.disk_usage(run.parent).free - 200_000
        file.write(b"\0" * max(left, 0))
    return filler


def live(run: Path, fault: str, arguments: list[str], draw: random.Random, log: Path) -> int:
    """One life of the run: begin or go on, work a little, suffer a fault; returns the exit code."""
    journal, variables = run.parent.parent / "journal", {}
    if fault == "power loss":
        syncs = draw.randrange(1, 150) if draw.random() < 0.5 else 0
        variables = power.watched(run.parent, journal, syncs=syncs)
    terminal = fault == "lost terminal"
    process = rlframe(*arguments, log=log, variables=variables, terminal=terminal)
    before, begun = progress(run), time.monotonic()
    while process.poll() is None and progress(run) == before:
        if time.monotonic() - begun > 300:
            raise SystemExit(f"no checkpoint within 300 s; see {log}")
        time.sleep(0.02)
    filler = None
    if process.poll() is None:
        time.sleep(draw.uniform(0, 1.0))
        if fault == "full disk":
            filler = fill_disk(run)
        elif fault == "kill a rank":
            os.kill(draw.choice(ranks(process.pid)), signal.SIGKILL)
        elif fault in ("kill all", "flipped bit", "power loss"):
            end_all(process)
        elif terminal:
            lose_terminal(process)
        else:
            process.send_signal(getattr(signal, fault))
    code = process.wait(timeout=300)
    if filler is not None:
        filler.unlink()
    if fault == "power loss":
        power.cut(run.parent, journal, draw)
    return code


def lasting(run: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock and the machine."""
    changing = ("time/", "speed/", "memory/", "eps")
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith(changing)} for row in rows]


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in two finished runs."""
    found = [
        f"{model}: weights"
        for model in MODELS
        if (one / model / "model.safetensors").read_bytes()
        != (other / model / "model.safetensors").read_bytes()
    ]
    if lasting(one) != lasting(other):
        found.append("metrics")
    if (one / "samples/after.jsonl").read_bytes() != (other / "samples/after.jsonl").read_bytes():
        found.append("samples")
    return found


def torment(
    place: Path, *, faults: int, seed: int, processes: int, disk: bool, kinds: tuple[str, ...]
) -> tuple[Counter[str], Counter[int], list[str]]:
    """Run to the end in spite of everything, several times over until enough faults have struck.

    Returns:
      (faults that struck, exit codes, differences from the undisturbed run).
    """
    draw, log = random.Random(seed), place / "log"
    recipe = place / "recipe.yaml"
    with recipe.open("w") as file:
        YAML(typ="safe").dump(RECIPE, file)
    several = ["--processes", str(processes)]
    calm = place / "calm"
    code = rlframe("train", str(recipe), "--output", str(calm), *several, log=log).wait()
    if code:
        raise SystemExit(f"the undisturbed run failed; see {log}")
    struck: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    found: list[str] = []
    kinds = kinds if disk else tuple(kind for kind in kinds if kind != "full disk")
    while struck.total() < faults:
        room = place / f"disk-{len(list(place.iterdir()))}"
        room.mkdir()
        if disk:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(room)]
            subprocess.run(mount, check=True)
        run = room / "run"
        code = 1
        while code != 0:
            fault = draw.choice(kinds) if struck.total() < faults else "none"
            begun = (run / "manifest.json").exists()
            arguments = ["resume", str(run)] if begun else ["train", str(recipe)]
            arguments += [*([] if begun else ["--output", str(run)]), *several]
            if not begun:
                shutil.rmtree(run, ignore_errors=True)
            if fault == "none":
                code = rlframe(*arguments, log=log).wait()
                break
            code = live(run, fault, arguments, draw, log)
            codes[code] += 1
            if code == 0:
                break
            if fault == "flipped bit" and not flip_a_bit(run, draw):
                fault = "kill all"
            struck[fault] += 1
            print(
                f"{struck.total():4}  {fault:12} exit {code:4}  progress {progress(run)}",
                flush=True,
            )
        if code:
            raise SystemExit(f"the run could not be ended; see {log}")
        found += differences(calm, run)
        if disk:
            unmount(room)
    return struck, codes, found


def unmount(room: Path) -> None:
    """Take a tmpfs away; lazily, as a busy kernel may hold it for a minute after its last process."""
    subprocess.run(["umount", "--lazy", str(room)], check=True)


def can_mount(place: Path) -> bool:
    """Whether a tmpfs can be mounted."""
    room = place / "probe"
    room.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(room)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        return False
    unmount(room)
    return True


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--faults", type=int, default=50)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--processes", type=int, default=2)
    parse.add_argument("--kinds", nargs="+", choices=FAULTS, default=FAULTS)
    given = parse.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        disk = can_mount(place)
        struck, codes, found = torment(
            place,
            faults=given.faults,
            seed=given.seed,
            processes=given.processes,
            disk=disk,
            kinds=tuple(given.kinds),
        )
    print(
        "faults:", dict(struck), "" if disk else "(no right to mount: the full disk was left out)"
    )
    print("exit codes:", dict(codes))
    print("different from the undisturbed run:", ", ".join(found) or "nothing")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()

"""Two processes against one on the same work, one thread each; and what a checkpoint costs.

    python tests/benchmarks/processes.py --bench BENCH                   # settings a and b of speed.py
    python tests/benchmarks/processes.py --bench BENCH --settings a --strategy deepspeed

The work is that of speed.py. Throughput is responses a second over the updates after the first, from
rlframe's own metrics; every update is followed by a checkpoint, whose time is told apart and compared
with the ten minutes between two that are the default. Exit status 1: two processes are less than 1.8
times as fast as one, or checkpoints would take 2 % of the time. Use an idle machine with two cores.

Measured for setting a, ddp: 12.76 s an update with one process, 8.59 s with two: 1.49 times, so 1.8
is missed. Rank 0 spent 0.90 s of an update (10 %) with other processes: waiting for the rank that
drew the longer responses, and exchanging gradients. Rewards became 1.7 times as fast, learning 1.5
times, crediting 1.4 times, sampling 1.2 times (as many steps as the longest response has). A
checkpoint took 0.51 s, 0.08 % of the ten minutes between two. Two matrix products side by side keep
94 % of their speed on this machine, so it is not the machine's limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from speed import BATCH, SETTINGS, make_work, start, write_recipe

FASTER, CHECKPOINTS_SHARE, BETWEEN_SECONDS = 1.8, 0.02, 600
PHASES = ("rollout", "reward", "experience", "learn")


def measure(name, processes, work, args):
    """Means over the updates after the first: responses a second, and seconds of what there is."""
    out = args.work / f"{name}-{processes}"
    every = "checkpoints: {every: 1}\n"
    write_recipe(out, work, name, updates=args.updates + 2, threads=1, more=every)
    strategy = [] if processes == 1 else [f"runtime.strategy={args.strategy}"]
    words = ["-m", "rlframe", "train", out / "recipe.yaml", "--output", out / "run", *strategy]
    start(sys.executable, *words, "--processes", processes, threads=1)
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "episode" in row][1:]

    def mean(key):
        return statistics.fmean(row.get(key, 0.0) for row in rows)

    seconds = {phase: mean(f"time/{phase}_seconds") for phase in PHASES}
    found = {
        **seconds,
        "update": sum(seconds.values()) + mean("time/gather_seconds"),
        "gather": mean("time/gather_seconds"),
        "collectives": mean("time/collectives_seconds"),
        "checkpoint": mean("time/checkpoint_seconds"),
        "responses_per_second": BATCH / (sum(seconds.values()) + mean("time/gather_seconds")),
    }
    print(name, processes, {key: round(value, 3) for key, value in found.items()}, flush=True)
    return found


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--bench", type=Path, required=True, help="folder of make_work.py")
    parse.add_argument("--settings", nargs="+", choices=SETTINGS, default=["a", "b"])
    parse.add_argument("--strategy", default="ddp")
    parse.add_argument("--updates", type=int, default=3, help="timed ones")
    parse.add_argument("--work", type=Path)
    args = parse.parse_args()
    args.threads, args.bench = 1, args.bench.resolve()
    scratch = tempfile.TemporaryDirectory()
    args.work = args.work or Path(scratch.name)
    table = Table("setting", "1 process", "2 processes", "times", "collectives", "a checkpoint")
    fine = True
    for name in args.settings:
        work = make_work(name, args)
        one, two = (measure(name, count, work, args) for count in (1, 2))
        faster = two["responses_per_second"] / one["responses_per_second"]
        share = two["checkpoint"] / BETWEEN_SECONDS
        met = faster >= FASTER and share < CHECKPOINTS_SHARE
        fine = fine and met
        table.add_row(
            name,
            f"{one['update']:.2f} s",
            f"{two['update']:.2f} s",
            f"{faster:.2f}" + ("" if met else " MISSED"),
            f"{two['collectives']:.2f} s, {two['collectives'] / two['update']:.1%}",
            f"{two['checkpoint']:.2f} s, {share:.2%} of {BETWEEN_SECONDS} s",
        )
    Console(width=120).print(table)
    scratch.cleanup()
    sys.exit(not fine)


if __name__ == "__main__":
    main()

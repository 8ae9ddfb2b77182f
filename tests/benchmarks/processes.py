"""Two processes against one on the same work, one thread each; and what a checkpoint costs.

    python tests/benchmarks/processes.py --bench BENCH                   # settings a and b of speed.py
    python tests/benchmarks/processes.py --bench BENCH --settings a --strategy deepspeed

The work is that of speed.py. Throughput is responses a second over the updates after the first, from
rlframe's own metrics; every update is followed by a checkpoint, whose time is told apart and compared
with the ten minutes between two that are the default. Three take turns: one process, two halves (two
processes side by side that know nothing of each other, each with half of the prompts), and two that
share the work. Two halves never wait and exchange nothing: how much faster they are than one is the
most that this work and this machine allow, and what two processes take longer than they is rlframe's.
Exit status 1: two processes are less than 1.8 times as fast as one, or checkpoints would take 2 % of
the time. Use an idle machine with two cores.

Measured with ddp on an idle machine, seconds an update (a: two turns of three updates; b and c:
`--settings b c --turns 1 --updates 1`):

         1 process  half of it  2 processes  times  at most
    a         12.98        7.00         7.80   1.66     1.83
    b         27.78       15.96        16.27   1.71     1.80
    c         67.11       35.58        34.51   1.94     1.94

So 1.8 is missed for a and b, where not even processes that know nothing of each other are faster by
more than 0.03, and two that share the work come to 91 and 95 % of those. An hour before, one process
took 60.5 s for c: a figure of one turn is good to a tenth. What limits the halves of setting a: each
forward and backward pass costs as much as 70 to 120 tokens, whatever is in it (fits over the passes of
micro-batches of 128, 1,024 and 2,048), and half of the responses fill three or four passes where all
fill five; decoding half as many rows takes 70 % of the time; two whole runs side by side, each on a
core of its own, were up to a tenth slower than one.

Of setting a's update rank 0 spends 0.5 s (7 %) with the other; before ranks waited for each other once
a step it was 1.0 s, and an update 8.15 s where it is 7.74 s (three turns of either). Tried without a
difference beyond the machine's: gradients summed without a division, shares cut from the responses in
order of length, each rank bound to a core.

A checkpoint took 0.50 s (a), 2.61 s (b) and 2.36 s (c), 0.08 to 0.43 % of the ten minutes between two.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table
from speed import BATCH, PROMPT, SETTINGS, make_work, start, write_recipe

FASTER, CHECKPOINTS_SHARE, BETWEEN_SECONDS = 1.8, 0.02, 600
PHASES = ("rollout", "reward", "experience", "learn")


def train(name, label, work, args, *changes, processes=1):
    """Run the recipe of a setting in a new folder; its figures."""
    out = args.work / f"{name}-{label}"
    every = "checkpoints: {every: 1}\n"
    write_recipe(out, work, name, updates=args.updates + 2, threads=1, more=every)
    words = ["-m", "rlframe", "train", out / "recipe.yaml", "--output", out / "run", *changes]
    start(sys.executable, *words, "--processes", processes, threads=1)
    return figures(out)


def figures(out):
    """Means over the updates after the first: seconds of what there is."""
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "episode" in row][1:]
    names = (*PHASES, "gather", "collectives", "checkpoint")
    found = {x: fmean(row.get(f"time/{x}_seconds", 0.0) for row in rows) for x in names}
    found["update"] = sum(found[phase] for phase in (*PHASES, "gather"))
    return found | {"tokens": fmean(row["response/length_mean"] for row in rows)}


def measure(name, work, args):
    """The figures of one process, of two halves (their mean), and of two that share the work."""
    half = f"rollout.prompts_per_update={BATCH // 2}"
    one = train(name, "one", work, args)
    with ThreadPoolExecutor() as pool:
        halves = pool.map(
            lambda seed: train(name, f"half-{seed}", work, args, half, f"seed={seed}"), range(2)
        )
        halves = mean(list(halves))
    two = train(name, "two", work, args, f"runtime.strategy={args.strategy}", processes=2)
    found = {"one": one, "half": halves, "two": two}
    for label, row in found.items():
        print(name, label, {key: round(value, 3) for key, value in row.items()}, flush=True)
    return found.values()


def mean(rows):
    """Of figures that were measured in turn."""
    return {key: fmean(row[key] for row in rows) for key in rows[0]}


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--bench", type=Path, required=True, help="folder of make_work.py")
    parse.add_argument("--settings", nargs="+", choices=SETTINGS, default=["a", "b"])
    parse.add_argument("--strategy", default="ddp")
    parse.add_argument("--updates", type=int, default=3, help="timed ones")
    parse.add_argument("--turns", type=int, default=2, help="the whole again, as machines vary")
    parse.add_argument("--work", type=Path)
    args = parse.parse_args()
    args.threads, args.bench = 1, args.bench.resolve()
    scratch = tempfile.TemporaryDirectory()
    args.work = args.work or Path(scratch.name)
    names = ("setting", "1 process", "half of it", "2 processes", "times", "at most")
    table = Table(*names, "collectives", "a checkpoint")
    fine = True
    for name in args.settings:
        work = make_work(name, args)
        turns = [measure(name, work, args) for _ in range(args.turns)]
        one, half, two = map(mean, zip(*turns, strict=True))
        faster = one["update"] / two["update"]
        # Other prompts get other responses: halves that read as many tokens as half of the one process.
        as_many = (PROMPT + half["tokens"]) / (PROMPT + one["tokens"])
        limit = one["update"] / half["update"] * as_many
        share = two["checkpoint"] / BETWEEN_SECONDS
        met = faster >= FASTER and share < CHECKPOINTS_SHARE
        fine = fine and met
        table.add_row(
            name,
            *(f"{row['update']:.2f} s" for row in (one, half, two)),
            f"{faster:.2f}" + ("" if met else " MISSED"),
            f"{limit:.2f}",
            f"{two['collectives']:.2f} s, {two['collectives'] / two['update']:.1%}",
            f"{two['checkpoint']:.2f} s, {share:.2%} of {BETWEEN_SECONDS} s",
        )
    Console(width=120).print(table)
    scratch.cleanup()
    sys.exit(not fine)


if __name__ == "__main__":
    main()

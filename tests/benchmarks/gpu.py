#!/usr/bin/env python3
"""PPO in bfloat16 with models of 1.5 billion random weights on a GPU: memory, which may not grow.

    python tests/benchmarks/gpu.py --gpu h200                   # on a machine with one
    python tests/benchmarks/gpu.py --gpu h200 --processes 8     # on eight
    python tests/benchmarks/gpu.py --small --updates 3          # whether this script works, on a CPU

A policy and a critic are trained, plain (ddp), by ZeRO-3, and by ZeRO-3 with the reference on the CPU
while others learn. Prompts are of one length, and random weights hardly ever end a response, so one
update is as large as the other: after the second, nothing may need more than 1 % more memory, or the
exit status is 1. Beside it stands what `rlframe plan` says of such a GPU. The peak is that of torch's
allocator; on a CPU of the process.

No GPU has been at hand yet: it was run as in the third line alone, with `--gpu h200` for the plan.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

from plan import work
from rich.console import Console
from rich.table import Table

GROWTH = 0.01
LARGE = {"hidden": 2048, "intermediate": 5632, "layers": 28, "heads": 16, "vocab": 32000}
SMALL = {"hidden": 64, "intermediate": 172, "layers": 2, "heads": 4, "vocab": 512}
WAYS = {
    "ddp": ["runtime.strategy=ddp"],
    "ZeRO-3": ["runtime.strategy=deepspeed", "runtime.zero_stage=3"],
    "ZeRO-3, reference offloaded": [
        *("runtime.strategy=deepspeed", "runtime.zero_stage=3"),
        "runtime.frozen=offload",
    ],
}
RECIPE = """\
version: 1
data:
  prompts: {{path: {folder}/prompts.jsonl, heldout: 0.1}}
model:
  policy:
    architecture:
      model_type: llama
      hidden_size: {hidden}
      intermediate_size: {intermediate}
      num_hidden_layers: {layers}
      num_attention_heads: {heads}
      max_position_embeddings: 512
      tie_word_embeddings: false
    tokenizer: {folder}/tokenizer
prompts: {{data: prompts}}
rollout: {{prompts_per_update: {rows}, max_new_tokens: 128}}
rewards:
  brevity: {{type: length, target_tokens: 64}}
kl:
  controller: {{type: adaptive, target: 6.0, initial: 0.05}}
ppo: {{updates: {updates}, epochs: 2, learning_rate: 1.0e-6, microbatch_tokens: 4096}}
checkpoints: {{every: 100000}}
evaluation: {{prompts: 1}}
runtime: {{precision: bfloat16}}
"""


def rlframe(*words):
    """The output of a command, which is shown if it fails."""
    command = [sys.executable, "-m", "rlframe", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def measure(way, folder, args):
    """[(peak in MiB so far, seconds, tokens per response)] of each update of one way."""
    out = folder / way.replace(" ", "-")
    words = ["--processes", args.processes, "--output", out, *WAYS[way]]
    rlframe("train", folder / "recipe.yaml", *words)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    phases = [
        f"time/{name}_seconds" for name in ("rollout", "reward", "experience", "learn", "gather")
    ]
    return [
        (
            row["memory/peak_mib"],
            sum(row.get(phase, 0.0) for phase in phases),
            row["response/length_mean"],
        )
        for row in rows
        if "episode" in row
    ]


def planned(way, folder, args):
    """MiB that `rlframe plan` says for a GPU."""
    words = [*WAYS[way], "--gpus", args.processes, "--gpu", args.gpu, "--json"]
    found = json.loads(rlframe("plan", folder / "recipe.yaml", *words))
    (own,) = (row for row in found["strategies"] if row["recipe"])
    return own["peak"] / 2**20


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--gpu", help="as `rlframe plan` calls it; without it nothing is predicted")
    parse.add_argument("--processes", type=int, default=1)
    parse.add_argument("--updates", type=int, default=21)
    parse.add_argument("--small", action="store_true", help="models that a CPU can train")
    args = parse.parse_args()
    if args.updates < 3:
        parse.error("--updates: growth is from the second to the last, so it takes at least 3")
    shape = SMALL if args.small else LARGE
    table = Table(
        "strategy", "peak MiB", "planned", "growth after update 2", "s an update", "tokens"
    )
    fine = True
    with tempfile.TemporaryDirectory(prefix="rlframe-gpu-") as scratch:
        folder = Path(scratch)
        work(folder, shape["vocab"])
        rows = 32 * args.processes
        recipe = RECIPE.format(folder=folder, rows=rows, updates=args.updates, **shape)
        (folder / "recipe.yaml").write_text(recipe)
        plans = {way: f"{planned(way, folder, args):,.0f}" if args.gpu else "" for way in WAYS}
        for way in WAYS:
            peaks, seconds, tokens = zip(*measure(way, folder, args), strict=True)
            growth = peaks[-1] / peaks[1] - 1
            fine = fine and growth <= GROWTH
            table.add_row(
                way,
                f"{peaks[-1]:,.0f}",
                plans[way],
                f"{growth:.2%}" + ("" if growth <= GROWTH else " GROWS"),
                f"{fmean(seconds[1:]):.1f}",
                f"{fmean(tokens):.0f}",
            )
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    Console(width=120).print(f"{args.processes} x {name}, torch {torch.__version__}", table)
    sys.exit(not fine)


if __name__ == "__main__":
    main()

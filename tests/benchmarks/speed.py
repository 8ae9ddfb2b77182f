#!/usr/bin/env python3
"""rlframe and TRL's last PPOTrainer in turn on the same work, one thread, fp32: seconds and memory.

    python tests/benchmarks/speed.py                       # everything; about half an hour of one core
    python tests/benchmarks/speed.py --settings a --updates 1

Run it with the interpreter that has rlframe. TRL runs in an environment of its own, which is made on
first use unless `--trl-python` names one. Each side of each setting is a fresh process; its first
update is left out. README.md beside this file says what is compared and how. Exit status 1: a target
is missed.
"""

# This process imports nothing but the standard library: on Linux a child's peak memory starts at the
# memory of the process that started it, so a parent with torch in it would hide what children need.
from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRL_VERSIONS = ("trl==1.12.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0")
TRL_TORCH = "torch==2.13.0"

BATCH, EPOCHS, PROMPT, PROMPTS = 64, 4, 32, 512
SETTINGS = {
    "a": {"vocab": 4096, "response": 64, "eos_prob": 0.05, "speed": 1.7, "memory": 0.6},
    "b": {"vocab": 50257, "response": 64, "eos_prob": 0.05, "speed": 4.0, "memory": 0.4},
    "c": {"vocab": 50257, "response": 256, "eos_prob": 0.02, "speed": 7.0, "memory": 0.15},
}
"""The work, the least times faster and the most share of TRL's memory growth."""

RECIPE = """\
version: 1
data:
  prompts: {{path: {prompts}, heldout: 0.02}}
model:
  policy: {policy}
  critic: {{initial: {critic}, head: keep}}
prompts: {{data: prompts}}
rollout: {{prompts_per_update: {batch}, max_new_tokens: {response}, temperature: 1.0}}
rewards:
  score: {{type: reward_model, model: {reward}}}
  finished: {{type: eos_penalty, penalty: 1.0}}
kl:
  controller: {{type: fixed, coefficient: 0.05}}
ppo:
  updates: {updates}
  epochs: {epochs}
  minibatches: 1
  microbatch_tokens: 1536
  logits_chunk: 1024
  learning_rate: 1.0e-5
  decay: linear
evaluation: {{prompts: 1}}
runtime: {{device: cpu, threads: {threads}}}
"""


# The two sides, each in a process of its own


class Marks:
    """A display that only looks at the clock; an update ends where `step` is called."""

    def __init__(self):
        self.times, self.figures, self.peak = [], [], None

    def step(self, done, total, figures):
        self.times.append((time.perf_counter(), time.process_time()))
        self.figures.append(dict(figures))
        self.peak = peak_mib()

    def stage(self, name, detail): ...
    def say(self, text): ...
    def show(self, table): ...
    def close(self): ...


def rlframe_side(args):
    """Run the recipe through the same functions, and with the same setting, as `rlframe train`."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # rlframe/cli/running.py says why
    from transformers.utils.logging import disable_progress_bar

    from rlframe.compose import run_recipe
    from rlframe.recipe import load_recipe
    from rlframe.stages.ppo import PPOStage

    disable_progress_bar()
    before, align = [], PPOStage.align

    def align_from_here(self):
        # All models are in memory, nothing has been sampled and no optimiser exists: as close as one
        # comes to peer_trl.py's moment, a finished PPOTrainer before `train()`. What comes later
        # counts as growth, also the first look at the held-out prompt.
        before.append(peak_mib())
        return align(self)

    PPOStage.align = align_from_here
    steps, marks = count_optimizer_steps(), Marks()
    run_recipe(load_recipe(args.recipe, args.set), args.out / "run", marks)
    figures = marks.figures[1:]

    def mean(key):
        return statistics.fmean(f[key] for f in figures)

    (wall0, cpu0), (wall1, cpu1) = marks.times[0], marks.times[-1]
    timed = len(figures)
    phases = [k for k in figures[0] if k.startswith("time/")]
    return {
        "seconds": (wall1 - wall0) / timed,
        "cpu_seconds": (cpu1 - cpu0) / timed,
        "mib_before": before[0],
        "mib_peak": marks.peak,
        "updates": timed + 1,
        "optimizer_steps": steps[0],
        "mean_length": mean("response/length_mean"),
        "ended_share": 1 - mean("response/truncated_share"),
        "phases": {k.removeprefix("time/").removesuffix("_seconds"): mean(k) for k in phases},
    }


def trl_side(args):
    """Run peer_trl.py unchanged; around it, count optimiser steps and the lengths it learns from."""
    import contextlib
    import io
    import runpy

    from trl.experimental.ppo import ppo_trainer

    steps, lengths, ended = count_optimizer_steps(), [], []
    truncate = ppo_trainer.truncate_response

    def truncate_and_count(stop, pad, responses):
        hits = responses == stop
        found = hits.any(1)
        ends = hits.int().argmax(1) + 1
        lengths.append(ends.where(found, responses.shape[1]).double().mean().item())
        ended.append(found.double().mean().item())
        return truncate(stop, pad, responses)

    ppo_trainer.truncate_response = truncate_and_count
    sys.argv = [
        "peer_trl.py",
        *(str(args.work), f"--batch={BATCH}", f"--response={args.response}", f"--epochs={EPOCHS}"),
        *(f"--updates={args.updates}", f"--threads={args.threads}", "--device=cpu"),
        *(["--no-gc"] if args.trl_no_gc else []),
    ]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(str(args.bench / "peer_trl.py"), run_name="__main__")
    line = next(x for x in reversed(said.getvalue().splitlines()) if x.startswith('{"peer"'))
    loaded = json.loads(line)
    return {
        "seconds": loaded["seconds_per_update"],
        "cpu_seconds": loaded["cpu_seconds_per_update"],
        "mib_before": loaded["mib_before_training"],
        "mib_peak": loaded["peak_mib"],
        "updates": loaded["updates"] + 1,
        "optimizer_steps": steps[0],
        "mean_length": statistics.fmean(lengths[1:]),
        "ended_share": statistics.fmean(ended[1:]),
    }


def count_optimizer_steps():
    """A list of one number that grows by one with each step of any torch optimiser."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = [0]

    def count(*_):
        steps[0] += 1

    register_optimizer_step_post_hook(count)
    return steps


def peak_mib():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# The run


def start(python, *words, threads):
    """Run a program with so many threads and wait; its output is shown only if it fails."""
    count = {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    env = {**os.environ, **count, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(python), *map(str, words)], env=env, text=True, capture_output=True, cwd=ROOT
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")


def trl_interpreter():
    """An environment with the pinned TRL, in the user's cache; made on first use."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "rlframe-benchmarks" / TRL_VERSIONS[0].replace("==", "-")
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"making an environment with {TRL_VERSIONS[0]} in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, TRL_TORCH], check=True)
        subprocess.run([*install, *TRL_VERSIONS], check=True)
        ready.touch()
    return python


def make_work(name, args):
    """The models and prompts of a setting, made once in the work directory."""
    setting, out = SETTINGS[name], args.work / f"work-{name}"
    if not (out / "prompts.jsonl").exists():
        start(
            sys.executable,
            args.bench / "make_work.py",
            out,
            *(f"--vocab={setting['vocab']}", f"--prompt={PROMPT}", f"--prompts={PROMPTS}"),
            f"--eos-prob={setting['eos_prob']}",
            threads=args.threads,
        )
    return out


def write_recipe(out, work, name, *, updates, threads, more=""):
    """A new folder `out` with the recipe of a setting in it."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    files = {part: work / part for part in ("policy", "critic", "reward")}
    files["prompts"] = work / "prompts.jsonl"
    recipe = RECIPE.format(
        **{role: json.dumps(str(path)) for role, path in files.items()},
        batch=BATCH,
        epochs=EPOCHS,
        updates=updates,
        response=SETTINGS[name]["response"],
        threads=threads,
    )
    (out / "recipe.yaml").write_text(recipe + more, encoding="utf-8")


def run_side(side, name, work, args):
    """One side of one setting in a fresh process."""
    out = args.work / f"{side}-{name}"
    write_recipe(out, work, name, updates=args.updates + 1, threads=args.threads)
    start(
        sys.executable if side == "rlframe" else args.trl_python,
        Path(__file__).resolve(),
        *(f"--side={side}", f"--out={out}", f"--recipe={out / 'recipe.yaml'}", f"--work={work}"),
        *(f"--bench={args.bench}", f"--updates={args.updates}", f"--threads={args.threads}"),
        f"--response={SETTINGS[name]['response']}",
        *(["--trl-no-gc"] if args.trl_no_gc else []),
        *(f"--set={change}" for change in args.set),
        threads=args.threads,
    )
    result = json.loads((out / "result.json").read_text())
    message = [f"{result['seconds']:.1f} s an update ({result['cpu_seconds']:.1f} s of CPU)"]
    message += [f"{key} {value:.1f}" for key, value in result.get("phases", {}).items()]
    message.append(f"{growth(result):,.0f} MiB")
    print(f"{name} {side}: {', '.join(message)}", flush=True)
    return result


def growth(side):
    """MiB that training needed above what was there when it began."""
    return side["mib_peak"] - side["mib_before"]


def compare(name, ours, theirs, clock):
    """The verdict on a setting: ratios, whether they are met, and whether it was the same work."""
    speed, memory = theirs[clock] / ours[clock], growth(ours) / growth(theirs)
    steps = [side["optimizer_steps"] / side["updates"] for side in (ours, theirs)]
    return {
        "speed": speed,
        "memory": memory,
        "speed_met": speed >= SETTINGS[name]["speed"],
        "memory_met": memory <= SETTINGS[name]["memory"],
        # Each side draws its own responses: some 64 an update, their lengths geometric.
        "same_work": steps[0] == steps[1] == EPOCHS
        and abs(ours["mean_length"] / theirs["mean_length"] - 1) < 0.35,
    }


def table(results, clock):
    """The results as a Markdown table that reads well in a terminal."""
    names = ("setting", "side", "s/update", "CPU s", "MiB growth", "steps", "length", "ended")
    rows = [[*names, "times faster", "share of memory"]]
    for name, result in results.items():
        setting, verdict = SETTINGS[name], result.get("verdict")
        about = f"{name}: V={setting['vocab']:,}, T<={setting['response']}"
        for side in [x for x in ("rlframe", "trl") if x in result]:
            found, judged = result[side], ("", "")
            if verdict and side == "rlframe":
                judged = (
                    f"{verdict['speed']:.2f}x{wish(verdict['speed_met'])} (>= {setting['speed']})",
                    f"{verdict['memory']:.3f}{wish(verdict['memory_met'])} (<= {setting['memory']})",
                )
            elif verdict and not verdict["same_work"]:
                judged = ("NOT THE SAME", "WORK")
            numbers = (
                f"{found['seconds']:.1f}",
                f"{found['cpu_seconds']:.1f}",
                f"{growth(found):,.0f}",
                f"{found['optimizer_steps']} in {found['updates']}",
                f"{found['mean_length']:.1f}",
                f"{found['ended_share']:.0%}",
            )
            rows.append([about, side, *numbers, *judged])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * (width - 1) + ":" for width in widths])
    for row in rows:
        print("| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |")
    which = {"seconds": "wall", "cpu_seconds": "CPU"}[clock]
    print(f"speed: by {which} seconds, the first update of each side left out")


def wish(met):
    return "" if met else " MISSED"


def measure(args):
    """Every setting on both sides, in turn."""
    sides = args.sides.split(",")
    earlier = json.loads(args.trl_from.read_text())["results"] if args.trl_from else {}
    if "trl" in sides and args.trl_from is None:
        args.trl_python = args.trl_python or trl_interpreter()
    results = {}
    for name in args.settings.split(","):
        work, result = make_work(name, args), {}
        for side in sides:
            known = side == "trl" and args.trl_from is not None
            result[side] = earlier[name]["trl"] if known else run_side(side, name, work, args)
        if len(result) == 2:
            result["verdict"] = compare(name, result["rlframe"], result["trl"], args.clock)
        results[name] = result
        if args.json:
            message = {"threads": args.threads, "timed_updates": args.updates, "clock": args.clock}
            args.json.write_text(json.dumps({**message, "results": results}, indent=1) + "\n")
    print()
    table(results, args.clock)
    verdicts = [result["verdict"] for result in results.values() if "verdict" in result]
    return all(v["speed_met"] and v["memory_met"] and v["same_work"] for v in verdicts)


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parse.add_argument
    add(
        "--bench",
        type=Path,
        default=ROOT.parent / "shared" / "bench",
        metavar="DIR",
        help="folder with make_work.py and peer_trl.py; ../shared/bench beside the repository",
    )
    add("--trl-python", type=Path, metavar="PATH", help="an interpreter that has TRL 1.12.0")
    add("--trl-no-gc", action="store_true", help="stub TRL's gc.collect calls")
    add("--trl-from", type=Path, metavar="FILE", help="TRL's numbers from an earlier --json")
    add("--settings", default=",".join(SETTINGS), help="a,b,c or some of them")
    add("--sides", default="rlframe,trl", help="rlframe,trl or one of them")
    add("--updates", type=int, default=2, help="timed updates; one more comes first")
    add("--threads", type=int, default=1)
    add(
        "--clock",
        choices=["seconds", "cpu_seconds"],
        default="seconds",
        help="what the targets are held against; CPU seconds where others use the machine",
    )
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a change to the recipe")
    add("--work", type=Path, metavar="DIR", help="where models and runs lie; temporary if left out")
    add("--json", type=Path, metavar="FILE", help="write the results")
    for name, kind in {"side": str, "out": Path, "recipe": Path, "response": int}.items():
        add(f"--{name}", type=kind, help=argparse.SUPPRESS)  # this file again, in its own process
    args = parse.parse_args()
    args.bench = args.bench.resolve()
    if args.side:
        result = {"rlframe": rlframe_side, "trl": trl_side}[args.side](args)
        (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        return 0
    if not (args.bench / "peer_trl.py").exists():
        parse.error(f"no peer_trl.py in {args.bench}; name its folder with --bench")
    # Only what runs after a chdir needs a whole path; an interpreter's link must not be resolved.
    args.trl_python = args.trl_python and args.trl_python.absolute()
    if args.work:
        args.work = args.work.resolve()
        args.work.mkdir(parents=True, exist_ok=True)
        return 0 if measure(args) else 1
    with tempfile.TemporaryDirectory(prefix="rlframe-speed-") as folder:
        args.work = Path(folder)
        return 0 if measure(args) else 1


if __name__ == "__main__":
    sys.exit(main())

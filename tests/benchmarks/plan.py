#!/usr/bin/env python3
"""What `rlframe plan` predicts beside what runs need: real PPO updates on the CPU, in fp32.

    python tests/benchmarks/plan.py                        # every setting, one process
    python tests/benchmarks/plan.py --settings a,d
    python tests/benchmarks/plan.py --processes 2 --strategy deepspeed --zero-stage 2

README.md beside this file says what is measured. Exit status 1: a prediction of memory is off by more
than 15 %.
"""

# This process imports nothing but the standard library: on Linux a child's peak memory starts at the
# memory of the process that started it.
from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOUND = 0.15
PROMPT, UPDATES = 16, 3

LLAMA = "{{model_type: llama, hidden_size: {h}, intermediate_size: {i}, num_hidden_layers: {n}, "
LLAMA += "num_attention_heads: {a}, num_key_value_heads: {k}, max_position_embeddings: 512}}"
GPT2 = "{{model_type: gpt2, n_embd: {h}, n_layer: {n}, n_head: {a}, n_positions: 512}}"


def llama(h, i, n, a, k):
    return LLAMA.format(h=h, i=i, n=n, a=a, k=k)


def gpt2(h, n, a):
    return GPT2.format(h=h, n=n, a=a)


FEW = {"vocab": 32000, "response": 48}
SETTINGS = {
    "a": {"model": llama(256, 688, 4, 4, 4), "vocab": 1024, "budget": 1024, "response": 48},
    "b": {"model": llama(256, 688, 4, 4, 4), "vocab": 1024, "budget": 4096, "response": 112},
    "c": {"model": llama(256, 688, 4, 4, 4), "vocab": 32000, "budget": 1024, "response": 48},
    "d": {"model": llama(256, 688, 4, 4, 4), "vocab": 32000, "budget": 4096, "response": 112},
    "e": {"model": llama(512, 1376, 8, 8, 2), "vocab": 8192, "budget": 1024, "response": 48},
    "f": {"model": llama(512, 1376, 8, 8, 8), "vocab": 32000, "budget": 2048, "response": 48},
    "g": {"model": gpt2(384, 6, 6), "vocab": 16384, "budget": 1024, "response": 48},
    "h": {"model": gpt2(384, 6, 6), "vocab": 16384, "budget": 4096, "response": 112},
    # Fullest elsewhere: while it samples, and at the head.
    "i": {**FEW, "model": llama(64, 172, 1, 4, 4), "budget": 512, "chunk": 64, "rows": 256},
    "j": {**FEW, "model": llama(128, 344, 2, 4, 4), "budget": 4096, "chunk": 4096},
}
"""Shape of the models, tokens of the vocabulary, of a micro-batch, of a response, of a chunk of logits;
responses of an update, two passes of them if left out."""

RECIPE = """\
version: 1
data:
  prompts: {{path: {prompts}, heldout: 0.1}}
model:
  policy: {{architecture: {model}, tokenizer: {tokenizer}}}
prompts: {{data: prompts}}
rollout: {{prompts_per_update: {rows}, max_new_tokens: {response}}}
rewards:
  brevity: {{type: length, target_tokens: 4}}
kl:
  controller: {{type: fixed, coefficient: 0.05}}
ppo:
  updates: {updates}
  epochs: 1
  microbatch_tokens: {budget}
  logits_chunk: {chunk}
  learning_rate: 1.0e-5
evaluation: {{prompts: 1}}
runtime: {{device: cpu, threads: {threads}}}
"""


# In processes of their own


def work(folder, vocab, seed=0):
    """A tokenizer of so many words and prompts of PROMPT of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    words |= {f"t{i}": i for i in range(len(words), vocab)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    rng = random.Random(seed)
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(256):
            prompt = " ".join(f"t{rng.randrange(3, vocab)}" for _ in range(PROMPT))
            file.write(json.dumps({"prompt": prompt}) + "\n")


def train(args):
    """`rlframe train` in this process, with an eye on its memory."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from rlframe.cli.main import main as rlframe
    from rlframe.models import loading

    seen = {}

    def before_the_first_model(make):
        def made(*values, **options):
            if "before" not in seen:
                seen["before"] = resident("VmRSS")
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            return make(*values, **options)

        return made

    for name in ("new_language_model", "load_language_model"):
        setattr(loading, name, before_the_first_model(getattr(loading, name)))
    clock = []

    def after_a_step(*_):
        # At the last one everything has been there once; what saves the models comes later.
        clock.append(time.process_time())
        seen.update(peak=resident("VmHWM"), clock=clock)

    register_optimizer_step_post_hook(after_a_step)
    sys.argv = ["rlframe", "train", str(args.recipe), "--output", str(args.out / "run"), *args.set]
    try:
        rlframe()
    finally:  # a command ends by leaving the interpreter
        rank = os.environ.get("RANK", "0")
        (args.out / f"memory-{rank}.json").write_text(json.dumps(seen))


def resident(key):
    """MiB of this process in /proc/self/status: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) / 1024


def predict(args):
    """The plan of the same recipe for this machine."""
    import torch

    from rlframe.compose.plan import strategy, workload
    from rlframe.planning.duration import Efficiency, seconds
    from rlframe.planning.gpus import cpu
    from rlframe.planning.memory import memory
    from rlframe.recipe import load_recipe
    from rlframe.registry.discovery import Registry

    torch.set_num_threads(args.threads)
    registry = Registry()
    loaded = load_recipe(args.recipe, args.set, registry=registry)
    update = workload(loaded, registry)
    device = cpu(memory_gib=1024, flops=product_rate(torch), memory_rate=copy_rate(torch))
    asked = strategy(loaded.recipe)
    found = memory(update, asked, device, args.processes)
    # The speeds were measured here, so nothing is taken off them.
    time_ = seconds(update, asked, device, args.processes, Efficiency(1, 1, 1))
    parts = {k: v / 2**20 for k, v in found.moments[found.moment].items()}
    moments = {k: sum(v.values()) / 2**20 for k, v in found.moments.items()}
    result = {
        "policy": update.policy.parameters,
        "peak": (found.peak + found.host) / 2**20,
        "moment": found.moment,
        "parts": parts,
        "moments": moments,
        "seconds": time_.total,
    }
    (args.out / "plan.json").write_text(json.dumps(result))


def product_rate(torch, size=1024, times=4):
    """FLOP/s of a large float32 product."""
    left, right = torch.randn(2, size, size)
    left @ right
    start = time.process_time()
    for _ in range(times):
        left @ right
    return times * 2 * size**3 / (time.process_time() - start)


def copy_rate(torch, numbers=2**26):
    """Bytes/s of reading, as a product with one vector does."""
    matrix, vector = torch.randn(numbers // 4096, 4096), torch.randn(4096)
    matrix @ vector
    start = time.process_time()
    matrix @ vector
    return 4 * numbers / (time.process_time() - start)


# The run


def start(args, *words, processes=1):
    """This file again in a process of its own, or in several under torchrun."""
    count = {k: str(args.threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    env = {**os.environ, **count, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if not args.keep_freed:
        env |= {"MALLOC_MMAP_THRESHOLD_": "65536", "THP_MEM_ALLOC_ENABLE": "0"}
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command = [*launcher, str(Path(__file__).resolve()), *map(str, words)]
    done = subprocess.run(command, env=env, text=True, capture_output=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def compare(name, args, folder):
    """One setting: a run, its plan, and the errors."""
    setting, out = SETTINGS[name], folder / name
    out.mkdir()
    start(args, "--do=work", f"--out={out}", f"--vocab={setting['vocab']}")
    rows = 2 * max(1, setting["budget"] // (PROMPT + setting["response"]))
    (out / "recipe.yaml").write_text(
        RECIPE.format(
            prompts=out / "prompts.jsonl",
            tokenizer=out / "tokenizer",
            rows=args.processes * setting.get("rows", rows),
            chunk=setting.get("chunk", 512),
            updates=UPDATES,
            threads=args.threads,
            **{key: setting[key] for key in ("model", "response", "budget")},
        )
    )
    changes = [f"--set={change}" for change in changed(args)]
    both = [f"--out={out}", f"--recipe={out / 'recipe.yaml'}", f"--threads={args.threads}"]
    start(args, "--do=train", *both, *changes, processes=args.processes)
    start(args, "--do=predict", *both, *changes, f"--processes={args.processes}")
    ranks = [json.loads(path.read_text()) for path in sorted(out.glob("memory-*.json"))]
    clock = ranks[0]["clock"]
    a_step = (clock[-1] - clock[0]) / (len(clock) - 1)
    return {
        **json.loads((out / "plan.json").read_text()),
        "setting": name,
        "measured": max(rank["peak"] - rank["before"] for rank in ranks),
        "cpu_seconds": a_step * len(clock) / UPDATES,
    }


def changed(args):
    """Overrides of the recipe."""
    asked = {"strategy": args.strategy, "zero_stage": args.zero_stage, "offload": args.offload}
    return [f"runtime.{k}={v}" for k, v in asked.items() if v is not None] + args.set


def table(results):
    """Measured beside predicted."""
    rows = [
        ["setting", "policy", "vocabulary", "micro-batch", "MiB measured", "predicted", "error"]
    ]
    rows[0] += ["fullest at", "CPU s measured", "predicted"]
    for found in results:
        setting = SETTINGS[found["setting"]]
        error = found["peak"] / found["measured"] - 1
        kind = re.search(r"model_type: (\w+)", setting["model"])[1]
        rows.append(
            [
                f"{found['setting']}: {kind}",
                f"{found['policy'] / 1e6:.1f} M",
                f"{setting['vocab']:,}",
                f"{setting['budget']:,}",
                f"{found['measured']:,.0f}",
                f"{found['peak']:,.0f}",
                f"{error:+.1%}{'' if abs(error) <= BOUND else ' OFF'}",
                found["moment"],
                f"{found['cpu_seconds']:.1f}",
                f"{found['seconds']:.1f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * (width - 1) + ":" for width in widths])
    for row in rows:
        print("| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |")
    return all(abs(f["peak"] / f["measured"] - 1) <= BOUND for f in results)


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parse.add_argument
    add("--settings", default=",".join(SETTINGS), help="a,b,... or some of them")
    add("--processes", type=int, default=1)
    add("--strategy", choices=["ddp", "deepspeed", "fsdp"])
    add("--zero-stage", type=int, choices=[0, 1, 2, 3])
    add("--offload", choices=["none", "optimizer", "all"])
    add("--threads", type=int, default=1, help="of each process")
    add("--keep-freed", action="store_true", help="leave glibc's allocator as it is")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a change to the recipe")
    add("--json", type=Path, metavar="FILE", help="write the results")
    for name, kind in {"do": str, "out": Path, "recipe": Path, "vocab": int}.items():
        add(f"--{name}", type=kind, help=argparse.SUPPRESS)  # this file again, in its own process
    args = parse.parse_args()
    if args.do:
        {"work": lambda: work(args.out, args.vocab)}.get(
            args.do, lambda: {"train": train, "predict": predict}[args.do](args)
        )()
        return 0
    results = []
    with tempfile.TemporaryDirectory(prefix="rlframe-plan-") as folder:
        for name in args.settings.split(","):
            results.append(compare(name, args, Path(folder)))
            print(json.dumps(results[-1]), flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")
    print()
    return 0 if table(results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Does `rlframe doctor` name what is wrong with a run first? Real runs with a planted pathology.

    python -m tests.benchmarks.doctor                         # three seeds
    python -m tests.benchmarks.doctor --seeds 0 --only healthy "coefficient 0" --keep DIR
    python -m tests.benchmarks.doctor --keep DIR --judge      # judge the runs in DIR, train none

A policy with 2 layers of width 64 is fine-tuned on product reviews once per seed. Each case below
then trains it with PPO for 10 to 20 updates, with a change of the recipe that makes the run
unhealthy, or with a harmless one. The table shows what `doctor` says first, and what else it warns
about. Exit status 1: less than 90 % of the planted pathologies are named first, or a healthy run is
not called healthy.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from rlframe.reports.doctor import diagnose
from rlframe.reports.finding import verdict
from rlframe.reports.reading import read_run

TARGET = 0.9

REVIEWS = {"reviews": {"generator": {"type": "product_reviews", "rows": 3000}, "heldout": 0.1}}

FINE_TUNING: dict[str, Any] = {
    "version": 1,
    "data": REVIEWS,
    "model": {
        "policy": {
            "architecture": {
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 176,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
                "tie_word_embeddings": False,
            },
            "tokenizer": {"data": "reviews", "vocab_size": 400},
        }
    },
    "sft": {"data": "reviews", "epochs": 4, "batch_size": 32, "learning_rate": 5e-3},
    "runtime": {"device": "cpu", "threads": 1},
}

PPO: dict[str, Any] = {
    "version": 1,
    "data": REVIEWS,
    "model": {"policy": "./policy", "critic": {"learning_rate": 1e-3}},
    "prompts": {"data": "reviews", "first_words": 4},
    "rollout": {"prompts_per_update": 32, "max_new_tokens": 32},
    "rewards": {
        "satisfied": {
            "type": "keyword",
            "words": ["love it", "very pleased", "happy with it", "keeping it", "good buy"],
            "at_most": 1,
        },
        "finished": {"type": "eos_penalty", "penalty": 1.0},
    },
    "kl": {"controller": {"type": "adaptive", "target": 6.0, "horizon": 200, "initial": 0.05}},
    "ppo": {"updates": 16, "learning_rate": 3e-4, "microbatch_tokens": 2048},
    "evaluation": {"prompts": 32},
    "runtime": {"device": "cpu", "threads": 1},
}

LOVE = {"type": "keyword", "words": ["love"], "weight": 5.0}

DRIFTING = '''\
"""A sampler that truncates the policy more with each call, as one with settings of its own does."""

from dataclasses import replace

from rlframe.rollout.builtin import Builtin


class Drifting(Builtin):
    calls = 0

    @classmethod
    def capabilities(cls, config):
        return replace(super().capabilities(config), exact=False)

    def sample(self, requests, params, seed):
        self.calls += 1
        top_p = max(0.6, 1 - 0.05 * max(self.calls - 4, 0))  # exact at first, when it is tried
        return super().sample(requests, replace(params, top_p=top_p), seed)
'''


@dataclass(frozen=True)
class Case:
    """A run: the finding that is to come first (None: none above a note), and changes of the recipe."""

    expected: str | None
    changes: dict[str, Any] = field(default_factory=dict)


CASES = {
    "healthy": Case(None),
    "healthy, without critic": Case(
        None,
        {
            "model.critic": None,
            "algorithm": {"advantages": {"type": "rloo"}},
            "rollout.samples_per_prompt": 4,
            "rollout.prompts_per_update": 8,
        },
    ),
    "healthy, KL as a loss": Case(
        None,
        {
            "kl": {
                "controller": {"type": "fixed", "coefficient": 0.1},
                "placement": "loss",
                "estimator": "k3",
            }
        },
    ),
    "coefficient 0": Case(
        "coefficient_zero", {"kl": {"controller": {"type": "fixed", "coefficient": 0.0}}}
    ),
    "learning rate x 100": Case("step_too_large", {"ppo.learning_rate": 3e-2}),
    "constant reward": Case("no_signal", {"rewards": {"any": {"type": "regex", "pattern": "^"}}}),
    "a reward for one word": Case(
        "templated",
        {
            "rewards": {"love": LOVE},
            "ppo.learning_rate": 5e-4,
            "ppo.updates": 20,
            "kl": {"controller": {"type": "fixed", "coefficient": 0.01}},
        },
    ),
    "a critic that cannot learn": Case(
        "critic_explains_nothing", {"model.critic.learning_rate": 1e-9}
    ),
    "EOS is never rewarded": Case(
        "missing_eos",
        {"rewards": {"long": {"type": "length", "target_tokens": 64, "weight": 8.0}}},
    ),
    "evaluation equal to training": Case(
        "evaluation_like_training",
        {"data": {"near": {"path": "near.jsonl", "heldout": 0.1}}, "prompts": {"data": "near"}},
    ),
    "diverging sampler": Case(
        "sampler_diverges", {"rollout.sampler": {"type": "./drifting.py:Drifting"}}
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--keep", type=Path, help="where the runs stay; a temporary folder if left out"
    )
    parser.add_argument(
        "--judge", action="store_true", help="judge the runs in --keep, train nothing"
    )
    given = parser.parse_args()
    print("| case | seed | expected first | first | verdict | wall s |\n" + "|---" * 6 + "|")
    right: list[bool] = []
    healthy: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            place = (given.keep or Path(folder)).resolve() / f"seed{seed}"
            for name in given.only:
                run, start = place / name.replace(" ", "_").replace(",", ""), time.perf_counter()
                if not run.is_dir():
                    if given.judge:
                        continue
                    train(place, run, CASES[name], seed)
                found = diagnose(read_run(run))
                worst = [f.name for f in found if f.level != "note"]
                first, expected = next(iter(worst), None), CASES[name].expected
                (healthy if expected is None else right).append(first == expected)
                mark = "" if first == expected else " *"
                seconds = time.perf_counter() - start
                others = f" ({', '.join(worst[1:])})" if worst[1:] else ""
                print(
                    f"| {name} | {seed} | {expected} | {first}{others}{mark} | {verdict(found)} | "
                    f"{seconds:.0f} |",
                    flush=True,
                )
    print(f"\nnamed first: {sum(right)} of {len(right)}; healthy: {sum(healthy)} of {len(healthy)}")
    sys.exit(sum(right) < TARGET * len(right) or not all(healthy))


def train(place: Path, run: Path, case: Case, seed: int) -> None:
    """Train one case; the policy that all of a seed begin with is trained by the first of them."""
    if not (place / "policy").is_dir():
        place.mkdir(parents=True, exist_ok=True)
        execute(place / "sft.yaml", {**FINE_TUNING, "seed": seed}, place / "sft")
        (place / "policy").symlink_to(place / "sft" / "sft")
        (place / "drifting.py").write_text(DRIFTING)
        rows = [{"prompt": f"the lid of this pan, number {1000 + 7 * n}:"} for n in range(600)]
        (place / "near.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    recipe = copy.deepcopy({**PPO, "seed": seed})
    for path, value in case.changes.items():
        *above, last = path.split(".")
        part = recipe
        for key in above:
            part = part[key]
        part[last] = value
    execute(place / f"{run.name}.yaml", recipe, run)


def execute(path: Path, recipe: dict[str, Any], run: Path) -> None:
    """Run a recipe in this process."""
    from rlframe.compose import run_recipe
    from rlframe.errors import RunError
    from rlframe.recipe import load_recipe
    from rlframe.registry.discovery import Registry
    from rlframe.runs.display import SilentDisplay

    with path.open("w") as file:
        YAML(typ="safe").dump(recipe, file)
    registry = Registry(local_code=True)
    try:
        with chdir(path.parent):  # where the recipe's relative paths begin
            run_recipe(
                load_recipe(path, registry=registry), run, SilentDisplay(), registry=registry
            )
    except RunError as error:  # as where the loss is not finite: doctor is to say why
        print(f"{run.name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()

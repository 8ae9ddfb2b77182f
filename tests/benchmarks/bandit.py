"""Every estimator and loss on a bandit whose best policy is known, KL in the reward and as a loss.

    python -m tests.benchmarks.bandit                       # 46 CPU minutes of one core
    python -m tests.benchmarks.bandit --only rloo --beta 0.2

Eight actions with rewards 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6 and 1 under a uniform reference
(tests/bandit.py). For each run the relative distance of the expected reward and of the KL from those of
the optimal policy, computed from the final policy's distribution, not sampled. Unbiased estimators have
to come within 2 %; biased ones are shown beside them. Exit status 1: one of the unbiased ones did not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from tests.bandit import ESTIMATORS, LOSSES, OPTIMA, learned, optimum

NEAR = 0.02
BIASED: dict[str, dict[str, Any]] = {
    "group_relative / std": {
        "model.critic": None,
        "algorithm.advantages": {"type": "group_relative"},
    },
    "reinforce_plus_plus, whitened": {
        **ESTIMATORS["reinforce_plus_plus"],
        "algorithm.whiten_advantages": True,
    },
    "gae, whitened": {"algorithm.whiten_advantages": True},
}
LONG = {"ppo.updates": 300, "rollout.samples_per_prompt": 256, "ppo.decay": "cosine"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", help="estimators")
    parser.add_argument("--beta", nargs="+", type=float, default=list(OPTIMA))
    given = parser.parse_args()
    print("| estimator | policy loss | KL in the | β | reward | KL | CPU s |\n" + "|---" * 7 + "|")
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, loss, placement, beta in product(
            {**ESTIMATORS, **BIASED}, LOSSES, ("reward", "loss"), given.beta
        ):
            if given.only and name not in given.only:
                continue
            start = time.process_time()
            changes = {
                **LONG,
                **(ESTIMATORS | BIASED)[name],
                **LOSSES[loss],
                "kl.placement": placement,
                "kl.controller.coefficient": beta,
            }
            found, best = learned(Path(folder), changes), optimum(beta)
            away = found.reward / best[0] - 1, found.kl / best[1] - 1
            near = max(map(abs, away)) < NEAR
            missed += name in ESTIMATORS and not near
            mark = "" if near else " *"
            print(
                f"| {name} | {loss} | {placement} | {beta} | {away[0]:+.2%} | {away[1]:+.2%}{mark} | "
                f"{time.process_time() - start:.0f} |",
                flush=True,
            )
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()

"""Runs of a package that has a fourth stage; `test_table.py` starts this and reads what it prints."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import rlframe
from rlframe.errors import RlframeError
from rlframe.recipe import load_recipe
from tests.compose import test_resume as runs

MODELS = ("sft", "reward_model", "dpo", "ppo/policy")


def weights(run: Path) -> list[bytes]:
    return [(run / name / "model.safetensors").read_bytes() for name in MODELS]


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return runs.lasting([json.loads(line) for line in lines])


def stopped(run: Path, stage: str, steps: int, recipe: Path | None = None) -> None:
    """Train, or resume, until somebody presses Ctrl-C."""
    with suppress(KeyboardInterrupt):
        if recipe is None:
            runs.resume(run, display=runs.Ends(stage, steps))
        else:
            runs.train(recipe, run, display=runs.Ends(stage, steps))
        raise AssertionError(f"{run} went to its end")


def damaged(ended: Path, stage: str) -> tuple[Path, runs.Notes]:
    """A copy of a run that was ended in PPO, resumed after one of its results was damaged."""
    run, notes = ended.with_name(f"damaged-{stage}"), runs.Notes()
    shutil.copytree(ended, run)
    torn = run / stage / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    runs.resume(run, display=notes)
    return run, notes


def refusal(recipe: Path, *overrides: str) -> str:
    try:
        load_recipe(recipe, overrides)
    except RlframeError as error:
        return str(error)
    return ""


def main(recipe: Path, folder: Path) -> dict[str, Any]:
    calm, ended = folder / "calm", folder / "ended"
    first, last = runs.Notes(), runs.Notes()
    runs.train(recipe, calm, display=first)
    stopped(ended, "dpo", 2, recipe)
    stopped(ended, "ppo", 2)
    copies = {stage: damaged(ended, stage) for stage in ("sft", "dpo")}
    runs.resume(ended, display=last)
    manifest = json.loads((calm / "manifest.json").read_text())
    return {
        "package": str(Path(rlframe.__file__).parent),
        "said": first.said,
        "said_when_resumed": last.said,
        "finished": manifest["stages"],
        "figures": [row for row in rows(calm) if row["stage"] == "dpo"],
        "checkpoints": sorted(path.name for path in (calm / "checkpoints").iterdir()),
        "trained": weights(calm)[0] != weights(calm)[2],
        "resumed": weights(ended) == weights(calm) and rows(ended) == rows(calm),
        "kl_before_training": next(row for row in rows(calm) if "episode" in row)["objective/kl"],
        "damaged": {
            stage: {"said": notes.said, "same": weights(run) == weights(calm)}
            for stage, (run, notes) in copies.items()
        },
        "as_critic": refusal(recipe, "model.critic.initial=stage:dpo"),
        "as_reference": refusal(recipe, "model.reference=stage:reward_model"),
        "absent": refusal(recipe, "dpo=null"),
        "without_data": refusal(recipe, "dpo.data=nothing"),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))

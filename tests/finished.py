"""Finished runs of a few seconds, for tests of what is done with one afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlframe.compose import run_recipe
from rlframe.recipe import load_recipe
from rlframe.runs.display import SilentDisplay
from tests import foreign
from tests.situations import recipe

SYSTEM = "Be brief."


def plain_run(folder: Path) -> Path:
    """Fine-tuning and PPO on a new model, whose prompts are the first words of reviews."""
    sections: dict[str, Any] = {
        "sft": {"data": "reviews", "batch_size": 16, "learning_rate": 1e-2, "max_tokens": 128},
        "ppo": {"updates": 2, "learning_rate": 2e-3},
        "checkpoints": {"every": 1},
    }
    return _finished(folder, sections)


def chat_run(folder: Path) -> Path:
    """PPO with adapters and a moving average on a published chat model."""
    chats = foreign.rows(folder / "chats.jsonl", foreign.chats(40))
    sections: dict[str, Any] = {
        "data": {"chats": {"path": str(chats), "heldout": 0.2}},
        "model": {"policy": str(foreign.saved(folder / "start", "llama3")), "lora": {"rank": 4}},
        "prompts": {"data": "chats", "system": SYSTEM},
        "rollout": {
            "prompts_per_update": 8,
            "max_new_tokens": 8,
            "temperature": 0.9,
            "top_k": 40,
            "top_p": 0.95,
        },
        "ppo": {"updates": 2, "learning_rate": 3e-2, "ema": 0.5},
    }
    return _finished(folder, sections)


def _finished(folder: Path, sections: dict[str, Any]) -> Path:
    loaded = load_recipe(Path(recipe(folder, **sections)))
    return run_recipe(loaded, folder / "run", SilentDisplay()).directory

"""Going on with a run: what may have changed since, what may if that is meant, what may not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from rlframe.errors import PluginError, RecipeError, SetupError
from rlframe.runs.directory import read_manifest

SAFE = (
    "runtime.device",
    "runtime.threads",
    "runtime.strategy",
    "runtime.zero_stage",
    "runtime.offload",
    "runtime.frozen",
    "runtime.deepspeed_config",
    "checkpoints",
    "evaluation.every",
    "evaluation.table_rows",
    "ppo.microbatch_tokens",
    "ppo.logits_chunk",
    "rollout.generation_batch",
    "requires",
)
"""Keys that change no number beyond rounding."""

FIXED = ("version", "seed", "data", "model", "prompts", "sft", "reward_model")
"""Keys that what is there already was made with."""


@dataclass(frozen=True)
class Change:
    """A key of the recipe that is no longer what the run began with."""

    key: str
    before: Any
    now: Any

    @property
    def allowed(self) -> str:
        """safe, needs --force, or refused."""
        if _within(self.key, SAFE):
            return "safe"
        return "refused" if _within(self.key, FIXED) else "needs --force"

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.now)} ({self.allowed})"


@dataclass(frozen=True)
class Allowance:
    """How far a run may differ from what it began as.

    Args:
      force: let keys change that make it another experiment.
      plugins: let versions and sources of plugins change.
    """

    force: bool = False
    plugins: bool = False

    def check(
        self, directory: Path, resolved: Mapping[str, Any], plugins: Mapping[str, Any]
    ) -> list[str]:
        """Compare a recipe with the run that it is to go on with.

        Args:
          directory: of the run.
          resolved: the recipe as it is now, with every default.
          plugins: recipe path -> fingerprint, as installed now.

        Returns:
          What has changed, a line each.

        Raises:
          RecipeError: a key has changed that may not, or not without --force.
          PluginError: a plugin has changed, and that is not allowed.
        """
        changes = list(changed(_resolved(directory), resolved))
        told = [str(change) for change in changes]
        refused = [c for c in changes if c.allowed == "refused"]
        if refused or (not self.force and any(c.allowed != "safe" for c in changes)):
            advice = (
                "Begin a new run for what is refused."
                if refused
                else "Add --force if that is meant, or begin a new run."
            )
            lines = "\n  ".join(told)
            raise RecipeError(f"{directory} was begun with another recipe:\n  {lines}\n{advice}")
        others = list(_changed_plugins(read_manifest(directory)["plugins"], plugins))
        if others and not self.plugins:
            lines = "\n  ".join(others)
            raise PluginError(
                f"{directory} was begun with other plugins:\n  {lines}\nInstall what it had, or add "
                "--allow-changed-plugins if the change is meant."
            )
        return told + others


def begun(directory: Path) -> Path:
    """The recipe that a run began with, every default filled in.

    Raises:
      SetupError: there is no run to go on with, or it is finished.
    """
    manifest = read_manifest(directory)
    if manifest["status"] == "finished":
        raise SetupError(f"{directory} is finished: there is nothing to go on with")
    return directory / "recipe.resolved.yaml"


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    """Every leaf that differs between two resolved recipes; a missing one is None."""
    old, new = dict(_leaves(before, ())), dict(_leaves(now, ()))
    for path in [*old, *(path for path in new if path not in old)]:
        if old.get(path) != new.get(path):
            yield Change(".".join(path), old.get(path), new.get(path))


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, node


def _within(key: str, roots: tuple[str, ...]) -> bool:
    return any(key == root or key.startswith(f"{root}.") for root in roots)


def _resolved(directory: Path) -> dict[str, Any]:
    text = (directory / "recipe.resolved.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = YAML(typ="safe").load(text)
    return found


def _changed_plugins(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for path, used in now.items():
        known = before.get(path)
        if known is None:
            continue  # the recipe names something new, which is its own affair
        for what in ("distribution", "version", "target", "sha256"):
            if known[what] != used[what]:
                yield f"{path} ({used['name']}): {what} was {known[what]}, is {used[what]}"


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)

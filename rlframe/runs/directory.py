"""The run directory: everything needed to know what was run, and what came out.

manifest.json           status, versions, plugins, digest of the recipe, command line
recipe.source.yaml      the recipe as it was written
recipe.resolved.yaml    every default filled in; runs again to the same digest
metrics.jsonl           one object an update (and one for each supervised stage)
samples/                held-out prompts with responses, one JSONL file an evaluation
sft/ reward_model/      the stages' models
ppo/policy ppo/critic   the result of PPO, safetensors that transformers loads
ppo/checkpoints/        the same, by update, with the engine's state as JSON
"""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import rlframe
from rlframe.errors import SetupError

_LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "tokenizers",
    "pydantic",
    "pluggy",
)


class RunDirectory:
    """A new, empty directory and the files in it.

    Args:
      path: created; must not hold a run already.

    Raises:
      SetupError: the directory holds files, or can not be written.
    """

    def __init__(self, path: Path) -> None:
        refuse_used(path)
        try:
            (path / "samples").mkdir(parents=True)
        except OSError as error:
            raise SetupError(f"{path}: can not be created: {error}") from error
        self.path = path
        self._manifest: dict[str, Any] = {}

    def begin(
        self, *, source: str, resolved: Mapping[str, Any], digest: str, plugins: Mapping[str, Any]
    ) -> None:
        """Write the recipe and a manifest that says "running".

        Args:
          source: the recipe as it was written.
          resolved: the recipe with every default.
          digest: of the resolved recipe.
          plugins: recipe path of each component -> its fingerprint: distribution, version, target,
            sha256 of its source file, config.
        """
        (self.path / "recipe.source.yaml").write_text(source, encoding="utf-8")
        yaml = YAML()
        yaml.default_flow_style = False
        with (self.path / "recipe.resolved.yaml").open("w", encoding="utf-8") as file:
            yaml.dump(dict(resolved), file)
        self._manifest = {
            "status": "running",
            "rlframe": rlframe.__version__,
            "digest": digest,
            "argv": sys.argv,
            "started": _now(),
            "python": platform.python_version(),
            "libraries": {name: _version(name) for name in _LIBRARIES},
            "plugins": dict(plugins),
        }
        self._write_manifest()

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        self._manifest.update(facts)
        self._write_manifest()

    def end(self, status: str, **facts: Any) -> None:
        """Close the manifest: "finished", "failed" or "interrupted"."""
        self.note(status=status, ended=_now(), **facts)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl; a number that is not finite becomes null, as JSON wants."""
        self._append("metrics.jsonl", [row])

    def samples(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the responses of one evaluation."""
        self._append(f"samples/{name}.jsonl", rows)

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(_finite(row), ensure_ascii=False) + "\n")

    def _write_manifest(self) -> None:
        text = json.dumps(_finite(self._manifest), indent=2, ensure_ascii=False)
        temporary = self.path / "manifest.json.new"
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self.path / "manifest.json")


def refuse_used(path: Path) -> None:
    """Make sure that a run directory is new.

    Raises:
      SetupError: there is something already.
    """
    if path.is_dir() and any(path.iterdir()):
        raise SetupError(
            f"{path} is not empty, and runs never share a directory: choose another --output"
        )


def default_directory(recipe: Path) -> Path:
    """runs/<recipe>-<time>: a new name for each run."""
    return Path("runs") / f"{recipe.stem}-{datetime.now():%Y%m%d-%H%M%S}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

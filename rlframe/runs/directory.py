"""The run directory: everything needed to know what was run, and what came out.

manifest.json           status, versions, plugins, digest of the recipe, command line
recipe.source.yaml      the recipe as it was written
recipe.resolved.yaml    every default filled in; runs again to the same digest
metrics.jsonl           one object an update (and one for each supervised stage)
samples/                held-out prompts with responses, one JSONL file an evaluation
sft/ reward_model/      the stages' models
ppo/policy ppo/critic   the result of PPO, safetensors that transformers loads
checkpoints/STAGE/      what a killed run goes on from, by update or step
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import rlframe
from rlframe.errors import RunError, SetupError
from rlframe.text import lines

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
      path: created; must not hold a run already, unless it is gone on with.
      main: whether this process writes; of several processes one does, and the others write nothing.
      resume: go on with the run that is there.

    Raises:
      SetupError: the directory holds files, or no run to go on with, or can not be written.
    """

    def __init__(self, path: Path, *, main: bool = True, resume: bool = False) -> None:
        self.path = path
        self.main = main
        self._manifest: dict[str, Any] = read_manifest(path) if resume else {}
        if not main or resume:
            return
        refuse_used(path)
        try:
            (path / "samples").mkdir(parents=True)
        except OSError as error:
            raise SetupError(f"{path}: can not be created: {error}") from error

    def begin(
        self,
        *,
        source: str,
        resolved: Mapping[str, Any],
        digest: str,
        plugins: Mapping[str, Any],
        **facts: Any,
    ) -> None:
        """Write the recipe and a manifest that says "running".

        Args:
          source: the recipe as it was written.
          resolved: the recipe with every default.
          digest: of the resolved recipe.
          plugins: recipe path of each component -> its fingerprint: distribution, version, target,
            sha256 of its source file, config.
          facts: anything else that the manifest is to keep.
        """
        history = self._manifest.get("resumed", [])
        if self._manifest:
            history = [*history, {"at": _now(), "argv": sys.argv, "was": self._manifest["status"]}]
        self._manifest |= {
            "status": "running",
            "rlframe": rlframe.__version__,
            "digest": digest,
            "argv": self._manifest.get("argv", sys.argv),
            "started": self._manifest.get("started", _now()),
            "resumed": history,
            "python": platform.python_version(),
            "libraries": {name: _version(name) for name in _LIBRARIES},
            "plugins": dict(plugins),
            **facts,
        }
        if self.main:
            text = io.StringIO()
            yaml = YAML()
            yaml.default_flow_style = False
            yaml.dump(dict(resolved), text)
            if not (self.path / "recipe.source.yaml").exists():
                _replace(self.path / "recipe.source.yaml", source)
            _replace(self.path / "recipe.resolved.yaml", text.getvalue())
            self._write_manifest()

    def finished(self, stage: str) -> dict[str, float] | None:
        """The figures of a stage whose result is there, or None."""
        found: dict[str, float] | None = self._manifest.get("stages", {}).get(stage)
        return found

    def finish(self, stage: str, figures: Mapping[str, float]) -> None:
        """Note that the result of a stage is on the disk."""
        self.note(stages=self._manifest.get("stages", {}) | {stage: dict(figures)})

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        self._manifest.update(facts)
        if self.main:
            self._write_manifest()

    def end(self, status: str, **facts: Any) -> None:
        """Close the manifest: "finished", "failed" or "interrupted"."""
        self.note(status=status, ended=_now(), **facts)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl; a number that is not finite becomes null, as JSON wants."""
        self._write("metrics.jsonl", [row], mode="a")

    def samples(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the responses of one evaluation."""
        self._write(f"samples/{name}.jsonl", rows, mode="w")

    def read_samples(self, name: str) -> list[dict[str, Any]]:
        """What `samples` wrote."""
        text = (self.path / "samples" / f"{name}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in lines(text)]

    def forget_after(self, updates: int) -> None:
        """Drop the metrics of PPO updates beyond these, and a line that a killed process left torn."""
        path = self.path / "metrics.jsonl"
        if not self.main or not path.exists():
            return
        kept = []
        for line in lines(path.read_text(encoding="utf-8"), keep_ends=True):
            row = json.loads(line) if line.endswith("\n") else None
            of_update = row is not None and row["stage"] == "ppo"
            if row is not None and not (
                of_update and (row["update"] > updates or "episode" not in row)
            ):
                kept.append(line)
        _replace(path, "".join(kept))

    def sync(self) -> None:
        """Make sure that the metrics so far are on the disk."""
        path = self.path / "metrics.jsonl"
        if self.main and path.exists():
            with path.open("a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def _write(self, name: str, rows: Iterable[Mapping[str, Any]], *, mode: str) -> None:
        if not self.main:
            return
        try:
            with (self.path / name).open(mode, encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(_finite(row), ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.path / name}: can not be written: {error.strerror}. Checkpoints are as they "
                f"were: mend that, then go on with: rlframe resume {self.path}"
            ) from error

    def _write_manifest(self) -> None:
        text = json.dumps(_finite(self._manifest), indent=2, ensure_ascii=False)
        _replace(self.path / "manifest.json", text + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file anew: whoever reads it, or pulls the plug, finds the old text or the new."""
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """What the manifest of a run says.

    Raises:
      SetupError: there is no run.
    """
    try:
        found: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} holds no run to go on with: {error}") from error
    return found


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

"""The run directory: everything needed to know what was run, and what came out.

manifest.json           format, run id, status, versions, plugins, fingerprints of data and models
recipe.source.yaml      the recipe as it was written
recipe.resolved.yaml    every default filled in; runs again to the same digest
metrics.jsonl           one object an update (and one for each supervised stage)
samples/                held-out prompts with responses, one JSONL file an evaluation
STAGE/                  the model that a supervised stage leaves
ppo/policy ppo/critic   the result of PPO, safetensors that transformers loads
checkpoints/STAGE/      what a killed run resumes from, by update or step

What a stage leaves is on the disk before the manifest says so.
"""

from __future__ import annotations

import hashlib
import io
import platform
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import rlframe
from rlframe.errors import RunError, SetupError
from rlframe.redaction import redacted_tree
from rlframe.runs.durable import make_directory, replace_text
from rlframe.runs.manifest import FORMAT, write_manifest
from rlframe.runs.records import MetricsFile, jsonl, of_jsonl, update_of
from rlframe.runs.sealed import SealedDirectories, checksum

RESOLVED = "recipe.resolved.yaml"

LIBRARIES = (
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
      path: created; must not hold a run already, unless it is resumed.
      main: whether this process writes; of several processes one does, and the others write nothing.
      manifest: of the run that is there and is resumed; None for a new run.

    Raises:
      SetupError: the directory holds files, or cannot be written.
    """

    def __init__(
        self, path: Path, *, main: bool = True, manifest: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.main = main
        self._manifest: dict[str, Any] = dict(manifest or {})
        self._metrics = MetricsFile(path / "metrics.jsonl")
        self._results = SealedDirectories(path, noun="result")
        if not main or manifest is not None:
            return
        refuse_used(path)
        try:
            make_directory(path / "samples")
        except OSError as error:
            raise SetupError(f"{path}: cannot be created: {error}") from error

    def begin(
        self,
        *,
        source: str,
        resolved: Mapping[str, Any],
        digest: str,
        plugins: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
        **facts: Any,
    ) -> str | None:
        """Write the recipe and a manifest that says "running".

        Args:
          source: the recipe as it was written.
          resolved: the recipe with every default.
          digest: of the resolved recipe.
          plugins: recipe path of each component -> its fingerprint: distribution, version, target,
            sha256 of its source file, config.
          inputs: name -> fingerprint of each data set and model that the run reads.
          facts: anything else that the manifest is to keep.

        Returns:
          What had to be repaired in the files of a run that is resumed.
        """
        before, text = dict(self._manifest), as_yaml(resolved)
        self._manifest |= {
            "format": FORMAT,
            "run": before.get("run", uuid.uuid4().hex),
            "status": "running",
            "rlframe": rlframe.__version__,
            "digest": digest,
            "argv": before.get("argv", redacted_tree(sys.argv)),
            "started": before.get("started", _now()),
            "resumed": _history(before),
            "python": platform.python_version(),
            "libraries": {name: installed_version(name) for name in LIBRARIES},
            "plugins": dict(plugins),
            "inputs": dict(inputs or {}),
            "former": _former(before, inputs or {}, digest),
            "recipe": dict(resolved),
            "resolved_sha256": [sha256_of(text), *before.get("resolved_sha256", [])[:1]],
            **facts,
        }
        if not self.main:
            return None
        with self._writing(self.path):
            if before:  # first: until the recipe is replaced, the manifest knows the old one too
                write_manifest(self.path, self._manifest)
                replace_text(self.path / RESOLVED, text)
                self._results.tidy()
                return self._metrics.repair()
            replace_text(self.path / "recipe.source.yaml", source)
            replace_text(self.path / RESOLVED, text)
            write_manifest(self.path, self._manifest)
        return None

    # What belongs to the run

    def origin(self, stage: str) -> dict[str, Any]:
        """What each checkpoint, and the result, of a stage says it came from."""
        inputs = self._manifest.get("inputs", {})
        return {
            "stage": stage,
            "run": self._manifest["run"],
            "recipe": self._manifest["digest"],
            "inputs": {name: checksum(inputs[name]) for name in sorted(inputs)},
        }

    def finished(self, stage: str) -> dict[str, float] | None:
        """The figures of a stage whose result is there, or None."""
        found: dict[str, float] | None = self._manifest.get("stages", {}).get(stage)
        return found

    def finish(self, stage: str, figures: Mapping[str, float]) -> None:
        """Note that the result of a stage is on the disk."""
        self.sync()
        self.note(stages=self._manifest.get("stages", {}) | {stage: dict(figures)})

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        self._manifest.update(redacted_tree(facts))
        if self.main:
            with self._writing(self.path / "manifest.json"):
                write_manifest(self.path, self._manifest)

    def end(self, status: str, **facts: Any) -> None:
        """Close the manifest: "finished", "stopped_early", "failed" or "interrupted"."""
        self.sync()
        self.note(status=status, ended=_now(), **facts)

    # Results

    def write_result(self, stage: str, fill: Callable[[Path], None], *, number: int = 0) -> None:
        """Write the model of a stage, which is there as a whole or not at all.

        Args:
          stage: also the name of its directory.
          fill: writes files into an empty directory.
          number: updates that it took, for PPO.

        Raises:
          RunError: the disk is full.
        """
        if self.main:
            facts = {"number": number, **self.origin(stage)}
            self._results.write(stage, fill, facts, intact=lambda: self._intact(stage))

    def has_result(self, stage: str) -> bool:
        """Whether a stage has left a result, sound or not."""
        return (self.path / stage).is_dir()

    def result(self, stage: str) -> dict[str, Any]:
        """What the result of a stage says of itself, after reading every byte.

        Raises:
          RunError: it is missing or damaged.
        """
        return self._results.verified(stage)

    def _intact(self, stage: str) -> str:
        kept = sorted((self.path / "checkpoints" / stage).glob("[0-9]*"))
        return (
            f"Checkpoints and earlier results are unchanged{f': {kept[-1]}' if kept else ''}. Free "
            f"some space, then resume with: rlframe resume {self.path}"
        )

    # Metrics and samples

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl; a number that is not finite becomes null, as JSON wants."""
        if self.main:
            with self._writing(self.path / "metrics.jsonl"):
                self._metrics.append(redacted_tree(row))

    def samples(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the responses of one evaluation; what a resumed run reads has its checksum noted."""
        text = jsonl(rows)
        if self.main:
            path = self.path / "samples" / f"{name}.jsonl"
            with self._writing(path):
                make_directory(path.parent)
                replace_text(path, text)
        if name == "before":
            self.note(samples={name: sha256_of(text)})

    def read_samples(self, name: str) -> list[dict[str, Any]] | None:
        """What `samples` wrote; None if that is not what is there."""
        try:
            text = (self.path / "samples" / f"{name}.jsonl").read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            return None
        known = self._manifest.get("samples", {}).get(name)
        return of_jsonl(text) if known == sha256_of(text) else None

    def forget(self, stage: str) -> None:
        """Drop the metrics of a stage that is run, or run again."""
        if self.main:
            with self._writing(self.path / "metrics.jsonl"):
                self._metrics.keep(lambda row: row["stage"] != stage)

    def forget_after(self, updates: int) -> str | None:
        """Drop the metrics of PPO updates beyond these.

        Returns:
          Which of the others are missing, if any are.
        """
        if not self.main:
            return None
        with self._writing(self.path / "metrics.jsonl"):
            self._metrics.keep(
                lambda row: row["stage"] != "ppo" or 0 < (update_of(row) or 0) <= updates
            )
        missing = sorted({*range(1, updates + 1)} - {*self._metrics.updates()})
        if not missing:
            return None
        return (
            f"{self.path / 'metrics.jsonl'} lacks {len(missing)} of {updates} updates, the first of "
            f"them {missing[0]}: somebody or something has removed lines"
        )

    def sync(self) -> None:
        """Make sure that the metrics so far are on the disk."""
        if self.main:
            with self._writing(self.path / "metrics.jsonl"):
                self._metrics.sync()

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written: {error.strerror or error}. Checkpoints and results are "
                f"unchanged: fix that, then resume with: rlframe resume {self.path}"
            ) from error


def as_yaml(resolved: Mapping[str, Any]) -> str:
    """A resolved recipe as it stands in a run directory."""
    text, yaml = io.StringIO(), YAML()
    yaml.default_flow_style = False
    yaml.dump(dict(resolved), text)
    return text.getvalue()


def sha256_of(text: str) -> str:
    """Hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_used(path: Path) -> None:
    """Make sure that a run directory is new.

    Raises:
      SetupError: there is something already.
    """
    try:
        used = path.is_dir() and any(path.iterdir())
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from error
    if used:
        raise SetupError(
            f"{path} is not empty, and runs never share a directory: choose another --output"
        )


def default_directory(recipe: Path) -> Path:
    """runs/<recipe>-<time>: a new name for each run."""
    return Path("runs") / f"{recipe.stem}-{datetime.now():%Y%m%d-%H%M%S}"


def _history(before: Mapping[str, Any]) -> list[Any]:
    """How often a run was resumed, from what, and by which command."""
    if not before:
        return []
    return [
        *before["resumed"],
        {"at": _now(), "argv": redacted_tree(sys.argv), "was": before["status"]},
    ]


def _former(
    before: Mapping[str, Any], inputs: Mapping[str, Any], digest: str
) -> dict[str, list[str]]:
    """What earlier checkpoints of a run may say of its recipe and inputs, which have changed since."""
    former: dict[str, list[str]] = {
        name: [*known] for name, known in before.get("former", {}).items()
    }
    old = {name: checksum(found) for name, found in before.get("inputs", {}).items()}
    new = {name: checksum(found) for name, found in inputs.items()} | {"recipe": digest}
    for name, known in (old | {"recipe": before.get("digest", digest)}).items():
        if new.get(name) != known and known not in former.setdefault(name, []):
            former[name].append(known)
    return {name: known for name, known in former.items() if known}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def installed_version(name: str) -> str | None:
    """Of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None

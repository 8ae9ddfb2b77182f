"""Resuming a run: what may have changed since, what may if that is meant, what may not.

A resumed run is the run that began only if its recipe, plugins, data and models are. Recipes are
compared key by key, everything else by its content: a data set or model that lies elsewhere now is the
same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

import rlframe
from rlframe.errors import PluginError, RecipeError, RunError, SetupError, did_you_mean, listed
from rlframe.runs.directory import LIBRARIES, RESOLVED, installed_version, sha256_of
from rlframe.runs.fingerprints import difference
from rlframe.runs.manifest import NAME as MANIFEST
from rlframe.runs.manifest import read_manifest
from rlframe.runs.sealed import SealedDirectories, checksum
from rlframe.runs.store import CheckpointStore
from rlframe.stage_table import STAGES

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

FIXED = (
    *("version", "seed", "data", "model", "prompts"),
    *(stage.name for stage in STAGES if stage.result is not None),
)
"""Keys that what is there already was made with."""

CHECKPOINTS = "checkpoints"
"""The name by which checkpoints and results of another run are allowed."""


@dataclass(frozen=True)
class Change:
    """Something that is no longer what the run began with.

    Args:
      name: a key of the recipe, or what it stands for; by this name it can be allowed.
      what: "before -> now", or a sentence.
      allowed: safe, allowed, needs --force, or refused.
    """

    name: str
    what: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what} ({self.allowed})"


@dataclass(frozen=True)
class Allowance:
    """How far a run may differ from what it began as.

    Args:
      force: let keys change that make it another experiment.
      plugins: let versions and sources of plugins change.
      names: of data sets, models and other things whose content may have changed.
    """

    force: bool = False
    plugins: bool = False
    names: frozenset[str] = frozenset()

    def read(self, directory: Path) -> dict[str, Any]:
        """The manifest of the run.

        Raises:
          SetupError: there is none that can be resumed.
        """
        return read_manifest(directory, edited=MANIFEST in self.names)

    def begun(self, directory: Path, overrides: Sequence[str] = ()) -> Path:
        """The recipe that a run began with, every default filled in.

        Args:
          directory: of the run.
          overrides: changes to it; without any, a finished run has nothing left to do.

        Raises:
          SetupError: there is no run to resume, or it is finished and its results are sound.
        """
        manifest = self.read(directory)
        done = manifest["status"] == "finished" and not overrides
        if done and not damaged_results(directory, manifest):
            raise SetupError(_nothing_to_do(directory, manifest))
        return directory / RESOLVED

    def misspelt(self, directory: Path) -> str | None:
        """What is wrong with the names: one that means nothing in this run would allow nothing."""
        known = {MANIFEST, RESOLVED, CHECKPOINTS, *self.read(directory).get("inputs", {})}
        for name in sorted(self.names - known):
            guess = did_you_mean(name, known)
            return f"{name!r} is nothing that {directory} was made from.{guess} That is {listed(known)}"
        return None

    def check(
        self,
        directory: Path,
        resolved: Mapping[str, Any],
        plugins: Mapping[str, Any],
        inputs: Mapping[str, Any],
    ) -> list[str]:
        """Compare what is to run now with the run that it is to continue.

        Args:
          directory: of the run.
          resolved: the recipe as it is now, with every default.
          plugins: recipe path -> fingerprint, as installed now.
          inputs: name -> fingerprint of data, models and variables, as they are now.

        Returns:
          What has changed, a line each.

        Raises:
          SetupError: the run is finished, and there is nothing more to do.
          RecipeError: a key, data or a model has changed that may not, or not without being allowed.
          PluginError: a plugin has changed, and that is not allowed.
        """
        manifest = self.read(directory)
        changes = [
            *self._edited(directory, manifest),
            *self._changed_keys(_baseline(directory, manifest), resolved, manifest, inputs),
            *self._changed_inputs(manifest, resolved, inputs),
            *self._foreign(directory, manifest),
        ]
        more = _more_updates(manifest, resolved)
        if manifest["status"] == "finished":
            if more is None and not damaged_results(directory, manifest):
                raise SetupError(_nothing_to_do(directory, manifest))
            changes = [_extended(change) for change in changes]
        self._refuse(directory, changes)
        others = list(_changed_plugins(manifest["plugins"], plugins))
        if others and not self.plugins:
            lines = "\n  ".join(others)
            raise PluginError(
                f"{directory} was begun with other plugins:\n  {lines}\nInstall what it had, or add "
                "--allow-changed-plugins if the change is meant."
            )
        return [*map(str, changes), *others, *_other_versions(manifest), *([more] if more else [])]

    def _refuse(self, directory: Path, changes: list[Change]) -> None:
        refused = [c for c in changes if c.allowed.startswith("refused")]
        forced = [c for c in changes if c.allowed == "needs --force"]
        if not refused and (self.force or not forced):
            return
        lines = "\n  ".join(map(str, changes))
        names = [c.name for c in refused if "--allow-changed" in c.allowed]
        by_name = " ".join(f"--allow-changed {name}" for name in dict.fromkeys(names))
        advice = []
        if any(c.allowed == "refused" for c in refused):
            advice.append("Begin a new run for what is refused.")
        if names:
            advice.append(f"Put back what it had, or add {by_name} if the change is meant.")
        if forced:
            advice.append("Add --force if that is meant, or begin a new run.")
        raise RecipeError(
            f"{directory} was begun with something else:\n  {lines}\n{' '.join(advice)}"
        )

    def _by_name(self, name: str) -> str:
        return "allowed" if name in self.names else f"refused without --allow-changed {name}"

    def _edited(self, directory: Path, manifest: Mapping[str, Any]) -> Iterator[Change]:
        """Keys that somebody has changed in the resolved recipe of the run."""
        if _as_written(directory, manifest):
            return
        edits = changed(manifest["recipe"], _resolved(directory))
        changes = ", ".join(f"{key} {_shown(old)} -> {_shown(new)}" for key, old, new in edits)
        if changes:
            what = f"somebody has edited it: {changes}"
            yield Change(RESOLVED, what, self._by_name(RESOLVED))

    def _changed_keys(
        self,
        before: Mapping[str, Any],
        now: Mapping[str, Any],
        manifest: Mapping[str, Any],
        inputs: Mapping[str, Any],
    ) -> Iterator[Change]:
        """Keys of the recipe; those that lead to the same content as before are safe."""
        known = manifest.get("inputs", {})
        for key, old, new in changed(before, now):
            name = next((n for n in {**known, **inputs} if _within(key, (n,))), "")
            if _within(key, SAFE):
                allowed = "safe"
            elif name in known and known[name] == inputs.get(name):
                allowed = "safe: the same content"
            elif name in known and name in inputs and "value" not in known[name]:
                allowed = self._by_name(name)
            else:
                allowed = "refused" if _within(key, FIXED) else "needs --force"
            yield Change(key, f"{_shown(old)} -> {_shown(new)}", allowed)

    def _changed_inputs(
        self, manifest: Mapping[str, Any], now: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> Iterator[Change]:
        """Data, models and variables whose content is another, whatever the recipe says."""
        for name, before in manifest.get("inputs", {}).items():
            found = inputs.get(name)
            if found == before or (found is None and "value" in before):
                continue  # the same, or a key that no variable fills any more: that is a changed key
            what = "it is gone" if found is None else difference(before, found)
            if _within(name, SAFE):
                allowed = "safe"
            elif _of_component(name, before):
                allowed = "a component reads it"
            elif found is None and not _is_there(now, name):
                continue  # the key is gone, which is reported as such
            else:
                allowed = self._by_name(name)
            yield Change(name, what, allowed)

    def _foreign(self, directory: Path, manifest: Mapping[str, Any]) -> Iterator[Change]:
        """Checkpoints and results that another run left, or this one from other data."""
        for stage, path, record in _records(directory):
            why = _not_ours(record, stage, manifest)
            if why is not None:
                yield Change(CHECKPOINTS, f"{path} {why}", self._by_name(CHECKPOINTS))


def damaged_results(directory: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Stage -> what is wrong with its result, of those that the manifest calls finished."""
    found = {}
    done = [*manifest.get("stages", {})]
    if manifest["status"] in ("finished", "stopped_early"):
        recipe = manifest["recipe"]
        done += [line.name for line in STAGES if line.result is None and recipe.get(line.name)]
    for stage in done:
        try:
            SealedDirectories(directory, noun="result").verified(stage)
        except RunError as error:
            found[stage] = str(error)
    return found


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, before, now) of every leaf that differs between two resolved recipes; a missing one is
    None.
    """
    old, new = dict(_leaves(before, ())), dict(_leaves(now, ()))
    for path in [*old, *(path for path in new if path not in old)]:
        if old.get(path) != new.get(path):
            yield ".".join(path), old.get(path), new.get(path)


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, node


def _within(key: str, roots: tuple[str, ...]) -> bool:
    return any(key == root or key.startswith(f"{root}.") for root in roots)


def _is_there(recipe: Mapping[str, Any], name: str) -> bool:
    return any(_within(".".join(path), (name,)) for path, _ in _leaves(recipe, ()))


def _of_component(name: str, fingerprint: Mapping[str, Any]) -> bool:
    """Whether this is a file that a component names, which may be one that it writes itself."""
    return not _within(name, FIXED) and set(fingerprint.get("files", ())) == {""}


def _as_written(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the resolved recipe is what rlframe wrote, lately or before a change was cut off."""
    text = (directory / RESOLVED).read_bytes().decode(errors="replace")
    return sha256_of(text) in manifest["resolved_sha256"]


def _baseline(directory: Path, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe that the run has followed so far."""
    recipe: Mapping[str, Any] = manifest["recipe"]
    return _resolved(directory) if _as_written(directory, manifest) else recipe


def _resolved(directory: Path) -> dict[str, Any]:
    try:
        text = (directory / RESOLVED).read_text(encoding="utf-8")
        found: dict[str, Any] = YAML(typ="safe").load(text)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise SetupError(f"{directory / RESOLVED} cannot be read: {error}") from error
    return found


def _records(directory: Path) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
    """(stage, path, what it says of itself) of each checkpoint and result that is not damaged; those
    that are damaged are named when they are read.
    """
    for stage in (line.name for line in STAGES):
        root = directory / "checkpoints" / stage
        store = SealedDirectories(root, noun="checkpoint")
        for number in CheckpointStore.numbers_in(root):
            yield from _record(stage, store, CheckpointStore.name_of(number))
        if (directory / stage).is_dir():
            yield from _record(stage, SealedDirectories(directory, noun="result"), stage)


def _record(
    stage: str, store: SealedDirectories, name: str
) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
    try:
        yield stage, store.root / name, store.record(name)
    except RunError:
        return


def _not_ours(record: Mapping[str, Any], stage: str, manifest: Mapping[str, Any]) -> str | None:
    """Why a checkpoint or result of a stage does not belong to a run; None if it does."""
    if record.get("run") != manifest["run"]:
        return f"is of another run, {record.get('run')}; this one is {manifest['run']}"
    if record.get("stage") != stage:
        return f"is of the stage {record.get('stage')}"
    former, known = manifest.get("former", {}), manifest.get("inputs", {})
    for name, found in record.get("inputs", {}).items():
        if name in known and found not in (checksum(known[name]), *former.get(name, ())):
            return f"was made from another {name}"
    if record.get("recipe") not in (manifest["digest"], *former.get("recipe", ())):
        return "was made with another recipe"
    return None


def _more_updates(manifest: Mapping[str, Any], resolved: Mapping[str, Any]) -> str | None:
    """That a finished run is to make more updates, and what follows from it."""
    old, new = (recipe.get("ppo") or {} for recipe in (manifest["recipe"], resolved))
    if manifest["status"] != "finished" or not old or not new:
        return None
    if new["updates"] <= old["updates"]:
        return None
    return (
        f"ppo: {new['updates']} updates instead of {old['updates']}; the learning-rate schedule "
        f"({new['decay']}, warm-up {new['warmup_updates']}) is recomputed over {new['updates']}"
    )


def _extended(change: Change) -> Change:
    """More updates are what a finished run is resumed for, and need no --force."""
    return Change(change.name, change.what, "more") if change.name == "ppo.updates" else change


def _nothing_to_do(directory: Path, manifest: Mapping[str, Any]) -> str:
    ppo = manifest["recipe"].get("ppo")
    more = f". For more updates: rlframe resume {directory} ppo.updates={2 * ppo['updates']}"
    return f"{directory} is finished: there is nothing to resume{more if ppo else ''}"


def _changed_plugins(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for path, used in now.items():
        known = before.get(path)
        if known is None:
            continue  # the recipe names something new, which is its own affair
        for what in ("distribution", "version", "target", "sha256"):
            if known[what] != used[what]:
                yield f"{path} ({used['name']}): {what} was {known[what]}, is {used[what]}"


def _other_versions(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Libraries that have changed: they may round otherwise."""
    before = {"rlframe": manifest["rlframe"], **manifest["libraries"]}
    now = {"rlframe": rlframe.__version__, **{name: installed_version(name) for name in LIBRARIES}}
    for name, was in before.items():
        if name in now and now[name] != was:
            yield f"{name} was {was}, is {now[name]}: numbers may differ from those of a run at one go"


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)

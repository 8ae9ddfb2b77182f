"""Which folder holds a model of a run: the result of a stage, a checkpoint, or a folder by its path.

Nothing is written here, so that a run may be looked at while it trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlframe.errors import SetupError, did_you_mean, listed
from rlframe.runs.manifest import NAME, neighbour, read_manifest, run_below
from rlframe.runs.sealed import SealedDirectories
from rlframe.runs.store import CheckpointStore
from rlframe.stage_table import STAGES

_MODELS = ("policy", "ema")
"""Folders of a result or a checkpoint that hold a language model: the policy and its average."""
_DEEPEST = 4  # RUN/checkpoints/ppo/000020/policy


class WrongChoiceError(ValueError):
    """An option names a stage or a checkpoint that the run does not have.

    Args:
      option: of the command line.
      message: what is wrong, and what there is.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True)
class SavedModel:
    """A language model on the disk, and the run that it belongs to."""

    folder: Path
    """What transformers loads."""
    run: Path | None = None
    """The directory of the run; None for a model that belongs to none."""
    stage: str | None = None
    """The stage that trained the model."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest of the run says."""


def find_model(
    path: Path, *, stage: str | None = None, checkpoint: int | None = None
) -> SavedModel:
    """The language model that a path means.

    Args:
      path: a run directory, a checkpoint or a result in it, or the folder of a model.
      stage: whose model of a run directory; the last stage that trains a language model if None.
      checkpoint: number of the update whose checkpoint is meant; the stage's result if None.

    Raises:
      SetupError: there is neither a run nor a model, or the run has no such model yet.
      RunError: files of the model are missing or were cut short.
      WrongChoiceError: the run has no such stage or checkpoint, or the path is no run directory.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise SetupError(
            f"{path} {what}; name a run directory, a checkpoint in one, or the folder of a model."
            f"{neighbour(path)}"
        )
    run = _run_around(path)
    if run == path:
        return _of_run(path, read_manifest(path, edited=True), stage, checkpoint)
    for option, given in (("--stage", stage), ("--checkpoint", checkpoint)):
        if given is not None:
            raise WrongChoiceError(
                option, f"{path} is no run directory, which alone has stages and checkpoints"
            )
    if run is not None:
        return _inside(path, run, read_manifest(run, edited=True))
    if not (path / "config.json").is_file():
        raise SetupError(
            f"{path} holds neither a run (it has no {NAME}) nor a model (it has no config.json)."
            f"{run_below(path)}"
        )
    return SavedModel(path)


def language_stages(manifest: Mapping[str, Any]) -> list[str]:
    """The stages of a run that train a language model, in order."""
    recipe = manifest.get("recipe", {})
    return [s.name for s in STAGES if recipe.get(s.name) is not None and s.result != "scorer"]


def _run_around(path: Path) -> Path | None:
    """The run directory that a path is or lies in; None if it lies in none."""
    if (path / NAME).is_file():
        return path
    full = path.resolve()
    names = {"checkpoints", *(stage.name for stage in STAGES)}
    for parent in full.parents[:_DEEPEST]:
        if (parent / NAME).is_file() and full.relative_to(parent).parts[0] in names:
            return parent
    return None


def _of_run(
    run: Path, manifest: Mapping[str, Any], stage: str | None, checkpoint: int | None
) -> SavedModel:
    stages = language_stages(manifest)
    if not stages:
        raise SetupError(f"{run} is a run without a stage that trains a language model")
    name = stages[-1] if stage is None else stage
    if name not in stages:
        scorer = any(s.name == name and s.result == "scorer" for s in STAGES)
        why = "leaves a model that scores texts" if scorer else "is no stage of this run"
        raise WrongChoiceError(
            "--stage",
            f"{name!r} {why}.{did_you_mean(name, stages)} A language model is left by {listed(stages)}",
        )
    if checkpoint is None:
        _check_result(run, manifest, name)
        folder = run / name
    else:
        _check_checkpoint(run, name, checkpoint)
        folder = run / "checkpoints" / name / CheckpointStore.name_of(checkpoint)
    return SavedModel(_policy_in(folder), run, name, manifest)


def _check_result(run: Path, manifest: Mapping[str, Any], stage: str) -> None:
    """Make sure that a stage has left its model, complete.

    Raises:
      SetupError: it has left none so far.
      RunError: a file of it is missing or has another size.
    """
    if (run / stage).is_dir():
        SealedDirectories(run, noun="result").record(stage)
        return
    ways = [f"--stage {n}" for n in language_stages(manifest) if n != stage and (run / n).is_dir()]
    if numbers := _numbers(run, stage):
        ways.append(f"--checkpoint N with N one of {', '.join(map(str, numbers))}")
    there = f" There is a model for {' and for '.join(ways)}." if ways else ""
    raise SetupError(
        f"{run} has no model of the stage {stage} yet: its status is {manifest['status']!r}.{there} "
        f"The run continues with: rlframe resume {run}"
    )


def _check_checkpoint(run: Path, stage: str, number: int) -> None:
    """Make sure that a checkpoint is there and holds a model.

    Raises:
      WrongChoiceError: it is not there, or checkpoints of this stage hold no folder of a model.
      RunError: a file of it is missing or has another size.
    """
    numbers = _numbers(run, stage)
    if number not in numbers:
        kept = ", ".join(map(str, numbers))
        there = f"There are {kept}" if kept else "There is none of this stage that holds a model"
        raise WrongChoiceError(
            "--checkpoint", f"the stage {stage} has no checkpoint {number} with a model. {there}"
        )
    root = run / "checkpoints" / stage
    SealedDirectories(root, noun="checkpoint").record(CheckpointStore.name_of(number))


def _numbers(run: Path, stage: str) -> list[int]:
    """Of the checkpoints of a stage that hold a model; those of others hold what resuming needs."""
    root = run / "checkpoints" / stage
    found = CheckpointStore.numbers_in(root)
    return [n for n in found if (root / CheckpointStore.name_of(n) / "policy").is_dir()]


def _inside(path: Path, run: Path, manifest: Mapping[str, Any]) -> SavedModel:
    """The model at a path inside of a run."""
    parts = path.resolve().relative_to(run).parts
    names = parts[1:] if parts[0] == "checkpoints" else parts
    stage = names[0] if names else None
    if stage in language_stages(manifest):
        folder = _policy_in(path)
        inner = folder.resolve().relative_to(run).parts
        below = inner[3:] if inner[0] == "checkpoints" else inner[1:]
        whole = below in ((), *((name,) for name in _MODELS))
        if whole and (folder / "config.json").is_file():
            return SavedModel(folder, run, stage, manifest)
    raise SetupError(
        f"{path} holds no language model. In a run these are the results of "
        f"{listed(language_stages(manifest))} and, in a result or a checkpoint of PPO, the folders "
        f"{' and '.join(_MODELS)}; try {run}"
    )


def _policy_in(folder: Path) -> Path:
    """Where the language model of a result or a checkpoint lies: beside others, or alone."""
    return folder / "policy" if (folder / "policy").is_dir() else folder

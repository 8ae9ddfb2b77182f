"""What a run reads besides its recipe: data, models, variables, files that components name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from rlframe.compose.project import Project
from rlframe.errors import RecipeError
from rlframe.recipe.document import dotted
from rlframe.recipe.references import initials
from rlframe.recipe.schema import NewModel
from rlframe.runs import fingerprints
from rlframe.runs.durable import size_of
from rlframe.stage_table import REFERENCE

_WORTH_SAYING = 4 << 30  # bytes whose reading takes a person's patience


def inputs_of(project: Project, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Name -> fingerprint of everything that a run reads, the same on all ranks.

    Each rank hashes the rows that it holds, which costs less than making tokens of them. Weights are
    hashed by rank 0 alone; the other ranks compare names, sizes and both ends of each file.

    Args:
      project: with its data sets read.
      say: called with a notice when there is much to read.

    Raises:
      SetupError: the ranks do not read the same.
      RecipeError: a file cannot be read.
    """
    runtime = project.runtime
    found: dict[str, dict[str, Any]] = {}
    for name in project.recipe.data:
        split = project.split(name)
        found[f"data.{name}"] = rows = fingerprints.of_rows(split.train, split.heldout)
        runtime.agree(f"the content of data.{name}", rows["sha256"])
    for name, path in paths_of(project):
        with _readable(name):
            runtime.agree(f"the content of {name} ({path})", fingerprints.sketch_of_path(path))
            if runtime.main and (size := fingerprints.bytes_of_path(path)) > _WORTH_SAYING:
                say(f"reading {name}, {size_of(size)}, for its fingerprint")
            found[name] = runtime.broadcast(fingerprints.of_path(path) if runtime.main else {})
    return found | project.loaded.variables()


def paths_of(project: Project) -> Iterator[tuple[str, Path]]:
    """(recipe path, file or folder on this machine) of each model, and of each file of a component."""
    recipe = project.recipe
    policy = recipe.model.policy
    tokenizer = policy.tokenizer if isinstance(policy, NewModel) else None
    named: Mapping[str, Any] = {
        "model.policy": policy,
        "model.policy.tokenizer": tokenizer,
        "model.reference": recipe.model.reference,
        "model.critic.initial": getattr(recipe.model.critic, "initial", None),
        **{dotted(at): name for at, name in initials(recipe).items()},
        "runtime.deepspeed_config": recipe.runtime.deepspeed_config,
    }
    for name, value in named.items():
        copied = name.endswith("initial") and value == "policy"  # the policy itself, not a folder
        if isinstance(value, str) and not copied and (path := local_path(value)) is not None:
            yield name, path
    for where, chosen in project.loaded.chosen.items():
        for name, value in _texts(chosen.config.model_dump(), (*where,)):
            path = local_path(value) if _is_model(value) or Path(value).suffix else None
            if path is not None:
                yield name, path


def local_path(name: str) -> Path | None:
    """Where a path or hub id lies on this machine, if it does; the hub is not asked."""
    if not name or name.startswith(REFERENCE):
        return None
    try:
        if Path(name).exists():
            return Path(name)
        cached = try_to_load_from_cache(name, "config.json")
    except (OSError, ValueError):  # too long for a path, or no hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _is_model(name: str) -> bool:
    path = local_path(name)
    return path is not None and (path / "config.json").is_file()


def _texts(node: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts(value, (*path, key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _texts(value, (*path, index))
    elif isinstance(node, str | Path) and len(str(node)) < 4096 and "\0" not in str(node):
        yield dotted(path), str(node)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Say whose file could not be read."""
    try:
        yield
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error}") from error

"""A component in a Python file of the user's own: `type: ./my_reward.py:MyReward`."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from rlframe.api.component import Component
from rlframe.errors import PluginError, did_you_mean, listed, place_of

LOCAL = re.compile(r"^(\.{0,2}/.*\.py):(\w+)$")
"""A file and a class in it."""


def is_local(name: str) -> bool:
    """Whether a recipe's `type:` names a file: it begins with ./, ../ or /."""
    return name.startswith(("./", "../", "/"))


def local_component(name: str) -> tuple[type[Component[Any]], str]:
    """Import the class that `./file.py:Class` names; relative files lie where the run starts.

    Returns:
      (the class, sha256 of the file).

    Raises:
      PluginError: the name is malformed, the file is missing or can not be imported, or it has no such
        component.
    """
    matched = LOCAL.fullmatch(name)
    if matched is None:
        raise PluginError(f"{name!r}: write ./file.py:Class, the file and the component in it")
    file, wanted = Path(matched[1]), matched[2]
    try:
        source = file.read_bytes()
    except OSError as error:
        where = f"{file} can not be read (from {Path.cwd()})"
        raise PluginError(f"{name!r}: {where}: {error}") from error
    digest = hashlib.sha256(source).hexdigest()
    module = _imported(file, digest, name)
    offered = {key: value for key, value in vars(module).items() if _is_component(value, module)}
    if wanted not in offered:
        raise PluginError(
            f"{file} has no component {wanted!r}.{did_you_mean(wanted, offered)} "
            f"It defines: {listed(offered)}"
        )
    return offered[wanted], digest


def _imported(file: Path, digest: str, name: str) -> Any:
    """The file as a module under a name of its own; equal content is imported once."""
    known = f"rlframe_local_{file.stem}_{digest[:12]}"
    if known in sys.modules:
        return sys.modules[known]
    spec = importlib.util.spec_from_file_location(known, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[known]
        raise PluginError(f"{name!r} could not be imported: {why(error, file.stem)}") from error
    return module


def why(error: BaseException, module: str) -> str:
    """Why a plugin could not be imported, and where.

    Args:
      error: what its import raised.
      module: the module that was imported, or the stem of its file.
    """
    found = f"{type(error).__name__}: {error} [{place_of(error, module)}]"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("rlframe.hooks"):
        found += (
            ". The plugin was written for an earlier rlframe: `rlframe.hooks` is now `rlframe.api`"
        )
    return found


def _is_component(value: object, module: Any) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, Component)
        and value.__module__ == module.__name__
    )

"""A component in a Python file of the user's own: `type: ./my_reward.py:MyReward`, or a function."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from rlframe.api.component import Component
from rlframe.api.functions import reward_from_function
from rlframe.errors import PluginError, did_you_mean, listed, place_of

LOCAL = re.compile(r"^(\.{0,2}/.*\.py):(\w+)$")
"""A file and a class or function in it."""


def is_local(name: str) -> bool:
    """Whether a recipe's `type:` names a file: it begins with ./, ../ or /."""
    return name.startswith(("./", "../", "/"))


def local_component(name: str) -> tuple[type[Component[Any]], str]:
    """Import what `./file.py:Name` names; relative files lie where the run starts.

    Returns:
      (the class, or the reward provider that calls the function; sha256 of the file).

    Raises:
      PluginError: the name is malformed, the file is missing or cannot be imported, or it has no such
        component.
    """
    matched = LOCAL.fullmatch(name)
    if matched is None:
        raise PluginError(
            f"{name!r}: write ./file.py:Name, the file and the class or function in it"
        )
    file, wanted = Path(matched[1]), matched[2]
    try:
        source = file.read_bytes()
    except OSError as error:
        where = f"{file} cannot be read (from {Path.cwd()})"
        raise PluginError(f"{name!r}: {where}: {error}") from error
    digest = hashlib.sha256(source).hexdigest()
    module = _imported(file, digest, name)
    offered = {
        key: value
        for key, value in vars(module).items()
        if _is_component(value, module) or _is_function(key, value, module)
    }
    found = offered.get(wanted)
    if found is None and _is_callable(wanted, made := getattr(module, wanted, None)):
        found = made  # another module's: imported, or made by a function of it
    if found is None:
        raise PluginError(
            f"{file} has no component {wanted!r}.{did_you_mean(wanted, offered)} "
            f"It defines: {listed(offered)}"
        )
    if not isinstance(found, type):
        found = reward_from_function(found, name=wanted)
    return found, digest


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
        raise PluginError(f"{name!r} could not be imported: {why(error, known)}") from error
    return module


def why(error: BaseException, module: str) -> str:
    """Why a plugin could not be imported, and where.

    Args:
      error: what its import raised.
      module: the module that was imported.
    """
    found = f"{type(error).__name__}: {error} [{place_of(error, module)}]"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("rlframe.hooks"):
        found += (
            ". The plugin was written for an earlier rlframe: `rlframe.hooks` is now `rlframe.api`"
        )
    return found


def _is_function(name: str, value: object, module: Any) -> bool:
    """Whether it was written in the file, as a function or as an object that can be called."""
    homes = (getattr(value, "__module__", None), type(value).__module__)
    own = module.__name__ in homes or isinstance(value, partial)
    return own and _is_callable(name, value)


def _is_callable(name: str, value: object) -> bool:
    return callable(value) and not isinstance(value, type) and not name.startswith("_")


def _is_component(value: object, module: Any) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, Component)
        and value.__module__ == module.__name__
    )

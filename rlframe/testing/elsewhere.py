"""The rows of a data generator in another process, in which Python salts `hash` in another way.

`python -m rlframe.testing.elsewhere` reads from stdin which generator is meant, and writes the
fingerprint of each of its rows to stdout.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

from rlframe.api.component import DataGenerator, PluginConfig
from rlframe.api.rows import generated_rows
from rlframe.registry.local import local_component
from rlframe.runs.fingerprints import of_rows
from rlframe.text import lines, say
from rlframe.types import Row

SECONDS = 120.0


def prints_of(rows: Sequence[Row]) -> list[str]:
    """What the ranks of a run compare, of each row by itself."""
    return [of_rows([row], ())["sha256"] for row in rows]


def prints_elsewhere(
    component: type[DataGenerator[Any]], config: PluginConfig, methods: Sequence[str]
) -> dict[str, list[str]] | str:
    """What `prints_of` gives for the rows of each method in another process.

    Returns:
      Method -> prints; or why no other process could make them: the class is in no file, for example.
    """
    try:
        file = inspect.getsourcefile(component)
    except TypeError:  # a class of a notebook
        file = None
    if file is None or "<locals>" in component.__qualname__:
        return "its class cannot be imported by name"
    try:
        plain = config.model_dump(mode="json")
    except ValueError as error:  # what pydantic raises for a value that JSON does not have
        return f"its config cannot be sent there: {error}"
    asked = {
        "module": component.__module__,
        "file": file,
        "name": component.__qualname__,
        "config": plain,
        "methods": list(methods),
    }
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    paths = os.pathsep.join(path for path in sys.path if path)
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(asked),
            env={**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {SECONDS:g} s"
    if done.returncode != 0:
        return (lines(done.stderr.strip()) or ["it ended without a word"])[-1]
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def _component(module: str, file: str, name: str) -> Any:
    """The class, from the module of that name, or else from its file."""
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        found, _ = local_component(f"{file}:{name}")
    return found


def main() -> None:
    """Answer the question on stdin."""
    asked = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):  # what a generator prints must not stand in the answer
        component = _component(asked["module"], asked["file"], asked["name"])
        config = component.Config.model_validate(asked["config"])
        found = {
            method: prints_of(generated_rows(getattr(component, method)(config), method))
            for method in asked["methods"]
        }
    say(json.dumps(found))


if __name__ == "__main__":
    main()

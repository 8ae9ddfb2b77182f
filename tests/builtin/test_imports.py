"""A recipe is validated without torch, so no built-in component may need it to be imported."""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from typing import Any

import pytest

import rlframe.builtin

MODULES = [name for _, name, _ in pkgutil.iter_modules(rlframe.builtin.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_a_built_in_module_is_imported_without_torch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = f"rlframe.builtin.{name}"
    module = import_module(full)  # dataclasses look their module up
    spec: Any = find_spec(full)
    code: Any = SourceFileLoader(full, spec.origin).get_code(full)
    for heavy in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, heavy, None)  # an import of it raises
    space: dict[str, Any] = {"__name__": full}
    exec(code, space)
    names = {name for name in vars(module) if name.isidentifier() and not name.startswith("__")}
    assert names <= space.keys()

"""What rlframe answers to the models, data and machines that people have: exit code and message.

A situation is described in `tests/situations/`, in the module of its area. It runs in this process, in
an empty folder, through the same `main` as the command.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest

import tests.situations
from rlframe.cli.main import main
from rlframe.compose.preflight import look
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from tests.situations import Situation

AREAS = [name for _, name, _ in pkgutil.iter_modules(tests.situations.__path__)]
SITUATIONS = [
    pytest.param(situation, id=f"{area}: {situation.name}")
    for area in AREAS
    for situation in import_module(f"tests.situations.{area}").SITUATIONS
]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_situation_ends_with_its_exit_code_and_its_message(
    situation: Situation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name, value in situation.environment:
        monkeypatch.setenv(name, value)
    arguments = situation.make(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rlframe", *arguments])
    capsys.readouterr()
    try:
        main()
    except SystemExit as ending:
        code = ending.code or 0
    else:
        code = 0
    said = "".join(capsys.readouterr())
    assert code == situation.code, said
    for words in situation.says:
        assert words in said
    for words in situation.never_says:
        assert words not in said
    if code == 0 and arguments[0] == "train":
        assert_valid(arguments)


def assert_valid(arguments: Sequence[str]) -> None:
    """`validate` has nothing against a recipe that could be run."""
    overrides = [word for word in arguments[2:] if "=" in word and not word.startswith("-")]
    load_recipe(Path(arguments[1]), overrides, registry=Registry(local_code=True), look=look)

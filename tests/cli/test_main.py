"""How commands end: the exit codes, what goes to which stream, and what is never imported."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from rlframe.cli import validate
from rlframe.cli.main import COMMANDS
from rlframe.errors import PluginError, RecipeError, RlframeError, RunError, SetupError

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RlframeError("what is wrong"), 1),
        (RunError("what is wrong"), 1),
        (RecipeError("what is wrong"), 3),
        (PluginError("what is wrong"), 4),
        (SetupError("what is wrong"), 5),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_is_told_on_stderr_alone(
    rlframe, recipe, monkeypatch, error, code
):
    def load_recipe(*_, **__):
        raise error

    monkeypatch.setattr(validate, "load_recipe", load_recipe)
    assert rlframe("validate", recipe) == (code, "", "error: what is wrong\n")


def test_an_interrupt_ends_with_130(rlframe, recipe, monkeypatch):
    def load_recipe(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(validate, "load_recipe", load_recipe)
    assert rlframe("validate", recipe).code == 130


def test_a_programmers_mistake_is_not_dressed_up(rlframe, recipe, monkeypatch):
    def load_recipe(*_, **__):
        raise AttributeError("a bug")

    monkeypatch.setattr(validate, "load_recipe", load_recipe)
    with pytest.raises(AttributeError, match="a bug"):
        rlframe("validate", recipe)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["train"],
        ["validate"],
        ["train", "a.yaml", "--nothing"],
        ["plugins", "nothing"],
        ["validate", "a.yaml", "--output", "x"],
    ],
)
def test_a_wrong_use_ends_with_2_and_is_told_on_stderr(rlframe, arguments):
    ended = rlframe(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage" in ended.err


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["plugins", "--help"]])
def test_help_ends_with_0(rlframe, arguments):
    ended = rlframe(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert "Usage" in ended.out


def test_help_names_every_command(rlframe):
    shown = rlframe("--help").out
    for command in COMMANDS:
        assert command in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_what_the_command_says_of_itself(command):
    module = import_module(f"rlframe.cli.{command}")
    own = module.app.info.help if hasattr(module, "app") else getattr(module, command).__doc__
    assert own == COMMANDS[command]


def test_a_command_that_is_misspelt_is_answered_with_a_guess(rlframe):
    assert "Did you mean 'validate'?" in rlframe("validat").err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["plugins", "list"], 0),
        (["validate", str(QUICKSTART)], 0),
        (["validate", str(QUICKSTART), "ppo.upates=3"], 3),
        (["train", str(QUICKSTART), "ppo.upates=3"], 3),
        (["train", str(QUICKSTART), "kl.controller.type=nothing"], 4),
    ],
    ids=lambda value: " ".join(value[:1] + value[2:]) if isinstance(value, list) else str(value),
)
def test_a_process_ends_with_the_code_and_does_not_import_torch(arguments, code):
    script = (
        "import sys, atexit\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'datasets'}\n"
        "atexit.register(lambda: print('imported:', sorted(heavy & set(sys.modules))))\n"
        "from rlframe.cli.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"

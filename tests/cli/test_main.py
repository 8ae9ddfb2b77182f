"""How commands end: the exit codes, what goes to which stream, and what is never imported."""

import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
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


def breaks(monkeypatch, error):
    def load_recipe(*_, **__):
        raise error

    monkeypatch.setattr(validate, "load_recipe", load_recipe)


def test_what_nobody_expected_is_one_message_and_its_traceback_is_kept(
    rlframe, recipe, monkeypatch
):
    breaks(monkeypatch, AttributeError("a bug \x1b[2J"))
    code, out, err = rlframe("validate", recipe)
    assert (code, out) == (1, "")
    first, *rest = err.splitlines()
    assert first == "error: AttributeError: a bug \\u001b[2J"
    assert f"It came from {__file__}:" in err
    assert "Traceback (most recent call last)" not in err
    (kept,) = [line.split()[4].rstrip(";") for line in rest if "traceback is in" in line]
    assert "raise error\nAttributeError: a bug" in Path(kept).read_text()


@pytest.mark.parametrize("arguments", [["--debug", "validate"], ["validate", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(rlframe, recipe, monkeypatch, arguments):
    breaks(monkeypatch, AttributeError("a bug"))
    code, out, err = rlframe(*arguments, recipe)
    assert (code, out) == (1, "")
    assert err.startswith("Traceback (most recent call last)")
    assert "error: AttributeError: a bug" in err
    assert "Traceback" not in rlframe("validate", recipe).err  # the next command is not debugged


def test_an_error_that_was_expected_has_a_traceback_too(rlframe, recipe, monkeypatch):
    monkeypatch.setenv("RLFRAME_DEBUG", "1")
    breaks(monkeypatch, PluginError("what is wrong"))
    code, _, err = rlframe("validate", recipe)
    assert code == 4
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith("\nerror: what is wrong\n")


def test_an_environment_variable_that_an_error_quotes_is_named(rlframe, recipe, monkeypatch):
    monkeypatch.setenv("SOME_TIMEOUT", "abc")
    breaks(monkeypatch, ValueError("invalid literal for int() with base 10: 'abc'"))
    assert "The environment variable SOME_TIMEOUT has this value" in rlframe("validate", recipe).err


@pytest.mark.parametrize("code", [0, None, 3, "a word"])
def test_whoever_exits_in_the_middle_of_a_command_has_not_made_it_a_success(
    rlframe, recipe, monkeypatch, code
):
    breaks(monkeypatch, SystemExit(code))
    ended = rlframe("validate", recipe)
    assert (ended.code, ended.out) == (1, "")
    assert f"called sys.exit({'' if code is None else repr(code)}) [{__file__}:" in ended.err


def test_a_command_line_that_is_wrong_is_quoted_without_its_control_characters(rlframe):
    for wrong in ("\x1b[31mred", "[/INST]", "\u202egpj.\udcff"):
        ended = rlframe(wrong)
        assert ended.code == 2
        assert "\x1b[31m" not in ended.err
        assert not {"\u202e", "\udcff"} & set(ended.err)
        assert rlframe("validate", "a.yaml", "--" + wrong).code == 2


def test_the_version_is_that_of_the_package(rlframe):
    assert rlframe("--version") == (0, f"rlframe {version('rlframe')}\n", "")


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

"""What the shell completes, asked as the shell asks."""

import os
import subprocess
import sys

import pytest

RLFRAME = "import sys; sys.argv[0] = 'rlframe'; from rlframe.cli.console import console; console()"


@pytest.fixture
def completed():
    """The completions of the last word of a command line, as bash asks for them."""

    def complete(line):
        asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        ended = subprocess.run(
            [sys.executable, "-c", RLFRAME],
            env={**os.environ, "_RLFRAME_COMPLETE": "complete_bash", **asked},
            capture_output=True,
            text=True,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout.split()  # as bash does

    return complete


def test_commands_and_options(completed):
    assert completed("rlframe va") == ["validate"]
    assert set(completed("rlframe plugins ")) == {"list", "show", "check", "new"}
    assert "--no-plugin" in completed("rlframe train --no")


@pytest.mark.parametrize("command", ["show", "check"])
def test_names_of_components(completed, command):
    assert completed(f"rlframe plugins {command} le") == ["length"]
    assert completed(f"rlframe plugins {command} rlframe/le") == ["rlframe/length"]
    assert completed("rlframe train --no-plugin rlframe/len") == ["rlframe/length"]


def test_names_of_recipes(completed):
    assert completed("rlframe recipes copy qu") == ["quickstart"]


@pytest.mark.parametrize("command", ["train", "validate", "show", "plan"])
def test_keys_of_the_schema_and_of_the_recipe(completed, recipe, command):
    assert completed(f"rlframe {command} {recipe} ppo.up") == ["ppo.updates="]
    assert completed(f"rlframe {command} {recipe} ~kl.contr") == [
        "~kl.controller.coefficient",
        "~kl.controller.type",
    ]
    assert "rewards.brevity.target_tokens=" in completed(f"rlframe {command} {recipe} rewards")


def test_half_a_recipe_has_the_keys_of_the_schema(completed, tmp_path):
    (tmp_path / "half.yaml").write_text("rewards: {")
    assert completed(f"rlframe train {tmp_path / 'half.yaml'} ppo.up") == ["ppo.updates="]


def test_paths_are_left_to_the_shell(completed):
    assert completed("rlframe train ./rec") == []

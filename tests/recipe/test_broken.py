"""Every broken recipe of the corpus is refused with exactly the words of its golden file."""

import os
import re
import subprocess
import sys

import pytest

from tests.recipe.corpus import FOLDER, cases, portable, refused

CASES = cases()
MAIN = "from rlframe.cli.main import main; main()"
SOME = [
    "several_at_once",
    "typo_in_ppo",
    "extends_itself",
    "override_without_equals",
    "tag_of_python",
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_recipe_is_refused_in_the_words_of_its_golden_file(case, monkeypatch):
    monkeypatch.chdir(FOLDER)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    assert refused(case) == case.message


def test_there_are_a_hundred_and_all_end_with_3_but_for_missing_plugins():
    assert len(CASES) >= 100
    assert {case.code for case in CASES} == {3, 4}
    missing = ("there is no", "is not installed", "--allow-local-code")
    assert all(any(word in case.message for word in missing) for case in CASES if case.code == 4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_line_says_where_and_none_is_of_python_or_pydantic(case):
    assert case.message.startswith("error: ")
    for line in case.message.removeprefix("error: ").splitlines():
        assert re.match(r"[\w/]+\.yaml:\d+:\d+: |override ['\"]", line), line
    for theirs in ("Traceback", "pydantic", "Error:", "NoneType", "dict", "instance of", "ruamel"):
        assert theirs not in case.message


@pytest.mark.parametrize("name", SOME)
def test_the_executable_says_the_same_and_ends_with_the_same_code(name):
    (case,) = (case for case in CASES if case.name == name)
    command = [sys.executable, "-c", MAIN, "validate", case.file, *case.overrides]
    done = subprocess.run(
        command, cwd=FOLDER, env=in_repository(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (case.code, "")
    if "Installed" not in case.message:  # other plugins may be installed here
        assert portable(done.stderr) == case.message


def in_repository():
    return {**os.environ, "PYTHONPATH": str(FOLDER.parents[2])}

"""`rlframe plugins new`: what an author begins with installs, passes its tests and trains."""

import importlib
import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rlframe.cli.check import KIND_WORDS
from rlframe.testing.checks import CHECKS
from rlframe.testing.recorded import METRICS, RESOLVED
from rlframe.testing.scaffold import name_problem, write_plugin

pytest_plugins = ["pytester"]

NAMES = {kind: f"begun_{kind}" for kind in KIND_WORDS}
DISTRIBUTIONS = {kind: f"rlframe-{name.replace('_', '-')}" for kind, name in NAMES.items()}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return tmp_path_factory.mktemp("authors")


@pytest.fixture(scope="module")
def plugins(parent):
    """A distribution of each kind, written by the command and installed by pip, by kind."""
    roots = {
        kind: write_plugin(NAMES[kind], word=kind, kind=KIND_WORDS[kind], parent=parent)
        for kind in KIND_WORDS
    }
    site = parent / "site-packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
    command += ["--no-deps", "--no-index", "--target", str(site), *map(str, roots.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    yield roots
    sys.path.remove(str(site))


@pytest.mark.parametrize("kind", KIND_WORDS)
def test_the_command_writes_files_and_prints_three_commands(rlframe, tmp_path, kind):
    ended = rlframe("plugins", "new", "my_own", "--kind", kind, "--directory", tmp_path / "a b")
    assert (ended.code, ended.err) == (0, "")
    root = tmp_path / "a b" / "rlframe-my-own"
    written = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert written == {
        "README.md",
        "pyproject.toml",
        "recipes/my_own.yaml",
        "src/rlframe_my_own/__init__.py",
        "src/rlframe_my_own/py.typed",
        "tests/test_my_own.py",
    }
    install, check, run = [shlex.split(x) for x in ended.out.splitlines() if x.startswith("  ")]
    assert install == ["pip", "install", "--no-build-isolation", "-e", str(root)]
    assert check == ["rlframe", "plugins", "check", f"{kind}:my_own"]
    assert run[:2] == ["rlframe", "train"]
    assert Path(run[2]).is_file()
    assert not [path for path in root.rglob("*") if path.is_file() and "$" in path.read_text()]


@pytest.mark.parametrize("kind", KIND_WORDS)
def test_what_is_written_is_formatted_as_rlframe_is(plugins, kind):
    root, house = plugins[kind], Path(__file__).parents[2] / "pyproject.toml"
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", str(house)]
        done = subprocess.run(
            [*ruff, str(root / "src"), str(root / "tests")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KIND_WORDS)
def test_an_installed_plugin_is_listed_and_passes_the_check(rlframe, plugins, kind):
    project = tomllib.loads((plugins[kind] / "pyproject.toml").read_text())["project"]
    listed = json.loads(rlframe("plugins", "list", "--json").out)
    (entry,) = [entry for entry in listed if entry["name"] == NAMES[kind]]
    assert entry["distribution"] == project["name"] == DISTRIBUTIONS[kind]
    ended = rlframe("plugins", "check", f"{kind}:{NAMES[kind]}", "--json")
    loaded = json.loads(ended.out)
    assert ended.code == 0, [c["message"] for c in loaded["checks"] if c["outcome"] == "failed"]
    assert {check["outcome"] for check in loaded["checks"]} <= {"ok", "skipped"}


def test_the_tests_that_are_written_pass(plugins, pytester):
    files = [str(next((root / "tests").iterdir())) for root in plugins.values()]
    options = ["-W", "error", "--import-mode=importlib"]
    for plugin in ("rlframe.testing.pytest_plugin", "no:hypothesispytest", "no:cacheprovider"):
        options += ["-p", plugin]
    checks = sum(map(len, CHECKS.values()))
    own = len(plugins)  # a test in each that is not of the kit
    idle = 4  # no stream of its own; no stop strings, seeds of responses or smaller batches
    done = pytester.runpytest_inprocess(*options, *files)
    done.assert_outcomes(passed=checks + own - idle, skipped=idle)


def test_the_recipe_that_is_written_trains(rlframe, plugins, tmp_path):
    recipe = plugins["reward"] / "recipes" / f"{NAMES['reward']}.yaml"
    ended = rlframe("train", recipe, "sft.epochs=0.2", "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert f"({NAMES['reward']} " in ended.out


@pytest.mark.parametrize("kind", [k for k in KIND_WORDS if k not in ("reward", "hook")])
def test_the_recipe_of_every_other_kind_trains_too(rlframe, plugins, tmp_path, kind):
    recipe = plugins[kind] / "recipes" / f"{NAMES[kind]}.yaml"
    shorter = ("sft.epochs=0.1", "ppo.updates=1", "ppo.epochs=1")
    ended = rlframe("train", recipe, *shorter, "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    used = json.loads(rlframe("validate", recipe, "--json").out)["plugins"]
    assert f"{DISTRIBUTIONS[kind]}/{NAMES[kind]}" in used.values()


def test_the_recipe_of_a_hook_trains_and_its_run_tells_what_the_kit_tells(
    rlframe, plugins, tmp_path
):
    recipe = plugins["hook"] / "recipes" / f"{NAMES['hook']}.yaml"
    ended = rlframe(
        "train", recipe, "sft.epochs=0.1", "ppo.updates=1", "--output", tmp_path / "run"
    )
    assert ended.code == 0, ended.err
    (line,) = (tmp_path / "run" / f"{NAMES['hook']}-0.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert (written["update"], written["short"] > 0) == (0, True)
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (metrics,) = [record for record in records if "objective/scores" in record]
    assert {name.replace("/reward/", "/short/") for name in METRICS} <= set(metrics)
    resolved = YAML(typ="safe").load((tmp_path / "run" / "recipe.resolved.yaml").read_text())
    assert set(RESOLVED) == set(resolved)
    for section in (
        "prompts",
        "rollout",
        "algorithm",
        "ppo",
        "evaluation",
        "checkpoints",
        "runtime",
    ):
        assert set(RESOLVED[section]) == set(resolved[section])


def test_a_folder_that_exists_is_refused_and_left_alone(rlframe, tmp_path):
    root = tmp_path / "rlframe-mine"
    root.mkdir()
    (root / "notes.txt").write_text("mine")
    ended = rlframe("plugins", "new", "mine", "--kind", "kl", "--directory", tmp_path)
    assert (ended.code, ended.out) == (5, "")
    assert "rlframe-mine exists already, and nothing in it was touched" in ended.err
    assert [path.name for path in root.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Reward", "'My-Reward' cannot name a component"),
        ("2nd", "'2nd' cannot name a component"),
        ("class", "is no word of Python"),
        ("../up", "'../up' cannot name a component"),
        ("length", "length (rlframe 0.1.0) has this name already"),
    ],
)
def test_a_bad_name_is_refused_and_nothing_is_written(rlframe, tmp_path, name, message):
    ended = rlframe("plugins", "new", name, "--kind", "reward", "--directory", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert message in " ".join(ended.err.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_a_name_of_another_kind_may_be_taken(rlframe, tmp_path):
    assert rlframe("plugins", "new", "length", "--kind", "kl", "--directory", tmp_path).code == 0


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("rlframe-politeness", "politeness"),
        ("Short answers", "short_answers"),
        ("a-b", "a_b"),
        ("class", None),
        ("99", None),
    ],
)
def test_a_bad_name_comes_with_one_that_can_be(name, guess):
    problem = name_problem(name)
    assert problem is not None
    assert (f"Did you mean {guess!r}?" in problem) if guess else ("Did you mean" not in problem)
    assert guess is None or name_problem(guess) is None


def test_a_kind_must_be_said(rlframe):
    ended = rlframe("plugins", "new", "mine")
    assert ended.code == 2
    assert "--kind" in ended.err

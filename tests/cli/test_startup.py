"""Commands that only look answer at once: no torch, no schema for `--help`, half a second of CPU."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "recipes" / "quickstart.yaml")
MAIN = "from rlframe.cli.main import main; main()"
LOOKS = {
    "--help": ["--help"],
    "recipes list": ["recipes", "list"],
    "plugins list": ["plugins", "list"],
    "validate": ["validate", QUICKSTART],
    "show --resolved": ["show", QUICKSTART, "--resolved"],
}


def cpu_seconds(code, *arguments):
    """User and system seconds of a fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", LOOKS.values(), ids=LOOKS)
def test_a_look_takes_less_than_half_a_second_of_cpu(arguments):
    # A busy machine is slower: then what counts is the import of the libraries, 0.17 s when it is idle.
    baseline = "import typer, pydantic; pydantic.BaseModel"
    pairs = [(cpu_seconds(MAIN, *arguments), cpu_seconds(baseline)) for _ in range(3)]
    best, libraries = (min(times) for times in zip(*pairs, strict=True))
    assert best < max(0.5, 3 * libraries)


@pytest.mark.parametrize("arguments", LOOKS.values(), ids=LOOKS)
def test_a_look_imports_no_torch_and_help_builds_no_schema(arguments):
    script = (
        "import sys, atexit\n"
        "heavy = ['torch', 'transformers', 'datasets', 'rlframe.recipe', 'rlframe.hooks']\n"
        "atexit.register(lambda: print('imported:', [n for n in heavy if n in sys.modules]))\n"
        + MAIN
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    ours = {"--help": [], "recipes": [], "plugins": ["rlframe.hooks"]}
    expected = ours.get(arguments[0], ["rlframe.recipe", "rlframe.hooks"])
    assert done.stdout.splitlines()[-1] == f"imported: {expected}"

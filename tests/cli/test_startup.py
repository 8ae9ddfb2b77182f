"""Commands that only look answer at once, since they import neither torch nor, for `--help`, a schema.

`tests/benchmarks/startup.py` measures how long they take.
"""

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
    "doctor": ["doctor"],
}


@pytest.mark.parametrize("arguments", LOOKS.values(), ids=LOOKS)
def test_a_look_imports_no_torch_and_help_builds_no_schema(arguments):
    script = (
        "import sys, atexit\n"
        "heavy = ['torch', 'transformers', 'datasets', 'rlframe.recipe', 'rlframe.api']\n"
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
    ours = {"--help": [], "recipes": [], "plugins": ["rlframe.api"], "doctor": ["rlframe.api"]}
    expected = ours.get(arguments[0], ["rlframe.recipe", "rlframe.api"])
    assert done.stdout.splitlines()[-1] == f"imported: {expected}"

"""CPU seconds of the commands that only look, beside those of the libraries that they need.

    python -m tests.benchmarks.startup

The target is half a second for each on an idle machine.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from tests.cli.test_startup import LOOKS, MAIN, ROOT

LIBRARIES = "import typer, pydantic; pydantic.BaseModel"


def cpu_seconds(code: str, *arguments: str) -> float:
    """User and system seconds of a fresh interpreter, the best of five."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", code, *arguments]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


if __name__ == "__main__":
    print(f"{'typer and pydantic':20} {cpu_seconds(LIBRARIES):.2f} s")
    for name, arguments in LOOKS.items():
        print(f"{name:20} {cpu_seconds(MAIN, *arguments):.2f} s")

"""Time and memory of reading a large data set: mapped into memory, or held as Python objects.

    python tests/benchmarks/reading.py                    # 200 MB of JSON Lines
    python tests/benchmarks/reading.py --megabytes 1000

Each way runs in a process of its own: `held` is json.loads of every line into a list, as rlframe read
files before; `first` maps the file and fills the cache; `again` finds it there. "own" is memory that
cannot be taken from the process (RssAnon); pages of the mapped file can. Seconds are the CPU's,
"through" those of going through all rows. Bounds: own memory at most a third of that of `held`, and
`again` at most a fifth of its time. On two busy cores, 200 MB:

    way     rows     read s  through s  own MiB  peak MiB
    held    254557      2.10       0.08      330       330
    first   254557      4.17       0.64       11       194
    again   254557      0.22       0.61        3       186
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write(path: Path, megabytes: int) -> None:
    """Prompts and responses of random words, as long as those of common data sets."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(5000)]
    written = number = 0
    with path.open("w") as file:
        while written < megabytes * 10**6:
            prompt, response = (" ".join(rng.choices(words, k=k)) for k in (40, 80))
            row = {"id": number, "prompt": prompt, "response": response, "score": number / 7}
            written += file.write(json.dumps(row) + "\n")
            number += 1


def read(way: str, path: Path) -> None:
    """Read the file in one way and print what it took, as JSON."""
    import datasets  # noqa: F401  its import is no part of the time

    from rlframe.data.sources import read_rows

    before, start = _memory(), time.process_time()
    if way == "held":
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    else:
        rows = read_rows(path)
    seconds = time.process_time() - start
    start = time.process_time()
    count = sum(len(row["response"]) > 0 for row in rows)
    through = time.process_time() - start
    after = _memory()
    found = {key: (after[key] - before[key]) / 1024 for key in after}
    print(json.dumps({"way": way, "rows": count, "read": seconds, "through": through, **found}))


def _memory() -> dict[str, int]:
    """KiB by /proc: of the process's own, and at most so far."""
    status = Path("/proc/self/status").read_text()
    return {
        name: int(re.search(rf"{key}:\s+(\d+)", status)[1])  # type: ignore[index]
        for name, key in (("own", "RssAnon"), ("peak", "VmHWM"))
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        read(args.way, args.path)
        return 0
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write(path, args.megabytes)
        environment = {**os.environ, "HF_DATASETS_CACHE": f"{folder}/cache"}
        print("way     rows     read s  through s  own MiB  peak MiB")
        for way in ("held", "first", "again"):
            command = [sys.executable, __file__, "--way", way, "--path", str(path)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            found[way] = row = json.loads(done.stdout)
            print(
                f"{way:6} {row['rows']:7} {row['read']:9.2f} {row['through']:10.2f} {row['own']:8.0f} "
                f"{row['peak']:9.0f}"
            )
    good = found["again"]["own"] <= found["held"]["own"] / 3
    good &= found["again"]["read"] <= found["held"]["read"] / 5
    print("within bounds" if good else "MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""How a process of several tells its end: to the launcher that started it, or on stderr.

Imports no torch: the command line reads this for every command.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rlframe.errors import OutOfMemoryError, SetupError
from rlframe.redaction import redacted
from rlframe.text import say

REPORTS = "RLFRAME_REPORTS"
"""Environment variable: the directory in which a launcher looks for its ranks' reports."""

ENDED_EARLY = (
    "ended with exit code 0 before its work was done. Something in it, perhaps a plugin, called "
    "os._exit or exec, or a library ended the process. A run that had begun resumes with "
    "`rlframe resume RUN`"
)
"""The end of a sentence: only what has finished may report success."""

_PEER_IS_GONE = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL")


@dataclass(frozen=True)
class Report:
    """How one rank failed."""

    exit_code: int
    message: str
    """All that the rank has to say: `error: ...`, or a traceback."""
    time: float
    """Seconds on the machine's monotonic clock, which all its processes share."""
    lost_peer: bool
    """The rank failed because another one was gone, so its error is not the cause."""
    remedy: str | None
    """A change of the recipe, key=value, with which the run can resume from its last checkpoint."""


def report_path(directory: Path, rank: int) -> Path:
    """The file in which a rank's report stands."""
    return directory / f"rank-{rank}.json"


def unfinished_path(directory: Path, rank: int) -> Path:
    """A file that the launcher makes and the rank removes when its work is done.

    That way round a full disk cannot make a failure of what went well.
    """
    return directory / f"rank-{rank}.unfinished"


def finished(reports: Path | None) -> None:
    """Tell the launcher that this process has done its work, and may end with exit code 0."""
    if reports is not None:
        unfinished_path(reports, int(os.environ.get("RANK", "0"))).unlink(missing_ok=True)


def read_report(path: Path) -> Report | None:
    """The report in a file; None if there is none yet."""
    return Report(**json.loads(path.read_text("utf-8"))) if path.exists() else None


def take_reports() -> Path | None:
    """The launcher's directory, taken out of the environment: what a rank starts does not report."""
    directory = os.environ.pop(REPORTS, None)
    return Path(directory) if directory else None


def tell(message: str, exit_code: int, error: BaseException, *, reports: Path | None) -> None:
    """Say how this process ends: in a report that the launcher will print, else on stderr.

    Args:
      message: the whole text, `error: ...` or a traceback.
      exit_code: with which the process is about to end.
      error: what was caught.
      reports: the launcher's directory; None without a launcher. Among several processes (torchrun)
        stderr then says which rank is speaking.
    """
    rank, message = os.environ.get("RANK", "0"), redacted(message)
    if reports is not None:
        remedy = error.remedy if isinstance(error, OutOfMemoryError) else None
        report = Report(exit_code, message, time.monotonic(), _lost_peer(error), remedy)
        path = report_path(reports, int(rank))
        try:
            path.with_suffix(".new").write_text(json.dumps(asdict(report)), "utf-8")
            path.with_suffix(".new").replace(path)
        except OSError as full:  # better twice, or with a prefix, than not at all
            say(f"{message}\n(no report could be written: {full})", err=True)
        return
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    say(f"rank {rank}: {message}" if several else message, err=True)


_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def refuse_odd_environment() -> None:
    """Make sure that what the environment says of processes and threads can be.

    Raises:
      SetupError: a variable is no number, or they contradict each other.
    """
    for name in (*_NUMBERS, "OMP_NUM_THREADS"):
        value = os.environ.get(name, "1")
        # OpenMP reads one number for each level of nesting.
        numbers = value.split(",") if name == "OMP_NUM_THREADS" else [value]
        if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", number) for number in numbers):
            raise SetupError(
                f"the environment variable {name} is {value!r}, and has to be a whole number. "
                f"Set it to one, or remove it: unset {name}"
            )
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if rank >= max(size, 1) or size == 0:
        known = f"WORLD_SIZE is {size}" if "WORLD_SIZE" in os.environ else "WORLD_SIZE is not set"
        raise SetupError(
            f"RANK is {rank}, but {known}: of N processes each has a RANK from 0 to N - 1. torchrun "
            "sets both; for one process remove them: unset RANK WORLD_SIZE"
        )


def refuse_missing_gpus(device: Literal["auto", "cpu", "cuda"]) -> None:
    """Make sure that each process of this machine has a GPU of its own, where GPUs are used.

    Raises:
      SetupError: there are more processes than GPUs.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cpu" or processes == 1:
        return
    import torch

    if 0 < (gpus := torch.cuda.device_count()) < processes:
        raise SetupError(
            f"{processes} processes were started, but torch sees {gpus} GPU{'s' * (gpus > 1)} on this "
            f"machine, and each process trains on one of its own. Use --processes {gpus}, or "
            "runtime.device=cpu; CUDA_VISIBLE_DEVICES may be hiding some"
        )


def _lost_peer(error: BaseException) -> bool:
    return any(
        type(link).__module__.startswith("torch.distributed")  # DistError and what derives from it
        or (isinstance(link, RuntimeError) and any(sign in str(link) for sign in _PEER_IS_GONE))
        for link in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from, or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

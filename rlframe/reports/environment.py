"""The environment of rlframe, as a bug report needs it: versions, threads, GPUs, plugins.

Nothing of it is imported: torch alone would take seconds, and a package that is broken could not be
reported. No environment variable but those of `VARIABLES` is read, and no path is shown.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import rlframe
from rlframe.text import lines

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "datasets", "tokenizers")
"""What rlframe computes with."""

VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
"""Environment variables that decide about threads and devices."""

PATIENCE = 5
"""Seconds that a driver has to list its GPUs."""


def environment() -> dict[str, Any]:
    """Versions (None where a package is not installed), platform, threads, GPUs and plugins.

    `gpus` and `plugins` are lists, or a sentence that says why they are not known.
    """
    return {
        "rlframe": rlframe.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _installed(name) for name in PACKAGES},
        "cpu_threads": len(os.sched_getaffinity(0)),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "gpus": _gpus(),
        "plugins": _plugins(),
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str] | str:
    """Name, memory and driver of each NVIDIA GPU, from its driver."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except FileNotFoundError:
        return "none: there is no nvidia-smi"
    except (OSError, subprocess.SubprocessError) as error:
        return f"not known: {error}"
    return [line.strip() for line in lines(done.stdout) if line.strip()]


def _plugins() -> list[dict[str, Any]] | str:
    """Every distribution with components besides rlframe itself, and what it offers."""
    try:
        from rlframe.registry.discovery import KINDS, Registry
        from rlframe.registry.offers import CORE
    except ImportError as error:  # a package that rlframe needs is missing: that is worth a report
        return f"not known: {error}"
    registry, found = Registry(), dict[str, dict[str, Any]]()
    for kind in KINDS:
        for offer in registry.offers(kind):
            if offer.distribution != CORE:
                begun = {"distribution": offer.distribution, "version": offer.version}
                plugin = found.setdefault(offer.distribution, {**begun, "components": []})
                state = registry.state(offer)
                plugin["components"].append(
                    f"{kind}:{offer.name}" + ("" if state == "ok" else f" ({state})")
                )
    return [found[name] for name in sorted(found)]

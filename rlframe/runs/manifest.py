"""manifest.json: what was run, how far it came, and what it was made from.

It is written as a whole, and ends with a checksum of its own: what a person has changed in it is not
taken for what was run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlframe.errors import SetupError, did_you_mean
from rlframe.runs.durable import replace_text
from rlframe.runs.sealed import checksum, sealed_text

FORMAT = 4
"""Of the run directory. 1 had no number, no run id and no fingerprints of data and models; in 2 the
states in checkpoints had other names; in 3 the recipe had no `algorithm` and no transforms."""

NAME = "manifest.json"


def read_manifest(path: Path, *, edited: bool = False) -> dict[str, Any]:
    """What the manifest of a run says.

    Args:
      path: of the run directory.
      edited: take it even if somebody has changed it.

    Raises:
      SetupError: there is no run, its manifest is damaged or was edited, or another version of rlframe
        wrote it in another format.
    """
    if not path.is_dir():
        raise SetupError(f"{path} holds no run: there is no such directory.{neighbour(path)}")
    try:
        text = (path / NAME).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SetupError(f"{path} holds no run: it has no {NAME}.{run_below(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{path / NAME} cannot be read: {error}") from error
    manifest = _parsed(path / NAME, text)
    _refuse_other_format(path, manifest)
    written = manifest.pop("sha256", None)
    if written != checksum(manifest) and not edited:
        raise SetupError(
            f"{path / NAME} was changed after rlframe had written it, and says no longer what was run. "
            f"Put it back, or take it as it is with --allow-changed {NAME}"
        )
    return manifest


def neighbour(path: Path) -> str:
    """A hint for who has misspelt the last part of a path; empty if nothing there is called alike."""
    try:
        names = {p.name: str(p) for p in path.parent.iterdir() if p.is_dir()}
    except OSError:
        return ""
    return did_you_mean(path.name, names, called=names)


def run_below(path: Path) -> str:
    """A hint for who names the folder of all runs; empty if there is no run in it."""
    runs = [p.parent for p in path.glob(f"*/{NAME}")]
    newest = max(runs, key=lambda run: (run / NAME).stat().st_mtime, default=None)
    return "" if newest is None else f" Did you mean {str(newest)!r}, the newest run in it?"


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a run directory.

    Raises:
      OSError: it cannot be written; the old one is still there.
    """
    finite = json.loads(sealed_text(manifest))
    finite.pop("sha256")
    replace_text(path / NAME, sealed_text(finite))


def _parsed(file: Path, text: str) -> dict[str, Any]:
    damage = (
        f"{file} is damaged: {{}}. Bring it back from a copy of the run, or start again with another "
        "--output; models and checkpoints beside it are not touched"
    )
    if not text.strip("\0 \n"):
        raise SetupError(damage.format("it is empty"))
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SetupError(damage.format(f"it is not JSON ({error})")) from error
    if not isinstance(found, dict) or not isinstance(found.get("status"), str):
        raise SetupError(damage.format("it does not say the status of a run"))
    return found


def _refuse_other_format(path: Path, manifest: Mapping[str, Any]) -> None:
    found, writer = manifest.get("format", 1), manifest.get("rlframe", "of an unknown version")
    if found != FORMAT:
        raise SetupError(
            f"{path} was written by rlframe {writer} in format {found} of run directories, and this "
            f"rlframe reads format {FORMAT}: resume it with the version that wrote it. Its models can "
            "be used as any others, by their paths"
        )

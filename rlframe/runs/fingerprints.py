"""Fingerprints of what a run reads: equal ones mean equal content, wherever it lies.

Rows are compared as they are used, after columns are named and the split is made, so that a file, the
hub and a generator are treated alike, and a moved file is the same data. Of a model folder the files
that make the model count. Times of files are never trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

_MODEL_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json",
    "pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_config.json", "adapter_model.bin",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "*.tiktoken", "chat_template*",
)  # fmt: skip
_EDGE = 1 << 20  # bytes of either end of a file that every rank compares


def of_rows(
    train: Iterable[Mapping[str, Any]], heldout: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The rows of a data set in their order: how many, and a sha256 of all of them."""
    counts, digest = {}, hashlib.sha256()
    for part, rows in (("train", train), ("heldout", heldout)):
        counts[part] = 0
        for row in rows:
            counts[part] += 1
            digest.update(_row_bytes(row))
        digest.update(b"\0")
    return {**counts, "sha256": digest.hexdigest()}


def of_path(path: Path) -> dict[str, Any]:
    """A file, or the files of a model folder: name -> size and sha256 of every byte.

    Several files are read at a time; hashlib lets other threads run meanwhile.

    Raises:
      OSError: a file cannot be read.
    """
    files = list(_files(path))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(_of_file, (file for _, file in files)))
    return {"files": dict(zip((name for name, _ in files), found, strict=True))}


def sketch_of_path(path: Path) -> str:
    """What every rank compares: names, sizes, and the ends of each file, where headers and tables are.

    Raises:
      OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for name, file in _files(path):
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_EDGE))
            opened.seek(max(size - _EDGE, 0))
            digest.update(opened.read())
    return digest.hexdigest()


def bytes_of_path(path: Path) -> int:
    """How much `of_path` reads."""
    return sum(file.stat().st_size for _, file in _files(path))


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two fingerprints, for a reader."""
    if "files" in before and "files" in now:
        old, new = before["files"], now["files"]
        changes = [f"{name or 'it'} is gone" for name in old if name not in new]
        changes += [f"{name or 'it'} is new" for name in new if name not in old]
        changes += [
            f"{name or 'it'} has changed" for name in old if name in new and old[name] != new[name]
        ]
        return ", ".join(changes)
    if "sha256" in before and "sha256" in now:
        counts = [f"{f['train']} + {f['heldout']} rows" for f in (before, now)]
        if counts[0] != counts[1]:
            return f"it had {counts[0]} (to train on + held out), and has {counts[1]}"
        return f"it has {counts[0]} as before, but other content"
    if "value" in before and "value" in now:
        return "its variable has another value"
    return "it was read from another kind of place"


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of what counts, by name."""
    if not path.is_dir():
        yield "", path
        return
    for file in sorted(path.iterdir()):
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in _MODEL_FILES):
            yield file.name, file


def _of_file(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": digest}


def _row_bytes(row: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(row, default=_plain)
    except (TypeError, ValueError):  # keys that are no text, or a circle
        text = repr(row)
    return text.encode(errors="surrogatepass") + b"\n"


def _plain(value: Any) -> Any:
    """What JSON has no name for: bytes, arrays and pictures by their bytes, times by their text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return hashlib.sha256(value).hexdigest()
    if hasattr(value, "tobytes"):
        return hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    text = str(value)
    return type(value).__qualname__ if " at 0x" in text else text  # an address is no content

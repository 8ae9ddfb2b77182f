"""Which files a path means, what each of them is, and their bytes, unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Any
from zlib import error as ZlibError  # noqa: N812  an exception under a name that is none

from rlframe.errors import RecipeError, listed

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""What a file's ending says that it holds."""

PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Endings that may follow those of text formats."""

_BINARY = {"parquet", "arrow"}

_SIGNS = (  # how a file begins that is not what its ending says
    (b"PAR1", "parquet", "a Parquet file: name it .parquet"),
    (b"ARROW1", "arrow", "an Arrow file: name it .arrow"),
    (b"\x1f\x8b", "", "compressed with gzip: its name must end in .gz"),
    (b"BZh", "", "compressed with bzip2: its name must end in .bz2"),
    (b"\xfd7zXZ", "", "compressed with xz: its name must end in .xz"),
    (b"\x28\xb5\x2f\xfd", "", "compressed with zstd: its name must end in .zst"),
    (b"PK\x03\x04", "", "a zip archive or an Excel sheet: unpack it, or save the sheet as CSV"),
    (b"\xff\xfe", "", "text in UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "", "text in UTF-16: save it as UTF-8"),
    (
        b"version https://git-lfs.github.com/spec/",
        "",
        "a Git LFS pointer, not the data: run `git lfs pull` in its folder",
    ),
    (b"<!doctype html", "", "a web page: the download was answered with something else"),
    (b"<html", "", "a web page: the download was answered with something else"),
)


@dataclass(frozen=True)
class DataFile:
    """A file of rows, and how it is read."""

    path: Path
    kind: str
    """One of the values of `KINDS`."""
    packing: str = ""
    """One of `PACKED`, or an empty string."""

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The file's bytes, unpacked.

        Raises:
          RecipeError: it cannot be read, is torn, or is something else than its name says.
        """
        try:
            with _OPENERS[self.packing](self.path) as stream:
                self._refuse_another_kind(stream)
                yield stream
        except EOFError as error:
            raise RecipeError(
                f"{self.path}: the compressed file ends too early: {error}"
            ) from error
        except (OSError, lzma.LZMAError, ZlibError) as error:
            raise RecipeError(f"{self.path}: the file cannot be read: {error}") from error

    def _refuse_another_kind(self, stream: Any) -> None:
        head = bytes(stream.peek(64)[:64]).lower()
        for sign, kind, said in _SIGNS:
            if head.startswith(sign.lower()) and kind != self.kind:
                raise RecipeError(f"{self.path}: this is {said}")


def _zstd(path: Path) -> Any:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


_OPENERS: dict[str, Any] = {
    "": partial(open, mode="rb"),
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}


def data_file(path: Path) -> DataFile:
    """What a file holds, by its ending in any case.

    Raises:
      RecipeError: the ending is not known.
    """
    *_, before, last = ("", "", *(suffix.lower() for suffix in path.suffixes))
    packing, ending = (last, before) if last in PACKED else ("", last)
    kind = KINDS.get(ending)
    if kind is None:
        raise RecipeError(
            f"{path}: it is not known what this file holds; known endings: {listed(KINDS)}, and those "
            f"of text also with {listed(PACKED)}"
        )
    if packing and kind in _BINARY:
        raise RecipeError(
            f"{path}: a {ending} file is compressed inside; unpack the {packing} file"
        )
    return DataFile(path, kind, packing)


def located(path: str | Path | Sequence[str]) -> list[Path]:
    """The files and folders that a recipe's `path` means: names, or patterns with * ? [ ].

    Raises:
      RecipeError: nothing is there.
    """
    found: list[Path] = []
    for name in [str(path)] if isinstance(path, str | Path) else path:
        if Path(name).exists():
            found.append(Path(name))
            continue
        matching = sorted(p for p in map(Path, glob(name, recursive=True)) if p.is_file())
        if not matching:
            fault = "no file matches" if has_magic(name) else "there is no file"
            raise RecipeError(f"{fault} {name!r} (from {Path.cwd()})")
        found += matching
    return found

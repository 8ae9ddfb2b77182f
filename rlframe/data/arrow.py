"""Files as Arrow tables that are mapped into memory: what is read of them is all that is in it.

A file is turned into Arrow once, and kept in the cache of `datasets` under a hash of its content.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from rlframe.data.files import DataFile
from rlframe.data.parse import Numbered, parse_csv, parse_json, parse_json_lines, parse_text
from rlframe.data.rows import Lazy
from rlframe.errors import RecipeError, SetupError
from rlframe.types import Row

if TYPE_CHECKING:
    import datasets
    import pyarrow

_LINE = "rlframe:line"  # column with the number of a row's line
_JSON = b"rlframe:json"  # marks a column whose cells are JSON text
_FORMAT = 1  # of the files in the cache: another one is another file
_IN_MEMORY = 16 * 2**20  # bytes; a smaller file is not worth a file in the cache
_BATCH = 1000  # rows

_PARSERS: dict[str, Callable[..., Iterator[Numbered]]] = {
    "jsonl": parse_json_lines,
    "json": parse_json,
    "csv": parse_csv,
    "tsv": partial(parse_csv, delimiter="\t"),
    "text": parse_text,
}


class ArrowRows(Lazy[Row]):
    """The rows of a `datasets.Dataset`.

    Args:
      table: the data set.
      source: what to call it in messages.
    """

    def __init__(self, table: datasets.Dataset, source: str) -> None:
        self._table = table
        self._source = source
        schema = table.data.schema
        self._json = frozenset(f.name for f in schema if (f.metadata or {}).get(_JSON))
        self.names = tuple(name for name in table.column_names if name != _LINE)
        self._rows = table.remove_columns(_LINE) if _LINE in table.column_names else table

    def __len__(self) -> int:
        return len(self._table)

    def many(self, indices: Sequence[int]) -> list[Row]:
        if not indices:
            return []
        columns = self._rows[indices]
        cells = [self._decoded(name, columns[name]) for name in self.names]
        return [dict(zip(self.names, row, strict=True)) for row in zip(*cells, strict=True)]

    def _decoded(self, name: str, cells: list[Any]) -> list[Any]:
        if name not in self._json:
            return cells
        return [None if cell is None else json.loads(cell) for cell in cells]

    def place(self, index: int) -> str:
        known = _LINE in self._table.column_names
        line = self._table.data.column(_LINE)[index].as_py() if known else None
        return f"{self._source}: row {index + 1}" if line is None else f"{self._source}:{line}"


def file_rows(file: DataFile) -> ArrowRows:
    """The rows of a file.

    Raises:
      RecipeError: it cannot be read; names the line.
      SetupError: the cache cannot be written.
    """
    import datasets

    if file.path.stat().st_size > _IN_MEMORY:
        return ArrowRows(datasets.Dataset.from_file(str(_cached(file))), str(file.path))
    import pyarrow

    sinks: list[Any] = []

    def in_memory() -> Any:
        sinks.append(pyarrow.BufferOutputStream())
        return sinks[-1]

    _write(file, in_memory)
    return ArrowRows(datasets.Dataset.from_buffer(sinks[-1].getvalue()), str(file.path))


def _cached(file: DataFile) -> Path:
    """The Arrow file of a file's content. Several processes may make it at a time."""
    import datasets
    import pyarrow

    with file.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "rlframe"
    wanted = folder / f"{digest}-{file.kind}{file.packing}-{_FORMAT}.arrow"
    if wanted.exists():
        return wanted
    made = folder / f".being-written-{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, partial(pyarrow.OSFile, str(made), "wb"))
        os.replace(made, wanted)
    except OSError as error:
        raise SetupError(
            f"the cache of data sets in {folder} cannot be written: {error}. Make room there, or name "
            "another folder: HF_DATASETS_CACHE=FOLDER rlframe ..."
        ) from error
    finally:
        with suppress(OSError):  # what stopped the writing is said above
            made.unlink(missing_ok=True)
    return wanted


def _write(file: DataFile, new_sink: Callable[[], Any]) -> None:
    """Write a file's rows as an Arrow stream to the last of the sinks that are asked for."""
    with file.opened() as stream:
        if file.kind in _TABLES:
            _write_batches(new_sink(), *_TABLES[file.kind](stream, file.path))
            return
        parser, seen = _PARSERS[file.kind], _Types()
        # The types of the first rows are those of all, or else everything has been seen after one try.
        while not _write_rows(new_sink(), parser(stream, file.path), seen):
            stream.seek(0)


def _write_batches(sink: Any, schema: pyarrow.Schema, batches: Iterable[Any]) -> None:
    import pyarrow

    with sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_rows(sink: Any, rows: Iterator[Numbered], seen: _Types) -> bool:
    """Write rows, or return False and know all types if they change on the way."""
    import pyarrow

    batch = list(islice(rows, _BATCH))
    seen.note(batch)
    schema = seen.schema()
    with sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        while batch:
            writer.write_batch(_record_batch(batch, schema))
            batch = list(islice(rows, _BATCH))
            seen.note(batch)
            if not seen.schema().equals(schema, check_metadata=True):
                seen.note(rows)
                return False
    return True


def _parquet(stream: Any, path: Path) -> tuple[pyarrow.Schema, Iterable[pyarrow.RecordBatch]]:
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.ParquetFile(stream)
    except pyarrow.ArrowInvalid as error:
        raise RecipeError(f"{path}: not a Parquet file: {error}") from error
    return found.schema_arrow.remove_metadata(), found.iter_batches(_BATCH)


def _arrow(stream: Any, path: Path) -> tuple[pyarrow.Schema, Iterable[pyarrow.RecordBatch]]:
    import pyarrow

    try:
        found = pyarrow.ipc.open_stream(stream)
        return found.schema, found
    except pyarrow.ArrowInvalid:
        stream.seek(0)
    try:
        table = pyarrow.ipc.open_file(stream).read_all()
    except pyarrow.ArrowInvalid as error:
        raise RecipeError(f"{path}: not an Arrow file: {error}") from error
    return table.schema, table.to_batches(max_chunksize=_BATCH)


class _Types:
    """The types of the values that each column has been seen to hold."""

    def __init__(self) -> None:
        self._of: dict[str, set[type]] = {}

    def note(self, rows: Iterable[Numbered]) -> None:
        for _, row in rows:
            for name, value in row.items():
                types = self._of.setdefault(name, set())
                types.add(type(value))
                if type(value) is int and not -(2**63) <= value < 2**63:
                    types.add(object)

    def schema(self) -> pyarrow.Schema:
        """The one type of a column's values, or else JSON text, which holds any."""
        import pyarrow

        fields = [pyarrow.field(_LINE, pyarrow.int64())]
        plain = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
        plain[bool] = pyarrow.bool_()
        for name, types in self._of.items():
            values = types - {type(None)}
            only = next(iter(values)) if len(values) == 1 else None
            if not values:
                fields.append(pyarrow.field(name, pyarrow.null()))
            elif only in plain:
                fields.append(pyarrow.field(name, plain[only]))
            else:
                fields.append(pyarrow.field(name, pyarrow.string(), metadata={_JSON: b"1"}))
        return pyarrow.schema(fields)


def _record_batch(rows: Sequence[Numbered], schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    import pyarrow

    columns = [pyarrow.array([line for line, _ in rows], pyarrow.int64())]
    for field in list(schema)[1:]:
        cells = [row.get(field.name) for _, row in rows]
        if field.metadata:
            cells = [None if c is None else json.dumps(c, ensure_ascii=False) for c in cells]
        columns.append(pyarrow.array(cells, field.type))
    return pyarrow.record_batch(columns, schema=schema)


_TABLES = {"parquet": _parquet, "arrow": _arrow}

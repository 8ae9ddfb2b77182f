"""Rows of text files, each with the number of its line: JSON Lines, JSON, CSV, TSV, plain text.

`datasets` reads these formats too, but makes dates of text and nothing of "NA", gives every object the
keys of all others, and cannot say in which line a mistake is: it keeps the rows that are read here.
"""

from __future__ import annotations

import codecs
import csv
import json
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from rlframe.errors import RecipeError, listed

Numbered = tuple[int | None, Mapping[str, Any]]
"""(line, row); the first line is 1, and None where it is not known."""


def decoded_lines(stream: IO[bytes], path: Path) -> Iterator[tuple[int, str]]:
    r"""(number, text) of each line, its end included. Only `\n` ends one, and a BOM is no text.

    Raises:
      RecipeError: a line is not UTF-8.
    """
    for number, raw in enumerate(stream, 1):
        content = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        try:
            yield number, content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"{path}:{number}: byte 0x{content[error.start]:02x} at place {error.start + 1} of the "
                "line is not UTF-8. Save the file as UTF-8: `iconv -f latin1 -t utf-8`, if that is "
                "what it was"
            ) from error


def without_end(line: str) -> str:
    r"""A line without its `\n` or `\r\n`."""
    return line.removesuffix("\n").removesuffix("\r")


def parse_text(stream: IO[bytes], path: Path) -> Iterator[Numbered]:
    """A row a line, in the column `text`; blank lines are none."""
    for number, line in decoded_lines(stream, path):
        if line.strip():
            yield number, {"text": without_end(line)}


def parse_json_lines(stream: IO[bytes], path: Path) -> Iterator[Numbered]:
    """A JSON object a line; blank lines are none.

    Raises:
      RecipeError: a line is none.
    """
    for number, line in decoded_lines(stream, path):
        if not line.strip():
            continue
        try:
            found = _DECODER.decode(line)
        except (ValueError, RecursionError, RecipeError) as error:
            raise RecipeError(f"{_fault(line, number, path)}{_hint(line, number)}") from error
        if "\\u" in line:
            _Text(line, path, number).refuse_half_characters(found, 0)
        hint = _hint(line, number) if isinstance(found, list) else ""
        yield number, _object(found, f"{path}:{number}", hint=hint)


def _fault(line: str, number: int, path: Path) -> RecipeError:
    """What is wrong with a line that could not be decoded."""
    text = _Text(without_end(line), path, number)
    try:
        text.expect_end(text.value(_skip(line, 0))[1])
    except RecipeError as error:
        return error
    raise AssertionError(f"{path}:{number} is valid when it is read again")


def _hint(line: str, number: int) -> str:
    """What a line that is no JSON object may be instead."""
    if number == 1 and line.lstrip().startswith("["):
        return ". This looks like one JSON list: its name must end in .json"
    if number == 1 and line.strip() == "{":
        return ". This looks like one JSON object over several lines; .jsonl has an object a line"
    if not line.endswith("\n"):
        return ". It is the last line, and has no end: the file may have been cut off"
    return ""


def parse_json(stream: IO[bytes], path: Path) -> Iterator[Numbered]:
    """A list of objects, or an object with one such list, each row parsed when it is asked for;
    JSON Lines under this ending are read as what they are.

    Raises:
      RecipeError: it is something else, or broken.
    """
    text = _Text("".join(line for _, line in decoded_lines(stream, path)), path)
    start = _skip(text.text, 0)
    if text.text.startswith("[", start):
        yield from _elements(text, start)
        return
    found, end = text.value(start)
    if isinstance(found, dict) and text.text.startswith("{", _skip(text.text, end)):
        stream.seek(0)
        yield from parse_json_lines(stream, path)
        return
    text.expect_end(end)
    for row in found[rows_key(found, path)]:
        yield None, row


def rows_key(found: Any, path: Path) -> str:
    """The key under which a JSON object holds the rows.

    Raises:
      RecipeError: it is no object, or several lists of objects, or none, are in it.
    """
    lists = [
        str(key)
        for key, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    ]
    if len(lists) == 1:
        return lists[0]
    holds = f"; several of its keys hold lists: {listed(lists)}" if lists else ""
    raise RecipeError(
        f"{path}: a .json data set is a list of objects; for a row a line use .jsonl{holds}"
    )


def _elements(text: _Text, start: int) -> Iterator[Numbered]:
    """The objects of the list that begins at `start`."""
    whole, at, line, counted = text.text, _skip(text.text, start + 1), 1, 0
    while not whole.startswith("]", at):
        line += whole.count("\n", counted, at)
        counted = at
        found, at = text.value(at)
        yield line, _object(found, f"{text.path}:{line}")
        at = _skip(whole, at)
        if whole.startswith(",", at):
            at = _skip(whole, at + 1)
            if whole.startswith("]", at):
                text.fail("a comma before the end of the list", at)
        elif not whole.startswith("]", at):
            text.fail("Expecting ',' or ']'", at)
    text.expect_end(at + 1)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(f"the key {twice!r} is in one object more than once")
    return found


def _constant(name: str) -> NoReturn:
    raise RecipeError(f"{name} is not JSON. Write null, or leave the key out")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


@dataclass(frozen=True)
class _Text:
    """JSON text of a file, which knows in which line of the file it is."""

    text: str
    path: Path
    first_line: int = 1

    def value(self, at: int) -> tuple[Any, int]:
        """The JSON value at a place, and where it ends."""
        try:
            found, end = _DECODER.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            self.fail(error.msg, error.pos)
        except RecursionError as error:
            raise RecipeError(f"{self._place(at)}: objects are nested too deeply") from error
        except (RecipeError, ValueError) as error:  # ValueError: a number of thousands of digits
            raise RecipeError(f"{self._place(at)}: {error}") from error
        if "\\u" in self.text[at:end]:
            self.refuse_half_characters(found, at)
        return found, end

    def expect_end(self, at: int) -> None:
        """Nothing but blanks may follow."""
        at = _skip(self.text, at)
        if at < len(self.text):
            self.fail("Extra data", at)

    def fail(self, what: str, at: int) -> NoReturn:
        """Report broken JSON, with the name of a character that is easily overlooked."""
        odd = self.text[at : at + 1]
        named = f"; there is {unicodedata.name(odd, repr(odd))}" if not odd.isascii() else ""
        column = at - self.text.rfind("\n", 0, at)
        raise RecipeError(f"{self._place(at)}: not valid JSON: {what} (column {column}){named}")

    def _place(self, at: int) -> str:
        return f"{self.path}:{self.first_line + self.text.count(chr(10), 0, at)}"

    def refuse_half_characters(self, found: Any, at: int) -> None:
        try:
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            raise RecipeError(
                f"{self._place(at)}: \\u{code:04x} is half of a character (a lone surrogate), which no "
                "tokenizer can read. Replace it, or leave the row out"
            ) from error


def _object(row: Any, where: str, *, hint: str = "") -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise RecipeError(f"{where}: a row is a JSON object, not {type(row).__name__}{hint}")
    return row


def parse_csv(stream: IO[bytes], path: Path, *, delimiter: str | None = None) -> Iterator[Numbered]:
    """Rows under a header. Every cell is text, and an empty one is empty text: a file has no types.

    Args:
      stream: the file's bytes.
      path: for messages.
      delimiter: between cells; if None a comma, or a semicolon if the header has no comma.

    Raises:
      RecipeError: a row has more or fewer cells than the header, or a quote is not closed.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses long texts
    lines = (line for _, line in decoded_lines(stream, path))
    first = next(lines, "")
    if delimiter is None:
        delimiter = ";" if ";" in first and "," not in first else ","
    rows = csv.reader(_chained(first, lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in rows:
            if header is None:
                header = _header(cells, path)
            elif cells:
                yield line, _cells(header, cells, f"{path}:{line}")
            line = rows.line_num + 1
    except csv.Error as error:
        raise RecipeError(
            f"{path}:{line}: not valid CSV: {error}. A quote inside of a quoted cell is written twice"
        ) from error


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _header(cells: list[str], path: Path) -> list[str]:
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        raise RecipeError(f"{path}:1: the header has {listed(map(repr, twice))} more than once")
    return cells


def _cells(header: list[str], cells: list[str], where: str) -> Mapping[str, str]:
    if len(cells) != len(header):
        raise RecipeError(
            f"{where}: {len(cells)} cells, and the header has {len(header)} columns "
            f"({', '.join(header)}). A cell that holds a separator, a quote or a line break stands in "
            "quotes"
        )
    return dict(zip(header, cells, strict=True))

"""`rlframe convert FILE`: a recipe from a file of TRL, OpenRLHF or LLaMA-Factory."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rlframe.convert import Conversion, convert_file
from rlframe.convert.report import report
from rlframe.errors import RecipeError, SetupError
from rlframe.text import say

_MOST_BYTES = 1024 * 1024


class Program(StrEnum):
    """The programs whose files can be converted."""

    trl = "trl"
    openrlhf = "openrlhf"
    llamafactory = "llamafactory"


def convert(
    file: Annotated[
        Path,
        typer.Argument(
            help="A Python script or command of TRL, a command of OpenRLHF, or a YAML file."
        ),
    ],
    program: Annotated[
        Program | None, typer.Option("--from", help="The program; found out if left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the recipe to this file, which must not exist.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes of the run, where the file does not say how many.")
    ] = 1,
) -> None:
    """Make a recipe of a file of TRL, OpenRLHF or LLaMA-Factory."""
    found = convert_file(
        _text(file),
        str(file),
        program=None if program is None else program.value,
        processes=processes,
    )
    if output is None:
        say(found.text.removesuffix("\n"))
    else:
        _write(output, found.text)
    say(report(found, str(file)), err=True)
    if output is not None:
        say(f"{output} is there; check it with: rlframe validate {output}")
    _complain(found, file)


def _text(file: Path) -> str:
    """The text of a file.

    Raises:
      RecipeError: it is too long, or no text.
      SetupError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SetupError(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise RecipeError(f"{file} is longer than {_MOST_BYTES // 1024} KiB, which no script is")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} is not text in UTF-8") from error


def _write(output: Path, text: str) -> None:
    try:
        with output.open("x", encoding="utf-8") as target:  # never over a recipe of the user's
            target.write(text)
    except FileExistsError as error:
        raise SetupError(f"{output} exists already; give another name") from error
    except OSError as error:
        raise SetupError(f"{output} cannot be written: {error.strerror}") from error


def _complain(found: Conversion, file: Path) -> None:
    """End with exit code 3 where the recipe lacks what the file says, or cannot be loaded."""
    problems = [
        f"{file}:{row.option.line}: {row.option.text}: {row.message}" for row in found.unknown
    ]
    problems += [f"the recipe is refused as it is: {message}" for message in found.refused]
    if problems:
        raise RecipeError("\n".join(problems))

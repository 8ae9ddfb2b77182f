"""Errors for people: where, what, a guess, the alternatives, the next command.

Each class of error has the exit code that the command line ends with. Everything that a user can
cause is an `RlframeError`; a programmer's mistake is an ordinary Python exception.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlframe.redaction import redacted


class RlframeError(Exception):
    """Anything that a user can fix. `exit_code` is what the command line ends with."""

    exit_code = 1
    problems: tuple[Any, ...] = ()
    """The single mistakes, where a recipe has several: see `recipe.document.Problem`."""


class RunError(RlframeError):
    """The run failed: a reward broke its contract, the loss was not finite, a stage could not go on."""

    exit_code = 1


class OutOfMemoryError(RunError):
    """Memory ran out where the run cannot begin the step again; `remedy` is a change of the recipe
    with which it can resume from its last checkpoint, as key=value, or None.
    """

    def __init__(self, message: str, *, remedy: str | None) -> None:
        super().__init__(message)
        self.remedy = remedy


class RecipeError(RlframeError):
    """The recipe, or the data and models it names, cannot make a run. Raised before training."""

    exit_code = 3


class PluginError(RlframeError):
    """A component that the recipe names is not installed, or cannot be imported, or is malformed."""

    exit_code = 4


class SetupError(RlframeError):
    """The machine lacks something: a device, a library, a writable directory."""

    exit_code = 5


class Stopped(RlframeError):  # noqa: N818  nothing went wrong
    """The run was asked to end, and did so where it can go on: a checkpoint is saved."""

    exit_code = 130


class StopTraining(Exception):  # noqa: N818  nothing went wrong
    """Raised by an observer to end PPO after this update: the run finishes as after its last one.

    Its text says why, as in `StopTraining("the mean score is above 3")`.
    """


def keep_traceback(error: BaseException, directory: Path, name: str = "traceback.txt") -> None:
    """Write the traceback of an error and of what caused it to a file, and add a note that names it."""
    path = directory / name
    try:
        text = redacted("".join(traceback.format_exception(error)))
        path.write_text(text, "utf-8", "backslashreplace")
    except OSError as full:
        error.add_note(
            f"No traceback could be written to {path}: {full.strerror}. --debug prints it."
        )
    else:
        error.add_note(f"The traceback is in {path}; `rlframe --debug ...` prints it.")


class Problems:
    """Mistakes that are found one by one and reported together.

    Args:
      placed: puts the place where something was written in front of a message.
    """

    def __init__(self, placed: Callable[[str], str] = str) -> None:
        self._placed = placed
        self._found: dict[str, RlframeError] = {}

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the mistake that is raised inside, and go on; the same one counts once."""
        try:
            yield
        except RlframeError as error:
            self._found.setdefault(self._placed(str(error)), error)

    def tell(self) -> None:
        """Raise one error, of the first one's class, with a line for each mistake, if there is any."""
        if self._found:
            first = next(iter(self._found.values()))
            raise type(first)("\n".join(self._found)) from first


_LONGEST_WORD = 100


def did_you_mean(
    word: str, known: Iterable[str], *, called: Mapping[str, str] | None = None
) -> str:
    """A question about the nearest of the known words, or an empty string if none is near.

    Args:
      word: as it was written.
      known: words.
      called: what is asked in place of some of them.
    """
    if len(word) > _LONGEST_WORD:  # comparing takes the product of both lengths
        return ""
    known = (other for other in known if len(other) <= _LONGEST_WORD)
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {(called or {}).get(near[0], near[0])!r}?" if near else ""


def listed(words: Iterable[str]) -> str:
    """The words, sorted and joined by commas; "nothing" if there are none."""
    return ", ".join(sorted(words)) or "nothing"


def place_of(error: BaseException, module: str) -> str:
    """FILE:LINE where an error arose: the last line of the module's own package, or else the last.

    Args:
      error: the exception caught.
      module: dotted name; what it calls in libraries is not where the mistake is.
    """
    if isinstance(error, SyntaxError):  # raised by the one who imports
        return f"{error.filename}:{error.lineno}"
    package = module.partition(".")[0]
    calls = list(traceback.walk_tb(error.__traceback__))
    own = [c for c in calls if c[0].f_globals.get("__name__", "").partition(".")[0] == package]
    frame, line = (own or calls)[-1]
    return f"{frame.f_code.co_filename}:{line}"

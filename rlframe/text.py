"""Text of other people's: how it reaches a terminal, and how files of it are cut into lines.

Prompts, responses, names, paths and what exceptions say come from data, models and plugins. In a
terminal a raw ESC moves the cursor or rewrites what was said before, `[/INST]` is markup of rich, and
U+0085 or U+2028 end a line for `str.splitlines` and for nobody who writes JSON Lines. Whoever shows
such text or reads lines does it through this module; `tests/test_architecture.py` sees to it.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from rlframe.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of text
    "\u2028\u2029\ufeff\ud800-\udfff]"  # separators, the mark of byte order, lone surrogates
)


def visible(text: object) -> str:
    r"""The text with what a terminal would obey, and an encoder refuse, as \uXXXX.

    That is how JSON and YAML write them, so that both mean the same afterwards. Tabs and newlines stay;
    secrets do not.
    """
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", redacted(str(text)))


def lines(text: str, *, keep_ends: bool = False) -> list[str]:
    r"""The lines of a text, which "\n" alone ends; the last one may lack it.

    Args:
      text: of a file or a message.
      keep_ends: leave the "\n" at the end of each line, which tells a torn last line from a whole one.
    """
    *whole, last = text.split("\n")
    found = [line + "\n" for line in whole] if keep_ends else whole
    return [*found, last] if last else found


def say(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Write a line, or several, to stdout, or to stderr; a prompt ends without a line break."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:  # as where a program without a terminal was started
        stream.write(f"{visible(text)}{end}")
        stream.flush()


def cell(text: object, *, style: str = "") -> Text:
    """Text as it is, for a table: no markup, no emoji codes."""
    from rich.text import Text

    return Text(visible(text), style=style)


def console(*, width: int | None = None) -> Console:
    """A terminal, or whatever stdout is, that takes text for text.

    Args:
      width: columns where stdout is no terminal; a pipe has no width, and rich would take 80.
    """
    from rich.console import Console

    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    found = Console(**plain)
    return found if found.is_terminal or width is None else Console(width=width, **plain)


def table(*columns: str, title: str | None = None, whole: tuple[str, ...] = ()) -> Table:
    """A table to fill with `cell`s.

    Args:
      columns: their headings.
      title: above it, on the left.
      whole: columns that are never cut or wrapped.
    """
    from rich.table import Column, Table

    return Table(
        *(Column(cell(name), no_wrap=name in whole) for name in columns),
        title=None if title is None else cell(title),
        title_justify="left",
    )

"""What became of each option, in words."""

from __future__ import annotations

from collections.abc import Iterable

from rlframe.convert.option import Row
from rlframe.convert.sources import Conversion

_HEADINGS = {
    "converted": "Converted",
    "default": "The same as rlframe's default, so the recipe leaves it out",
    "none": "Without a counterpart",
    "unknown": "Not understood",
}


def report(conversion: Conversion, name: str) -> str:
    """Every option of a file with its line and what became of it, and what else the recipe says.

    Args:
      conversion: of the file.
      name: of the file.
    """
    title = conversion.source.title
    text = [f"{name}: {len(conversion.rows)} options of {title}"]
    for outcome, heading in _HEADINGS.items():
        rows = [row for row in conversion.rows if row.outcome == outcome]
        text += _section(heading, (_told(row) for row in rows))
    defaults = (f"  {row.option.text}\n      {row.message}" for row in conversion.assumed)
    text += _section(
        f"Defaults of {title}, which the file leaves out and rlframe does not share", defaults
    )
    facts = (f"  {key}: {why}" for key, why in conversion.facts.items())
    text += _section(f"What {title} always does", facts)
    missing = (f"  {key}: {advice}" for key, advice in conversion.missing.items())
    text += _section("To be filled in, since the file does not say it", missing)
    return "\n".join(text)


def _section(heading: str, entries: Iterable[str]) -> list[str]:
    found = list(entries)
    return ["", f"{heading} ({len(found)})", *found] if found else []


def _told(row: Row) -> str:
    return f"  line {row.option.line}: {' '.join(row.option.text.split())}\n      {row.message}"

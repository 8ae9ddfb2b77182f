"""The tables of docs/coming-from.md, of those of the converter: `python -m tests.convert.page`."""

from __future__ import annotations

from pathlib import Path

from rlframe.convert import SOURCES
from rlframe.convert.openrlhf_names import DOTTED
from rlframe.convert.option import Option

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
BEGIN = "<!-- tables: python -m tests.convert.page -->"


def tables() -> str:
    """Every option of every program: what it becomes, and what differs."""
    text = []
    for source in SOURCES.values():
        text.append(f"## {source.title}\n")
        seen: set[int] = set()
        for heading, table in source.tables.items():
            options = {n: o for n, o in table.items() if id(o) not in seen}
            seen |= {id(option) for option in options.values()}
            text.append(f"### {heading}\n\n{rows(options)}")
    text.append("## Dotted names of OpenRLHF\n")
    text.append("Since version 0.10.2 the flags of OpenRLHF have dotted names. Both are read.\n")
    text.append("| since 0.10.2 | before |\n|---|---|")
    text += [f"| `--{new}` | `--{old}` |" for new, old in DOTTED.items()]
    return "\n".join(text) + "\n"


def rows(options: dict[str, Option]) -> str:
    """A table; options that share a line of words share a row."""
    groups: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for name, option in options.items():
        groups.setdefault((option.to, option.remark), []).append(name)
    text = ["| option | in a recipe | |", "|---|---|---|"]
    for (keys, remark), names in groups.items():
        shown = ", ".join(f"`{key}`" for key in keys) or "no counterpart"
        text.append(f"| {', '.join(f'`{name}`' for name in names)} | {shown} | {remark} |")
    return "\n".join(text) + "\n"


def whole() -> str:
    """The page with its tables as they have to be."""
    return f"{PAGE.read_text().partition(BEGIN)[0]}{BEGIN}\n\n{tables()}"


if __name__ == "__main__":
    PAGE.write_text(whole())

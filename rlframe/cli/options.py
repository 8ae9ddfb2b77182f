"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

NoPlugin = Annotated[
    list[str] | None,
    typer.Option(
        "--no-plugin", help="Never import this distribution or distribution/name; may be repeated."
    ),
]
AllowLocalCode = Annotated[
    bool,
    typer.Option(
        "--allow-local-code", help="Let the recipe name components in files, ./file.py:X."
    ),
]

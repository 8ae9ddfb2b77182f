"""The last resort: an exception that nobody expected, as one message with what, where and what next."""

from __future__ import annotations

import os
import sysconfig
import tempfile
import traceback
from pathlib import Path

import rlframe
from rlframe.errors import keep_traceback
from rlframe.registry.discovery import KINDS, Registry
from rlframe.registry.offers import CORE
from rlframe.registry.owners import owner_of

_OURS = Path(rlframe.__file__).parent
_STANDARD = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def described(error: BaseException) -> str:
    """What happened, in whose code and where; the traceback is kept in a file that the text names."""
    text = str(error).strip()
    said = f"error: {type(error).__name__}{f': {text}' if text else ''}"
    if variable := _variable_in(text):
        said += f"\nThe environment variable {variable} has this value: is it meant?"
    blamed = _blamed(error)
    if blamed is not None:
        place, owner = blamed
        component = owner_of(error)
        said += f"\nIt came from {place}, which is {owner}{f': {component}' if component else ''}."
    if not any("raceback" in note for note in _notes(error)):
        keep_traceback(error, Path(tempfile.mkdtemp(prefix="rlframe-")))
    said += "".join(f"\n{note}" for note in _notes(error))
    if blamed is not None and blamed[1] == _THEMSELVES:
        said += (
            "\nrlframe should have said this in better words: please report it, with the traceback."
        )
    return said


_THEMSELVES = "code of rlframe's"


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


def _blamed(error: BaseException) -> tuple[str, str] | None:
    """(file:line, whose code it is) of the innermost call that no library made."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        owner = _owner(Path(frame.filename))
        if owner is not None:
            return f"{frame.filename}:{frame.lineno}", owner
    return None


def _owner(file: Path) -> str | None:
    """Whose code a file is; None for a library's."""
    if _OURS in file.parents:
        return _THEMSELVES
    for offer in (offer for kind in KINDS for offer in Registry().offers(kind)):
        package = offer.target.partition(":")[0].partition(".")[0]
        if offer.distribution != CORE and package in (file.stem, *file.parts):
            return f"code of the plugin {offer.distribution} {offer.version}"
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    if installed or file.name.startswith("<") or any(s in file.parents for s in _STANDARD):
        return None
    return "code of your own"


def _variable_in(text: str) -> str | None:
    """The environment variable whose value an error quotes, where a library reads one unchecked."""
    quoted = [
        name
        for name, value in sorted(os.environ.items())
        if len(value) > 1 and f"{value!r}" in text and not os.path.exists(value)
    ]
    return quoted[0] if quoted else None

"""What an option of another program becomes: the words in which the tables are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rlframe.errors import RecipeError


class _Marker:
    """A value that no file can hold."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


ABSENT: Final = _Marker("ABSENT")
"""There is no value: an option that the file leaves out, or nothing to write in the recipe."""

NOT_LITERAL: Final = _Marker("NOT_LITERAL")
"""The file computes the value, and nothing of it is run."""


class NoCounterpartError(Exception):
    """rlframe has nothing like this value of an option; the message says why and what to do."""


@dataclass(frozen=True)
class Written:
    """An option as it stands in the file."""

    name: str
    """As the program calls it, such as `kl_coef`."""
    value: Any
    """Plain data, or NOT_LITERAL."""
    line: int
    """In the file, from 1."""
    text: str
    """The option and its value in one line, as the file has them."""


class Given:
    """The options of one file, with the program's own defaults for those that it leaves out.

    Args:
      written: in the order of the file; of an option that is given twice, the last one counts.
      defaults: the program's, by name.
      processes: how many processes the run had.
    """

    def __init__(
        self, written: Iterable[Written], defaults: Mapping[str, Any], *, processes: int
    ) -> None:
        self.written = {option.name: option for option in written}
        self.processes = processes
        self._defaults = defaults

    def __contains__(self, name: str) -> bool:
        return name in self.written and self.written[name].value is not NOT_LITERAL

    def __getitem__(self, name: str) -> Any:
        """The value of an option; the program's default, or None, if the file leaves it out."""
        if name in self:
            return self.written[name].value
        default = self._defaults.get(name, ABSENT)
        return None if default is ABSENT else default

    def number(self, name: str) -> int | float:
        """The same of an option that is a number.

        Raises:
          NoCounterpartError: there is none.
          RecipeError: it is something else.
        """
        value = _number(self[name])
        if value is None and name not in self.written:
            raise NoCounterpartError(f"it needs {name}, which the file does not give")
        if value is None:
            option = self.written[name]
            raise RecipeError(
                f"line {option.line}: {option.text}: {name} is a number. Correct it in the file"
            )
        return value

    def count(self, name: str) -> int:
        """The same of an option that counts something, from 1.

        Raises:
          RecipeError: it is something else.
        """
        value = self.number(name)
        if value != int(value) or value < 1:
            option = self.written[name]
            raise RecipeError(
                f"line {option.line}: {option.text}: {name} is a whole number from 1. Correct it in "
                "the "
                "file"
            )
        return int(value)


def _number(value: Any) -> int | float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


Value = Callable[[Given], Any]
"""Makes the value of a key of all options; a mapping of dotted keys to values sets several keys."""


@dataclass(frozen=True)
class Option:
    """One line of a table.

    `to` holds keys of the recipe, dotted; none of them if there is no counterpart.
    """

    to: tuple[str, ...] = ()
    remark: str = ""
    """What differs, or why there is no counterpart and what to do instead."""
    value: Value | None = None
    """None copies the option's own value."""
    default: Any = ABSENT
    """The program's own, which the recipe gets as well where rlframe's differs."""


def to(*keys: str, value: Value | None = None, default: Any = ABSENT, remark: str = "") -> Option:
    """An option that becomes these keys."""
    return Option(keys, remark, value, default)


def none(reason: str, *, default: Any = ABSENT) -> Option:
    """An option that has no counterpart; the reason says what to do instead."""
    return Option((), reason, None, default)


def unless(name: str, *neutral: Any, reason: str, default: Any = ABSENT) -> Option:
    """An option without a counterpart, which does nothing at these values."""

    def value(given: Given) -> Any:
        found = given[name]
        amount = _number(found)
        if found not in neutral and (amount is None or amount not in neutral):
            raise NoCounterpartError(reason)
        return ABSENT

    words = dict.fromkeys(str(n).lower() for n in neutral if n is not None)
    shown = f"{', '.join(words)}: as rlframe does; otherwise: " if words else ""
    return Option((), f"{shown}{reason}", value, default)


def number(name: str) -> Value:
    """The option as a number."""
    return lambda given: given.number(name)


def flag(name: str) -> Value:
    """The option as true or false."""
    return lambda given: truth(given[name])


def truth(value: Any) -> bool:
    """Whether a value is true, in the words that command lines have for it.

    Raises:
      RecipeError: it is neither true nor false.
    """
    word = str(value).lower()
    if word in ("true", "1", "yes", "on", "t", "y"):
        return True
    if word in ("false", "0", "no", "off", "none", "f", "n"):
        return False
    raise RecipeError(f"{str(value)[:60]!r} is neither true nor false. Correct it in the file")


def chosen(name: str, *, reason: str, **names: Any) -> Value:
    """One of several words, each with its counterpart.

    Args:
      name: of the option.
      reason: said of any other word.
      names: theirs -> ours.
    """

    def value(given: Given) -> Any:
        word = str(given[name])
        if word not in names:
            raise NoCounterpartError(f"{word!r} {reason}")
        return names[word]

    return value


@dataclass
class Row:
    """What became of one option."""

    option: Written
    outcome: str
    """converted, default, none or unknown."""
    message: str


@dataclass
class Settings:
    """The keys of a recipe that is being made, and where each comes from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, list[str]] = field(default_factory=dict)

    def set(self, key: str, value: Any, origin: str) -> None:
        """Write a key; a value of None is rlframe's own for an absent one, and is not written."""
        self.values[key] = value
        origins = self.origins.setdefault(key, [])
        if origin and origin not in origins:
            origins.append(origin)

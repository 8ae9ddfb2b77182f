"""The options of a command in a shell script. Nothing is run: variables and arrays that the script sets
to plain text are filled in, and everything else that a shell would compute is said to be unknown.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from rlframe.convert.option import NOT_LITERAL, Written
from rlframe.errors import RecipeError
from rlframe.text import lines

LAUNCH = "launch."
"""In front of the name of an option that stands before the program, such as `launch.num_processes`."""

_ENDS = {"|", "||", "&&", ";", "&", "EOF", ")"}
_REDIRECTION = re.compile(r"\d?&?[<>]")
_ASSIGNMENT = re.compile(r"(?:export )?\s*([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)(?:\[@\])?\}|([A-Za-z_]\w*))")
_ESCAPES = re.compile(r"\$'((?:[^'\\]|\\.)*)'")
_NUMBER = re.compile(r"-\.?\d")


class Word(NamedTuple):
    """A word of a command, and the line on which it stands."""

    text: str
    line: int


class Command(NamedTuple):
    """A command that runs the program that was looked for."""

    program: Word
    before: list[Word]
    """From the beginning of the command."""
    after: list[Word]


def find_command(text: str, program: re.Pattern[str], what: str) -> Command:
    """The one command that runs a program.

    Args:
      text: a shell script, or a command line.
      program: matches the word that is the program.
      what: the program in a few words, for messages.

    Raises:
      RecipeError: there is none, or several, or the text is no shell script.
    """
    found = []
    for words in _commands(text):
        for place, word in enumerate(words):
            if program.search(word.text):
                found.append(Command(word, words[:place], _until_the_end(words[place + 1 :])))
                break
    if not found:
        raise RecipeError(
            f"no command in it runs {what}. Give the script or command line that does"
        )
    if len(found) > 1:
        numbers = ", ".join(str(command.program.line) for command in found)
        raise RecipeError(
            f"several commands run {what}, on lines {numbers}. Keep the one that is to be converted in "
            "a file of its own"
        )
    return found[0]


def options_of(command: Command) -> list[Written]:
    """The options of a command; those in front of the program have names that begin with LAUNCH."""
    front = [replace(option, name=f"{LAUNCH}{option.name}") for option in _options(command.before)]
    return [*front, *_options(command.after)]


def _options(words: list[Word]) -> Iterator[Written]:
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if not word.text.startswith("--") or word.text == "--":
            continue
        name, equals, inline = word.text.removeprefix("--").partition("=")
        values = [inline] if equals else []
        while not equals and place < len(words) and not _is_option(words[place].text):
            values.append(words[place].text)
            place += 1
        shown = f"{word.text} {' '.join(values)}" if values and not equals else word.text
        plain = values[0] if len(values) == 1 else values or True
        computed = any("$" in value or "`" in value for value in values)
        yield Written(name, NOT_LITERAL if computed else plain, word.line, shown)


def _is_option(text: str) -> bool:
    return text.startswith("-") and not _NUMBER.match(text)


def _until_the_end(words: list[Word]) -> list[Word]:
    """The words of a command up to what begins another one, or says where its output goes."""
    for place, word in enumerate(words):
        if word.text in _ENDS or _REDIRECTION.match(word.text):
            return words[:place]
    return words


def _commands(text: str) -> Iterator[list[Word]]:
    """The words of each command, with the variables that the script itself has set filled in."""
    variables: dict[str, list[Word]] = {}
    for words in _logical_lines(text):
        assigned = _assignment(words)
        if assigned is not None:
            name, values = assigned
            variables[name] = [v for value in values for v in _filled(value, variables)]
            continue
        yield [v for word in words for v in _filled(word, variables)]


def _assignment(words: list[Word]) -> tuple[str, list[Word]] | None:
    """The name and the words of `NAME=value`, `NAME=(a b)` or `export NAME=value`."""
    if words and words[0].text == "export":
        words = words[1:]
    found = _ASSIGNMENT.fullmatch(words[0].text) if words else None
    if found is None:
        return None
    name, value = found.groups()
    first = Word(value.removeprefix("("), words[0].line)
    if value.startswith("("):
        inner = [Word(word.text.removesuffix(")"), word.line) for word in (first, *words[1:])]
        return name, [word for word in inner if word.text]
    if len(words) > 1:
        return None  # a variable of one command alone
    several = value.startswith("--")  # the options of a command, which a shell splits
    return name, [Word(v, first.line) for v in (shlex.split(value) if several else [value])]


def _filled(word: Word, variables: dict[str, list[Word]]) -> list[Word]:
    """A word with its variables filled in; an array is as many words as it has, each on its line."""
    whole = _VARIABLE.fullmatch(word.text)
    if whole and (name := whole[1] or whole[2]) in variables:
        values = variables[name]
        return values if len(values) != 1 else [Word(values[0].text, word.line)]

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        known = variables.get(name)
        return found[0] if known is None else " ".join(word.text for word in known)

    return [Word(_VARIABLE.sub(value, word.text), word.line)]


def _logical_lines(text: str) -> Iterator[list[Word]]:
    """The words of each line, with the lines that continue it: behind a backslash, in quotes, in an
    array. A comment between them is passed over.
    """
    words: list[Word] = []
    pending, start, open_array = "", 0, False
    for number, line in enumerate(lines(text), 1):
        pending, start = (f"{pending}\n{line}", start) if pending else (line, number)
        continued = pending.rstrip().endswith("\\")
        chunk = pending.rstrip().removesuffix("\\") if continued else pending
        try:
            found = shlex.split(_ESCAPES.sub(_unescaped, chunk), comments=True)
        except ValueError:  # a quote that the next line closes
            continue
        pending = ""
        words += [Word(word, start) for word in found]
        first = found[0] if found else ""
        open_array = open_array or bool(re.match(r"(?:export )?[A-Za-z_]\w*=\(", first))
        open_array = open_array and not (found and found[-1].endswith(")"))
        comment = bool(words) and chunk.lstrip().startswith("#")
        if not (continued or open_array or comment):
            if words:
                yield words
            words = []
    if pending:
        raise RecipeError(f"line {start}: a quote is not closed. Correct it in the file")
    if words:
        yield words


def _unescaped(found: re.Match[str]) -> str:
    """Bash's $'...' as a word in plain quotes."""
    text = re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), found[1])
    return shlex.quote(text)

"""Which column of a data set holds what: by name, by the recipe's `columns`, or by a known form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from rlframe.data.conversations import Message, is_conversation, turns
from rlframe.data.rows import Lazy, Mapped, Picked
from rlframe.data.verdicts import LeftOut, Verdict
from rlframe.errors import RecipeError, did_you_mean, listed
from rlframe.types import Row

_TEXT = ("text", "prompt", "response", "chosen", "rejected")

Columns = Mapping[str, Any]
"""Role -> the column, or columns, that hold it; a role may have its own name, or be None."""
Sources = Mapping[str, tuple[str, ...]]
"""Role -> its columns, all of which are there."""


@dataclass(frozen=True)
class Understood:
    """Rows with their roles beside all columns."""

    rows: Lazy[Row]
    notices: tuple[str, ...]
    """What was recognised, changed or left out, a sentence each."""


def understand(rows: Lazy[Row], names: Sequence[str], columns: Columns) -> Understood:
    """Find the roles of a data set's columns, and bring each row into one form.

    Conversations become lists of messages with `role` and `content`. Of two compared answers the better
    one becomes `chosen`.

    Args:
      rows: as they were read.
      names: the columns of the rows.
      columns: what the recipe says of them.

    Raises:
      RecipeError: a column is not there, a row is malformed, or nothing is left.
    """
    sources, notices = _sources(names, columns)
    verdict = None
    if columns.get("answers"):
        verdict = Verdict(columns["answers"], columns["preferred"], names, rows)
        notices += verdict.notices()
    form = _Form(sources, names, verdict)
    types = _count_types(rows, form.text_columns())
    notices += _converted(types)
    form.convertible = frozenset(name for name, seen in types.items() if _scalars(seen))
    if form.is_plain(types):
        changed: Lazy[Row] = rows
        if form.convertible or any(wanted != (role,) for role, wanted in sources.items()):
            changed = Mapped(rows, form.renamed)
        return Understood(changed, tuple(notices))
    kept, left_out = _survey(rows, form)
    used = rows if len(kept) == len(rows) else Picked(rows, kept)
    return Understood(cast("Lazy[Row]", Mapped(used, form.read)), (*notices, *left_out))


def _survey(rows: Lazy[Row], form: _Form) -> tuple[list[int], list[str]]:
    """(the rows that can be used, how many are left out for what reason); every row is read."""
    kept: list[int] = []
    reasons: Counter[str] = Counter()
    for index, found in enumerate(Mapped(rows, form.read)):
        if isinstance(found, str):
            reasons[found] += 1
        else:
            kept.append(index)
    if rows and not kept:
        raise RecipeError(f"all {len(rows)} rows are left out: {'; '.join(reasons)}")
    return kept, [f"{n} of {len(rows)} rows are left out: {why}" for why, n in reasons.items()]


def _sources(
    names: Sequence[str], columns: Columns
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """(role -> its columns, what was recognised)."""
    sources: dict[str, tuple[str, ...]] = {}
    for role, given in columns.items():
        if given is None or role in ("answers", "preferred"):
            continue
        wanted = (given,) if isinstance(given, str) else tuple(given)
        missing = [name for name in wanted if name not in names]
        if not missing:
            sources[role] = wanted
        elif wanted != (role,):
            raise missing_column(f"columns.{role}", missing[0], names)
    _refuse_shared(columns)
    notices = _recognised(names, sources, columns)
    used = {name for wanted in sources.values() for name in wanted}
    hidden = [role for role in sources if role in names and role not in used]
    return sources, notices + [
        f"column {role!r} of the data is hidden by {listed(sources[role])}, which is the {role} here"
        for role in hidden
    ]


def missing_column(where: str, name: str, names: Sequence[str]) -> RecipeError:
    """That a column is not there, with a guess and those that are."""
    return RecipeError(
        f"{where}: the data has no column {name!r}.{did_you_mean(name, names)} It has {listed(names)}"
    )


def _refuse_shared(columns: Columns) -> None:
    """Two roles that the recipe reads from one column are a mistake."""
    readers: dict[str, list[str]] = {}
    for role, given in columns.items():
        if given is None or given == role or role == "preferred":
            continue
        for name in [given] if isinstance(given, str) else given:
            readers.setdefault(name, []).append(role)
    for name, roles in readers.items():
        if len(roles) > 1:
            raise RecipeError(f"columns: {' and '.join(roles)} are both read from column {name!r}")


def _recognised(
    names: Sequence[str], sources: dict[str, tuple[str, ...]], columns: Columns
) -> list[str]:
    """Add the roles of columns that have the names of known forms; what was added."""
    notices = []

    def take(role: str, *wanted: str, form: str) -> None:
        sources[role] = wanted
        notices.append(f"{role} is read from {' and '.join(wanted)}, as in data of {form}'s form")

    if "messages" not in sources:
        for name in ("conversations", "conversation"):
            if name in names and "messages" not in sources:
                take("messages", name, form="ShareGPT")
    if not sources.keys() & {"prompt", "messages", "text"} and "instruction" in names:
        extra = [name for name in ("input", "context") if name in names][:1]
        take("prompt", "instruction", *extra, form="Alpaca")
    if "prompt" in sources and "response" not in sources:
        for name in ("output", "completion"):
            used = columns.get("answers") or ()
            if name in names and "response" not in sources and name not in used:
                take("response", name, form="Alpaca" if name == "output" else "TRL")
    return notices


def _count_types(rows: Lazy[Row], names: Sequence[str]) -> dict[str, Counter[type]]:
    types: dict[str, Counter[type]] = {name: Counter() for name in names}
    for row in rows if types else ():
        for name, seen in types.items():
            seen[type(row.get(name))] += 1
    return types


def _scalars(seen: Counter[type]) -> int:
    """How many values of a column with text are numbers, or true or false."""
    return seen[bool] + seen[int] + seen[float] if seen[str] else 0


def _converted(types: Mapping[str, Counter[type]]) -> list[str]:
    return [
        f"column {name!r}: {_scalars(seen)} values are numbers or true or false, and are read as text"
        for name, seen in types.items()
        if _scalars(seen)
    ]


class _Form:
    """How a row of the data set becomes one with roles.

    Args:
      sources: of the roles.
      names: the columns of the data.
      verdict: where two answers are compared.
    """

    def __init__(self, sources: Sources, names: Sequence[str], verdict: Verdict | None) -> None:
        self._sources = sources
        self._verdict = verdict
        self._alpaca = sources.get("prompt", ("",))[0] == "instruction"
        self._sharegpt = sources.get("messages", ("",))[0] in ("conversations", "conversation")
        self._framed = self._alpaca and bool({"system", "history"} & set(names))
        self.convertible: frozenset[str] = frozenset()
        """Columns of text in which some values are numbers."""

    def text_columns(self) -> list[str]:
        """Columns that are read as text."""
        roles = [name for role in _TEXT for name in self._sources.get(role, ())]
        return [*roles, *(self._verdict.answers if self._verdict else ())]

    def is_plain(self, types: Mapping[str, Counter[type]]) -> bool:
        """Whether a row needs nothing but names: it holds texts, and no conversation."""
        conversations = any(seen[list] + seen[dict] for seen in types.values())
        return not (
            conversations
            or "messages" in self._sources
            or self._framed
            or self._verdict is not None
        )

    def renamed(self, row: Row) -> Row:
        """The row with each role beside all columns."""
        return {**row, **{role: self._value(row, names) for role, names in self._sources.items()}}

    def read(self, row: Row) -> Row | str:
        """The row with its roles, in the one form of conversations, or why it is left out."""
        found = dict(self.renamed(row))
        if self._verdict is not None:
            try:
                won = self._verdict.of(row)
            except LeftOut as reason:
                return str(reason)
            first, second = (self._text(row, name) for name in self._verdict.answers)
            found["chosen"], found["rejected"] = (first, second) if won == 1 else (second, first)
        self._read_messages(found)
        self._read_pair(found)
        return found

    def _value(self, row: Row, names: Sequence[str]) -> Any:
        if len(names) == 1:
            return self._text(row, names[0])
        parts = [self._text(row, name) for name in names]
        odd = [part for part in parts if not isinstance(part, str | None)]
        return odd[0] if odd else "\n".join(part for part in parts if part)

    def _text(self, row: Row, name: str) -> Any:
        """A value; a number is text in a column where others are."""
        value = row.get(name)
        return str(value) if name in self.convertible and isinstance(value, int | float) else value

    def _read_messages(self, found: dict[str, Any]) -> None:
        if is_conversation(found.get("prompt")) and not found.get("messages"):
            found["messages"] = [*turns(found["prompt"], "prompt"), *_reply(found.get("response"))]
        elif "messages" in self._sources and is_conversation(found["messages"]):
            found["messages"] = turns(found["messages"], self._sources["messages"][0])
        if self._framed and not found.get("messages"):
            self._read_alpaca(found)
        system = found.get("system") if self._sharegpt else None
        if system and found.get("messages") and found["messages"][0].get("role") != "system":
            found["messages"] = [{"role": "system", "content": system}, *found["messages"]]

    def _read_alpaca(self, found: dict[str, Any]) -> None:
        """Messages from the columns `system` and `history`, a list of questions with answers."""
        system, history = found.get("system"), found.get("history") or ()
        if not (system or history):
            return
        past = [
            {"role": role, "content": text}
            for question_and_answer in history
            for role, text in zip(("user", "assistant"), question_and_answer, strict=True)
        ]
        front = [{"role": "system", "content": system}] if system else []
        asked = {"role": "user", "content": found["prompt"]}
        found["messages"] = [*front, *past, asked, *_reply(found.get("response"))]

    def _read_pair(self, found: dict[str, Any]) -> None:
        """Answers that are messages, with the names of their roles."""
        for role in ("chosen", "rejected"):
            if isinstance(found.get(role), list | dict):
                found[role] = turns(found[role], role)


def _reply(response: Any) -> list[Message]:
    """The response as the assistant's message, or messages."""
    if is_conversation(response):
        return turns(response, "response")
    return [{"role": "assistant", "content": response}] if isinstance(response, str) else []

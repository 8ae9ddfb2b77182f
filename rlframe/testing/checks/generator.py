"""What a data generator promises."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlframe.api.component import DataGenerator
from rlframe.api.rows import (
    ROWS,
    generated_rows,
    refuse_odd_values,
    refuse_other_columns,
    refuse_other_heldout,
    rows_of,
)
from rlframe.data.roles import understand
from rlframe.data.rows import lazy, names_of
from rlframe.data.split import split_apart, split_rows
from rlframe.errors import RecipeError
from rlframe.registry.lint import unfit
from rlframe.testing.check import Broken, DoesNotApply, check, kept
from rlframe.testing.checks.common import (
    hashes_of_another_process,
    picklable_config,
    random_states_moved,
)
from rlframe.testing.elsewhere import prints_elsewhere, prints_of
from rlframe.testing.subject import Subject
from rlframe.types import Row

Generator = Subject[DataGenerator[Any]]

ROLES = ("text", "prompt", "response", "messages", "chosen", "rejected")
"""Columns that a recipe reads by these names if its `columns` do not say otherwise."""
MARK = "changed by the conformance kit"


def _rows(subject: Generator, method: str = "rows", **changes: Any) -> list[Row]:
    """The generator's answer, with some keys of its config changed."""
    answer = getattr(subject.component, method)(subject.validated(**changes))
    with kept():
        return generated_rows(answer, method)


def _both(subject: Generator) -> dict[str, list[Row]]:
    with kept():
        return rows_of(
            subject.component,
            lambda method: getattr(subject.component, method)(subject.validated()),
        )


@check(
    expected="from the class method `rows` a list of at least one row, a mapping from names of columns "
    "to values; and from `heldout_rows` such a list, which may be empty",
    likely="`@classmethod` is missing; rows are yielded, or returned as tuples, as columns, or not at "
    "all",
    do='decorate the method with `@classmethod` and return a list: [{"prompt": "1+1=", "answer": "2"}]',
)
def a_list_of_rows(subject: Generator) -> str:
    """First of all: a generator is never built, and without rows there is nothing to check."""
    made = _both(subject)
    if problems := unfit(subject.component):
        raise Broken("; ".join(problems))
    subject.component.check(subject.validated(), subject.context)
    return f"{len(made['rows'])} rows, {len(made['heldout_rows'])} held out"


@check(
    expected="rows of plain data, which come back from JSON as they were: text, finite numbers, true, "
    "false, None, and lists and dicts of these",
    likely="a NumPy number or an array, a tuple, a set, a date, an object, NaN for a missing value, or "
    "text with half a character",
    do="turn values into plain ones where the row is made: `int(x)`, `list(x)`, `str(x)`, and None "
    "for a missing value",
)
def plain_data(subject: Generator) -> None:
    """Ranks compare rows, records of samples keep them, and code asks whether a value is a list."""
    with kept():
        refuse_odd_values(_both(subject))


@check(
    expected="the same columns in every row",
    likely="a column is left out of rows that have no value for it, or is misspelt in some of them",
    do="write None where a row has no value",
)
def same_columns(subject: Generator) -> None:
    """A reward or a template that reads a column needs it in every row."""
    with kept():
        refuse_other_columns(_both(subject))


@check(
    expected="held-out rows with the columns of the rows, if there are any",
    likely="the two methods build their rows in two places, which went apart",
    do="make the rows of both in one function",
)
def heldout_rows_like_rows(subject: Generator) -> str | None:
    """A policy is measured on them as it was trained on the others."""
    made = _both(subject)
    if not made["heldout_rows"]:
        return "it holds out none: the recipe's `heldout` does"
    with kept():
        refuse_other_heldout(made)
    return None


@check(
    expected="rows that a run can read: conversations as lists of messages with `role` and `content`, "
    "and rows that are left to train on when those are gone that ask what a held-out row asks",
    likely="a message has other keys, or a conversation is a text; or all prompts are held out as well",
    do="write conversations as [{'role': 'user', 'content': '...'}, ...], and draw held-out prompts "
    "that `rows` does not draw",
)
def readable_as_a_data_set(subject: Generator) -> str:
    """Read as a run reads it whose recipe says nothing of its columns."""
    columns = {role: role for role in ROLES}
    notices: list[str] = []
    parts = []
    try:
        for rows in _both(subject).values():
            found = understand(lazy(rows), names_of(rows), columns)
            parts.append(found.rows)
            notices += found.notices
        split = split_apart(*parts) if len(parts[1]) else split_rows(parts[0], heldout=0.0)
    except RecipeError as error:
        raise Broken(f"a run would be refused: {error}") from None
    lost = len(parts[0]) - len(split.train)
    if lost:
        notices.append(f"{lost} of {len(parts[0])} rows ask what a held-out row asks")
    return "; ".join(notices)


@check(
    expected="the same rows in the same order whenever it is asked, and in another process",
    likely="random numbers that the config does not seed, the order of a set, `hash` of a text, which "
    "Python salts differently in every process, the time, or the order of a folder's files",
    do="draw from `random.Random(config.seed)`, sort what comes from a set or a folder, and take "
    "`zlib.crc32(text.encode())` for a hash",
)
def deterministic(subject: Generator) -> str | None:
    """Every rank makes the rows for itself, and a run that is resumed makes them again."""
    first = {method: prints_of(rows) for method, rows in _both(subject).items()}
    _compare(first, {m: prints_of(rows) for m, rows in _both(subject).items()}, "when asked again")
    with hashes_of_another_process():
        salted = _both(subject)
    again = {method: prints_of(rows) for method, rows in salted.items()}
    _compare(first, again, "with the `hash` of another process")
    found = prints_elsewhere(subject.component, subject.validated(), ROWS)
    if isinstance(found, str):
        return f"not tried in another process: {found}"
    _compare(first, found, "in another process")
    return None


def _compare(
    first: Mapping[str, Sequence[str]], again: Mapping[str, Sequence[str]], when: str
) -> None:
    for method, before in first.items():
        after = again[method]
        if len(before) != len(after):
            raise Broken(f"`{method}` returned {len(before)} rows, and {len(after)} {when}")
        other = [k for k, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
        if other:
            raise Broken(
                f"{len(other)} of {len(before)} rows of `{method}` were others {when}, the first of "
                f"them row {other[0] + 1}"
            )


@check(
    expected="the global random states of Python, NumPy and torch unchanged",
    likely="`random.seed(config.seed)`, `random.choice` or `numpy.random`, which everybody shares",
    do="draw from a generator of its own: `random.Random(config.seed)`",
)
def global_rng_untouched(subject: Generator) -> None:
    """Random numbers that a plugin takes change those of everything after it."""
    moved = random_states_moved(lambda: _both(subject))
    if moved:
        raise Broken(f"it moved the global random state of {', '.join(moved)}")


@check(
    expected="rows that belong to the caller: what is changed in them does not show in the next call",
    likely="the rows are kept, in `functools.cache` or in a constant of the module, and returned again",
    do="make new rows in every call, or return `copy.deepcopy` of those that are kept",
)
def rows_are_the_callers(subject: Generator) -> None:
    """Two data sets of a recipe may be made by one generator with one config."""
    for method in ROWS:
        kept = _containers(getattr(subject.component, method)(subject.validated()))
        for one in kept:
            one.append(MARK) if isinstance(one, list) else one.update({MARK: True})
        try:
            again = _containers(getattr(subject.component, method)(subject.validated()))
            shared = [one for one in again if MARK in one]
        finally:
            for one in kept:
                one.pop() if isinstance(one, list) else one.pop(MARK)
        if shared:
            what = "list" if isinstance(shared[0], list) else "dict"
            raise Broken(f"a {what} of `{method}` had in it what was put there after another call")


def _containers(value: Any) -> list[Any]:
    """Every list and dict in an answer, itself included, once."""

    def found(inner: Any) -> Iterator[Any]:
        if isinstance(inner, list | dict):
            yield inner
        if isinstance(inner, Mapping):
            inner = list(inner.values())
        if isinstance(inner, Sequence) and not isinstance(inner, str | bytes):
            for part in inner:
                yield from found(part)

    return list({id(one): one for one in found(value)}.values())


@check(
    expected="other rows with another `seed`, if the config has a key of that name",
    likely="the seed is a key that nothing reads, or the generator is seeded by a constant",
    do="seed by it, `random.Random(config.seed)`, or take the key out of the config",
)
def seed_changes_rows(subject: Generator) -> str | None:
    """A run is repeated with other seeds to see what is chance."""
    if "seed" not in subject.component.Config.model_fields:
        return "its config has no seed"
    given = getattr(subject.validated(), "seed", None)
    other = given + 1 if isinstance(given, int) else 1
    try:
        subject.validated(seed=other)
    except RecipeError:
        raise DoesNotApply(f"its config does not take {other!r} as a seed") from None
    for method in ROWS:
        if prints_of(_rows(subject, method)) != prints_of(_rows(subject, method, seed=other)):
            return None
    raise Broken(f"the same rows with the seeds {given!r} and {other!r}")


@check(
    expected="a thousand rows within the time that the suite allows (10 s unless it says more)",
    likely="a file is read or a model is asked once for each row",
    do="read once; store what takes long in a file, and give its `path` in the recipe instead; or set "
    "`seconds_per_thousand` to what it has to cost",
)
def time_per_thousand(subject: Generator) -> str:
    """Every process of a run makes all rows for itself."""
    start = time.perf_counter()
    count = sum(map(len, _both(subject).values()))
    seconds = (time.perf_counter() - start) / max(count / 1000, 1.0)
    if seconds > subject.seconds_per_thousand:
        raise Broken(f"{seconds:.2g} s; {subject.seconds_per_thousand:g} s are allowed")
    return f"{seconds:.2g} s"


GENERATOR = (
    a_list_of_rows,
    picklable_config,
    plain_data,
    same_columns,
    heldout_rows_like_rows,
    readable_as_a_data_set,
    deterministic,
    global_rng_untouched,
    rows_are_the_callers,
    seed_changes_rows,
    time_per_thousand,
)

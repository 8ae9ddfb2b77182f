"""Which of two answers people preferred, as comparisons are published: 1 or 2, a or b, or a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlframe.errors import RecipeError, did_you_mean, listed
from rlframe.types import Row


class LeftOut(Exception):  # noqa: N818  nothing went wrong
    """A row that cannot be used, and may be left out: its text says why, without the row's content."""


_WORDS = {"a": 1, "b": 2, "model_a": 1, "model_b": 2, "tie": 0, "tie (bothbad)": 0, "": 0}


class Verdict:
    """Reads the columns `answers` and `preferred`.

    Several columns of `preferred` are votes, and the answer with more of them has won. A vote is the
    number of the answer, from 1, with 0 for neither; from 0 if the data have 0 and 1 alone; or the name
    of its column, or a or b.

    Args:
      answers: the columns of the two answers.
      preferred: the column, or columns, of the votes.
      names: the columns of the data.
      rows: all of them: they tell from where the votes count.

    Raises:
      RecipeError: a column is not there.
    """

    def __init__(
        self,
        answers: Sequence[str],
        preferred: str | Sequence[str],
        names: Sequence[str],
        rows: Sequence[Row],
    ) -> None:
        self.answers = tuple(answers)
        self._votes = (preferred,) if isinstance(preferred, str) else tuple(preferred)
        for role, wanted in (("answers", self.answers), ("preferred", self._votes)):
            for name in wanted:
                if name not in names:
                    raise RecipeError(
                        f"columns.{role}: the data has no column {name!r}."
                        f"{did_you_mean(name, names)} It has {listed(names)}"
                    )
        numbers = {_number(row.get(name)) for row in rows for name in self._votes} - {None}
        self._first = 0 if numbers == {0, 1} else 1

    def notices(self) -> list[str]:
        """How the votes are read where the data leave that open."""
        if self._first == 1:
            return []
        return [
            f"{listed(self._votes)} counts from 0, since no number in it is above 1: 0 is "
            f"{self.answers[0]}, 1 is {self.answers[1]}"
        ]

    def of(self, row: Row) -> int:
        """1 or 2: the answer that has won.

        Raises:
          LeftOut: neither has.
          RecipeError: a vote cannot be understood.
        """
        votes = [self._vote(row.get(name), name) for name in self._votes]
        balance = votes.count(1) - votes.count(2)
        if balance == 0:
            raise LeftOut("neither answer is preferred")
        return 1 if balance > 0 else 2

    def _vote(self, value: Any, name: str) -> int:
        number = _number(value)
        if number is not None:
            vote = number + 1 - self._first
            if vote in (0, 1, 2):
                return vote
        word = str("" if value is None else value).strip().lower()
        if isinstance(value, str) and value in self.answers:
            return self.answers.index(value) + 1
        if number is None and not isinstance(value, bool) and word in _WORDS:
            return _WORDS[word]
        raise RecipeError(
            f"column {name!r}: {value!r} does not say which answer is preferred; known are 1, 2, 0 for "
            f"neither, a, b, tie, and the names {', '.join(self.answers)}"
        )


def _number(value: Any) -> int | None:
    """A vote that is a number, or text of one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() else None
    return int(value) if float(value).is_integer() else None

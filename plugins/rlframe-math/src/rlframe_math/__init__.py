"""A reward for answers that are mathematically equal to the gold answer."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

from math_verify import parse, verify  # type: ignore[import-untyped]
from pydantic import Field, PositiveInt

from rlframe.api import ColumnName, Context, PluginConfig, RewardBatch, RewardProvider


class MathVerifyConfig(PluginConfig):
    column: ColumnName = Field(
        "answer", description="column with the gold answer alone, LaTeX or plain"
    )
    correct: float = Field(1.0, description="score of the right answer")
    wrong: float = Field(0.0, description="of another one; between the two others: partial credit")
    unreadable: float = Field(0.0, description="of a response in which no answer was found")
    timeout_seconds: PositiveInt | None = Field(
        5, description="for reading and for comparing one answer; no limit, in any thread, if null"
    )


class MathVerify(RewardProvider[MathVerifyConfig]):
    r"""Is the answer in the response equal to the gold answer? 1/2, 0.5 and \frac{1}{2} are.

    math-verify finds the answer (in \boxed{} or $...$ first, then a plain number), and sympy compares.
    What it cannot read within the time limit counts as unreadable, and what it cannot show to be
    equal as wrong: both are verdicts on the response. A gold answer that cannot be read is none, and
    stops the run.

    The time limit is an alarm signal of the process. Python delivers it to the main thread alone, so
    that a limit is refused in any other, and it takes the place of an alarm that is already set.
    """

    cheap_to_repeat = True

    def __init__(self, config: MathVerifyConfig, context: Context) -> None:
        super().__init__(config, context)
        self._gold = lru_cache(maxsize=10_000)(self._read_gold)  # groups share their answer

    def score(self, batch: RewardBatch) -> list[float]:
        limited = self.config.timeout_seconds is not None
        if limited and threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "math_verify limits its time by a signal, which only the main thread can receive, and "
                "this is another one. Set `timeout_seconds: null` to go without a limit"
            )
        golds = batch.column(self.config.column)
        judged = zip(golds, batch.response_texts, strict=True)
        return [self._score(str(gold), response) for gold, response in judged]

    def _score(self, gold: str, response: str) -> float:
        right, found = self._gold(gold), self._parse(response)
        if not found:
            return self.config.unreadable
        equal = verify(right, found, timeout_seconds=self.config.timeout_seconds)
        return self.config.correct if equal else self.config.wrong

    def _read_gold(self, gold: str) -> list[Any]:
        # LaTeX is only looked for between $: of a bare "x^2 + 1" nothing but the 1 would be found.
        read = self._parse(gold if "$" in gold or "\\boxed" in gold else f"${gold}$")
        if not read:
            raise ValueError(
                f"the gold answer {gold!r} in column {self.config.column!r} cannot be read"
            )
        return read

    def _parse(self, text: str) -> list[Any]:
        """What was found, as sympy expressions; nothing if it could not be parsed in time."""
        limit = self.config.timeout_seconds
        return list(parse(text, fallback_mode="no_fallback", parsing_timeout=limit))

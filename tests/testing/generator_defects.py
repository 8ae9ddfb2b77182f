"""Data generators that each break one promise, and those that they were made of."""

from __future__ import annotations

import functools
import random
from datetime import date
from typing import Any

import numpy

from rlframe.api import DataGenerator, PluginConfig
from tests.testing.expected import (
    CHANCE,
    GLOBAL,
    MEANING,
    NOBODY_READS,
    NOT_IN_A_RECIPE,
    REFUSED,
    TIME,
    Planted,
)


class Seeded(PluginConfig):
    rows: int = 20
    seed: int = 0


def drawn(config: Any, part: str) -> list[dict[str, Any]]:
    rng = random.Random(f"{config.seed} {part}")
    pairs = [(rng.randrange(100), rng.randrange(100)) for _ in range(config.rows)]
    return [{"prompt": f"{part} {a}+{b}=", "answer": str(a + b)} for a, b in pairs]


class Sums(DataGenerator[Seeded]):
    """Right: sums with their answers, and others held out."""

    @classmethod
    def rows(cls, config: Any) -> Any:
        return drawn(config, "train")

    @classmethod
    def heldout_rows(cls, config: Any) -> Any:
        return drawn(config, "heldout")


class Capitals(DataGenerator[PluginConfig]):
    """Right: a table of conversations, without a seed."""

    @classmethod
    def rows(cls, config: Any) -> Any:
        return tuple(
            {
                "messages": [
                    {"role": "user", "content": f"The capital of {land}?"},
                    {"role": "assistant", "content": capital},
                ],
                "note": None,
            }
            for land, capital in (("France", "Paris"), ("Peru", "Lima"))
        )


class OfInstances(Sums):
    def rows(self, config: Any) -> Any:  # type: ignore[override]
        return drawn(config, "train")


class Yields(Sums):
    @classmethod
    def rows(cls, config: Any) -> Any:
        yield from drawn(config, "train")


class NoReturn(Sums):
    @classmethod
    def heldout_rows(cls, config: Any) -> Any:
        drawn(config, "heldout")


class ByColumn(Sums):
    @classmethod
    def rows(cls, config: Any) -> Any:
        rows = drawn(config, "train")
        return {name: [row[name] for row in rows] for name in rows[0]}


class Tuples(Sums):
    @classmethod
    def rows(cls, config: Any) -> Any:
        return [(row["prompt"], row["answer"]) for row in drawn(config, "train")]


class Numbered(Sums):
    @classmethod
    def rows(cls, config: Any) -> Any:
        return [dict(enumerate(row.values())) for row in drawn(config, "train")]


class Nothing(Sums):
    @classmethod
    def rows(cls, config: Any) -> Any:
        return []


class Holds(PluginConfig):
    function: Any = None


class LambdaInItsConfig(DataGenerator[Holds]):
    example = {"function": lambda text: text}  # noqa: RUF012

    @classmethod
    def rows(cls, config: Any) -> Any:
        return [{"prompt": "one"}, {"prompt": "two"}]


class With(Sums):
    """The same rows with another column."""

    value: Any = None

    @classmethod
    def rows(cls, config: Any) -> Any:
        return [{**row, "more": cls.value} for row in drawn(config, "train")]

    @classmethod
    def heldout_rows(cls, config: Any) -> Any:
        return [{**row, "more": None} for row in drawn(config, "heldout")]


class NumPyNumbers(With):
    value = numpy.int64(3)


class Arrays(With):
    value = numpy.zeros(2)


class Pairs(With):
    value = (1, 2)


class Missing(With):
    value = float("nan")


class Dates(With):
    value = date(2024, 2, 29)


class HalfACharacter(With):
    value = "\ud83d"


class LeavesOut(Sums):
    @classmethod
    def rows(cls, config: Any) -> Any:
        rows = drawn(config, "train")
        return [row if int(row["answer"]) % 2 else {"prompt": row["prompt"]} for row in rows]


class OtherColumns(Sums):
    @classmethod
    def heldout_rows(cls, config: Any) -> Any:
        rows = drawn(config, "heldout")
        return [{"question": row["prompt"], "answer": row["answer"]} for row in rows]


class HoldsOutAll(Sums):
    @classmethod
    def heldout_rows(cls, config: Any) -> Any:
        return drawn(config, "train")


class SaysWho(Capitals):
    @classmethod
    def rows(cls, config: Any) -> Any:
        return [{"messages": [{"who": "user", "text": "Hello"}]}]


class Unseeded(Sums):
    @classmethod
    def rows(cls, config: Any) -> Any:
        noise = random.Random()  # from the operating system
        return [
            {**row, "prompt": f"{noise.random()} {row['prompt']}"} for row in super().rows(config)
        ]


class Hashes(Sums):
    @classmethod
    def rows(cls, config: Any) -> Any:
        return [{**row, "id": hash(row["prompt"])} for row in super().rows(config)]

    @classmethod
    def heldout_rows(cls, config: Any) -> Any:
        return [{**row, "id": 0} for row in drawn(config, "heldout")]


class InTheOrderOfASet(Sums):
    """Nothing in this process tells: a set of texts has another order in another one."""

    @classmethod
    def rows(cls, config: Any) -> Any:
        return [
            {"prompt": text, "answer": ""} for text in {r["prompt"] for r in super().rows(config)}
        ]


class Grows(Sums):
    asked = 0

    @classmethod
    def rows(cls, config: Any) -> Any:
        cls.asked += 1
        return [{**row, "prompt": f"{cls.asked}. {row['prompt']}"} for row in super().rows(config)]


class SeedsEverybody(Sums):
    @classmethod
    def rows(cls, config: Any) -> Any:
        random.seed(config.seed)
        return [
            {**row, "prompt": f"{random.random()} {row['prompt']}"} for row in super().rows(config)
        ]


class SeedsArrays(Sums):
    @classmethod
    def heldout_rows(cls, config: Any) -> Any:
        numpy.random.seed(config.seed)
        rows = drawn(config, "heldout")
        return [rows[k] for k in numpy.random.permutation(len(rows))]


class KeepsTheList(Sums):
    @classmethod
    @functools.cache
    def rows(cls, config: Any) -> Any:
        return drawn(config, "train")


class KeepsTheMessages(Capitals):
    SYSTEM = {"role": "system", "content": "Be brief."}  # noqa: RUF012

    @classmethod
    def rows(cls, config: Any) -> Any:
        rows = super().rows(config)
        return [{**row, "messages": [cls.SYSTEM, *row["messages"]]} for row in rows]


class SeedsByAConstant(Sums):
    @classmethod
    def rows(cls, config: Any) -> Any:
        return drawn(Seeded(rows=config.rows), "train")

    @classmethod
    def heldout_rows(cls, config: Any) -> Any:
        return ()


class TakesItsTime(Sums):
    """Too slow for a suite that allows next to nothing."""


RIGHT = (Sums, Capitals)

PLANTED = [
    Planted(OfInstances, "a_list_of_rows", REFUSED),
    Planted(Yields, "a_list_of_rows", REFUSED),
    Planted(NoReturn, "a_list_of_rows", REFUSED),
    Planted(ByColumn, "a_list_of_rows", REFUSED),
    Planted(Tuples, "a_list_of_rows", REFUSED),
    Planted(Numbered, "a_list_of_rows", REFUSED),
    Planted(Nothing, "a_list_of_rows", REFUSED),
    Planted(LambdaInItsConfig, "picklable_config", NOT_IN_A_RECIPE),
    Planted(NumPyNumbers, "plain_data", REFUSED),
    Planted(Arrays, "plain_data", REFUSED),
    Planted(Pairs, "plain_data", REFUSED),
    Planted(Missing, "plain_data", REFUSED),
    Planted(Dates, "plain_data", REFUSED),
    Planted(HalfACharacter, "plain_data", REFUSED),
    Planted(LeavesOut, "same_columns", REFUSED),
    Planted(OtherColumns, "heldout_rows_like_rows", REFUSED),
    Planted(HoldsOutAll, "readable_as_a_data_set", REFUSED),
    Planted(SaysWho, "readable_as_a_data_set", REFUSED),
    Planted(Unseeded, "deterministic", CHANCE),
    Planted(Hashes, "deterministic", CHANCE),
    Planted(InTheOrderOfASet, "deterministic", CHANCE),
    Planted(Grows, "deterministic", CHANCE),
    Planted(SeedsEverybody, "global_rng_untouched", GLOBAL),
    Planted(SeedsArrays, "global_rng_untouched", GLOBAL),
    Planted(KeepsTheList, "rows_are_the_callers", NOBODY_READS),
    Planted(KeepsTheMessages, "rows_are_the_callers", NOBODY_READS),
    Planted(SeedsByAConstant, "seed_changes_rows", MEANING),
    Planted(TakesItsTime, "time_per_thousand", TIME),
]
"""(generator, the one check that must fail)."""

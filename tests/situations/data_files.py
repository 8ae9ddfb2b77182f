"""Files that people have: what is read, and where a mistake in one is."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlframe.builtin.product_reviews import product_reviews
from tests import foreign
from tests.situations import Situation, recipe

TEXTS = [
    {"text": row["text"], "stars": str(i)} for i, row in enumerate(product_reviews(60, seed=3))
]
PROMPTS: dict[str, Any] = {"data": "reviews"}
PPO = {"updates": 1, "epochs": 1}
ROLLOUT = {"prompts_per_update": 4, "max_new_tokens": 4}


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def file(
    name: str, content: str | bytes, *, path: Any = None, prompts: Any = None, **sections: Any
) -> Callable[[Path], list[str]]:
    """Train on one file; `data` holds more keys of the data set."""

    def make(folder: Path) -> list[str]:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        data = {"path": path or name, **sections.pop("data", {})}
        more = {"ppo": PPO, "rollout": ROLLOUT, **sections}
        if prompts is not None:
            more["prompts"] = prompts
        return ["train", recipe(folder, data={"reviews": data}, **more)]

    return make


def column(name: str, value: Any = "one two three", **keys: Any) -> Callable[[Path], list[str]]:
    """Train on rows with one column beside `question`."""
    rows = [{"question": f"What is {i}?", name: value} for i in range(60)]
    return file("rows.jsonl", lines(rows), **keys)


def reward_model(rows: list[Any], columns: dict[str, Any]) -> Callable[[Path], list[str]]:
    """Train a reward model, and nothing else, on these rows."""

    def make(folder: Path) -> list[str]:
        (folder / "pairs.jsonl").write_text(lines(rows))
        nothing = dict.fromkeys(("prompts", "rollout", "rewards", "kl", "ppo", "evaluation"))
        data = {"reviews": {"path": "pairs.jsonl", "columns": columns, "heldout": 0.2}}
        stage = {"data": "reviews", "batch_size": 16, "max_tokens": 64}
        return ["train", recipe(folder, data=data, reward_model=stage, **nothing)]

    return make


def mixture(folder: Path) -> list[str]:
    foreign.rows(folder / "a.jsonl", TEXTS[:40])
    foreign.rows(folder / "b.jsonl", TEXTS[40:])
    data = {name: {"path": f"{name}.jsonl", "heldout": 0.2} for name in "ab"}
    prompts = {"data": {"a": 0.7, "b": 0.3}, "first_words": 4}
    tokenizer = {"data": "a", "vocab_size": 300}
    model = {"policy": {"architecture": {"model_type": "llama", **SHAPE}, "tokenizer": tokenizer}}
    return [
        "train",
        recipe(folder, data=data, prompts=prompts, model=model, ppo=PPO, rollout=ROLLOUT),
    ]


SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}

COMPARED = [
    {
        "instruction": f"Say {i}.",
        "input": "",
        "r1": f"It is {i}.",
        "r2": "No idea.",
        "x": 1,
        "y": i % 3,
    }
    for i in range(60)
]
SPOKEN = [
    {
        "conversations": [{"from": "human", "value": f"Say {i}."}],
        "chosen": {"from": "gpt", "value": f"It is {i}."},
        "rejected": {"from": "gpt", "value": "No idea."},
    }
    for i in range(60)
]

SITUATIONS = [
    # What is read
    Situation(
        "a packed CSV file, by a pattern",
        file(
            "parts/a.csv.gz",
            gzip.compress(("text,n\n" + "".join(f'"{r["text"]}",1\n' for r in TEXTS)).encode()),
            path="parts/*.csv.gz",
        ),
        0,
    ),
    Situation(
        "a comparison by votes trains a reward model with two lines of columns",
        reward_model(COMPARED, {"answers": ["r1", "r2"], "preferred": ["x", "y"]}),
        0,
        (
            "prompt is read from instruction and input, as in data of Alpaca's form",
            "20 of 60 rows are left out: neither answer is preferred",
        ),
    ),
    Situation(
        "ShareGPT's pairs train a reward model without a chat template",
        reward_model(SPOKEN, {}),
        0,
        ("messages is read from conversations", "the tokenizer has no chat template"),
    ),
    Situation("two data sets by weight", mixture, 0),
    Situation(
        "a template around columns, and prompts that are cut",
        column(
            "text",
            data={"heldout": 0.2, "columns": {"prompt": "question"}},
            prompts={
                **PROMPTS,
                "template": "Question: {question}\nAnswer:",
                "max_tokens": 12,
                "truncate": "left",
            },
        ),
        0,
        ("prompts of data set 'reviews' have more than 12 tokens and are cut on the left",),
    ),
    # Where a mistake is
    Situation(
        "a torn last line",
        file("rows.jsonl", lines(TEXTS)[:-12]),
        3,
        ("data.reviews: rows.jsonl:60: not valid JSON", "the file may have been cut off"),
        never_says=("Traceback", "data.reviews: data.reviews: "),
    ),
    Situation(
        "half a character in a row",
        file("rows.jsonl", lines(TEXTS) + '{"text": "\\ud800"}\n'),
        3,
        ("rows.jsonl:61: \\ud800 is half of a character (a lone surrogate)",),
    ),
    Situation(
        "a row of CSV with too many cells",
        file("rows.csv", "text,label\ngood,1\nbad, and long,0\n"),
        3,
        ("rows.csv:3: 3 cells, and the header has 2 columns (text, label)",),
    ),
    Situation(
        "a file in latin-1",
        file("rows.txt", b"one\nd\xe9j\xe0 vu\n"),
        3,
        ("rows.txt:2: byte 0xe9 at place 2 of the line is not UTF-8", "iconv"),
    ),
    Situation(
        "an empty file",
        file("rows.jsonl", ""),
        3,
        ("data.reviews: the data set is empty (rows.jsonl)",),
    ),
    Situation(
        "a pointer of Git LFS in place of a file",
        file("rows.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        3,
        ("rows.parquet: this is a Git LFS pointer, not the data: run `git lfs pull`",),
    ),
    Situation(
        "Parquet under the name of JSON Lines",
        file("rows.jsonl", b"PAR1" + bytes(64)),
        3,
        ("rows.jsonl: this is a Parquet file: name it .parquet",),
    ),
    Situation(
        "a file that is not there, but nearly",
        file("rows.jsonl", lines(TEXTS), path="row.jsonl"),
        3,
        ("data.reviews.path: there is no file 'row.jsonl'", "Did you mean 'rows.jsonl'?"),
    ),
    Situation(
        "a name of the hub as path",
        file("rows.jsonl", lines(TEXTS), path="openai/gsm8k"),
        3,
        ("there is no file 'openai/gsm8k'", "hub: {id: openai/gsm8k}"),
    ),
    # Columns
    Situation(
        "a column that the data do not have",
        column("text", data={"columns": {"prompt": "questoin"}}, prompts=PROMPTS),
        3,
        (
            "data.reviews: columns.prompt: the data has no column 'questoin'. Did you mean 'question'?",
            "It has question, text",
        ),
    ),
    Situation(
        "two roles of one column",
        column("text", data={"columns": {"prompt": "text", "response": "text"}}, prompts=PROMPTS),
        3,
        ("columns: prompt and response are both read from column 'text'",),
    ),
    Situation(
        "a column that a template names and no row has",
        column("text", prompts={**PROMPTS, "template": "{questio}"}),
        3,
        ("template: there is no column 'questio'. Did you mean 'question'?", "rows.jsonl:"),
    ),
    Situation(
        "a template with braces that are none",
        column("text", prompts={**PROMPTS, "template": '{"q": question}'}),
        3,
        ("prompts.template: between braces stands the name of a column", "written twice"),
    ),
    Situation(
        "a reward reads a column that some rows do not have",
        file(
            "rows.jsonl",
            lines([*TEXTS, {"text": "the last row has no stars"}]),
            rewards={
                "difference": {
                    "type": "preference_difference",
                    "against": "column",
                    "column": "stars",
                    "reward": {"type": "length", "target_tokens": 4},
                }
            },
        ),
        3,
        (
            "not every row of the prompts' data has a value in column 'stars'",
            "rows.jsonl:61 has none",
        ),
    ),
    # Prompts
    Situation(
        "the old name of what becomes of long prompts",
        column("prompt", prompts={**PROMPTS, "too_long": "drop"}),
        3,
        ("Here it is called prompts.truncate",),
    ),
    Situation(
        "prompts that are longer than the context",
        column("prompt", "word " * 200, prompts=PROMPTS),
        3,
        ("are longer than the context allows: the model reads 128 tokens", "prompts.truncate"),
    ),
    Situation(
        "responses that leave no room for any prompt",
        column("prompt", prompts=PROMPTS, rollout={"prompts_per_update": 4, "max_new_tokens": 128}),
        3,
        ("rollout.max_new_tokens: responses of 128 tokens leave no room for a prompt",),
    ),
    Situation(
        "the system's message without a template for chats",
        column("prompt", prompts={**PROMPTS, "system": "Be kind."}),
        3,
        ("system: the tokenizer has no chat template",),
    ),
    Situation(
        "a weight of nothing",
        column("prompt", prompts={"data": {"reviews": 0}}),
        3,
        ("prompts.data.reviews: input should be greater than 0",),
    ),
    Situation(
        "an unknown data set in a mixture",
        column("prompt", prompts={"data": {"reviews": 1, "review": 1}}),
        3,
        ("prompts.data.review: there is no data set 'review'. Did you mean 'reviews'?",),
    ),
]

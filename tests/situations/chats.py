"""Chats, demonstrations and pairs that do not fit the tokenizer, the template or the recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import foreign
from tests.situations import Situation, recipe

ASKED = {"role": "user", "content": "Is it good?"}
ANSWERED = {"role": "assistant", "content": "It is fine."}
SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = {"messages": [ASKED, ANSWERED]}
WITHOUT_PPO = dict.fromkeys(("prompts", "rollout", "evaluation", "rewards", "kl", "ppo"))


def _stage(
    name: str, family: str, content: list[dict[str, Any]], *, data: Any = None, **keys: Any
) -> Callable[[Path], list[str]]:
    """A run of one supervised stage on rows, with a foreign policy."""

    def make(folder: Path) -> list[str]:
        foreign.saved(folder / "policy", family)
        foreign.rows(folder / "rows.jsonl", content)
        rows = {"path": "rows.jsonl", "heldout": 0.3, **(data or {})}
        path = recipe(
            folder,
            data={"rows": rows},
            model={"policy": "policy", "pad_token": "<pad>"},
            **{name: {"data": "rows", "batch_size": 8, **keys}},
            **WITHOUT_PPO,
        )
        return ["train", path, "--output", str(folder / "run")]

    return make


def _prompts(family: str, content: list[dict[str, Any]]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        foreign.saved(folder / "policy", family)
        foreign.rows(folder / "rows.jsonl", content)
        path = recipe(
            folder,
            data={"rows": {"path": "rows.jsonl", "heldout": 0.3}},
            model={"policy": "policy", "pad_token": "<pad>"},
            prompts={"data": "rows"},
        )
        return ["train", path, "--output", str(folder / "run")]

    return make


def _pairs(count: int = 20, **more: Any) -> list[dict[str, Any]]:
    return [{**row, **more} for row in foreign.preferences(count)]


SITUATIONS = [
    Situation(
        "a system message under a template that has no place for one",
        _stage("sft", "gemma", [CHAT, {"messages": [SYSTEM, ASKED, ANSWERED]}]),
        3,
        ("sft: data.rows, rows.jsonl:2: ", "System role not supported", "without the system message"),
    ),
    Situation(
        "prompts with a system message under a template that has no place for one",
        _prompts("mistral", [{"messages": [SYSTEM, ASKED]}]),
        3,
        ("data.rows, rows.jsonl:1: ", "System role not supported", "without the system message"),
    ),
    Situation(
        "a conversation that ends with the user",
        _stage("sft", "chatml", [CHAT, CHAT, {"messages": [ASKED, ANSWERED, ASKED]}]),
        3,
        ("data.rows, rows.jsonl:3: ", "the last message is not the assistant's"),
    ),
    Situation(
        "a conversation of an answer alone",
        _stage("sft", "chatml", [CHAT, {"messages": [ANSWERED]}]),
        3,
        ("data.rows, rows.jsonl:2: ", "nothing stands before the answer"),
    ),
    Situation(
        "a message that holds a picture",
        _stage(
            "sft",
            "chatml",
            [{"messages": [{**ASKED, "content": [{"type": "image", "url": "a.png"}]}, ANSWERED]}],
        ),
        3,
        ("data.rows, ", "parts that are not text (image)"),
    ),
    Situation(
        "messages for a tokenizer without a chat template",
        _stage("sft", "base", [CHAT]),
        3,
        ("the tokenizer has no chat template", "prompt and response"),
    ),
    Situation(
        "lists of messages in the column of prompts are conversations",
        _prompts(
            "chatml",
            [{"prompt": [{**ASKED, "content": f"Is {n} good?"}]} for n in range(20)],
        ),
        0,
        never_says=("Traceback", "no text"),
    ),
    Situation(
        "a text column that holds numbers",
        _stage("sft", "base", [{"text": 5}]),
        3,
        ("data.rows, ", "column 'text' holds a", "not a text", "data.NAME.columns"),
        never_says=("Traceback", "no text in column"),
    ),
    Situation(
        "a chat format without a chat template",
        _stage("sft", "base", _pairs(), data={"format": "chat"}),
        3,
        ("data.rows.format: chat needs a chat template",),
    ),
    Situation(
        "a format of prompts where there are none",
        _stage("sft", "chatml", [CHAT] * 20, data={"format": "plain"}),
        3,
        ("data.rows.format: plain is about rows with a text in their prompt column",),
    ),
    Situation(
        "an answer to learn from that nobody could fit in",
        _stage("sft", "llama3", [CHAT] * 20, max_tokens=1),
        3,
        ("sft: max_tokens of 1 leaves nothing to learn",),
    ),
    Situation(
        "pairs whose answers differ where the longest text was cut",
        _stage(
            "reward_model",
            "llama3",
            _pairs(19) + [{"prompt": "x", "chosen": "y" * 99, "rejected": "y" * 99 + "z"}] * 2,
            max_tokens=64,
        ),
        3,
        (
            "reward_model: 2 of 21 pairs have the same tokens as chosen and as rejected",
            "Raise `reward_model.max_tokens`",
            "`reward_model.max_equal_pairs: 0.1`",
        ),
    ),
    Situation(
        "pairs that are the same in the data",
        _stage("reward_model", "base", [{"chosen": "good", "rejected": "good"}] * 20),
        3,
        ("20 of 20 pairs have the same tokens", "20 are so in the data", "Correct the data"),
    ),
    Situation(
        "a pair without its rejected side",
        _stage("reward_model", "base", [*_pairs(3), {"prompt": "x", "chosen": "y"}]),
        3,
        ("reward_model: data.rows, rows.jsonl:4: ", "no text in column 'rejected'"),
    ),
    Situation(
        "rows for a reward model that are neither pairs nor labelled",
        _stage("reward_model", "base", [{"prompt": "x", "response": "y"}] * 20),
        3,
        ("reward_model: ", "neither a pair (chosen and rejected) nor a labelled text"),
    ),
    Situation(
        "labels of which none is the preferred one",
        _stage("reward_model", "base", [{"text": f"row {n}", "label": "yes"} for n in range(20)]),
        3,
        ("reward_model: preferred_label: ", "are labelled 1", "The labels are 'yes'"),
    ),
    Situation(
        "pairs that have a column of labels as well",
        _stage("reward_model", "chatml", _pairs(label=1), max_tokens=128),
        0,
        ("pairs from 'rows'", "rendered with the tokenizer's chat template", "pairwise accuracy"),
    ),
    Situation(
        "a template that writes nothing after an answer",
        lambda folder: _unended(_stage("sft", "chatml", [CHAT] * 9 + [
            {"messages": [{**ASKED, "content": f"Is {n} good?"}, ANSWERED]} for n in range(20)
        ])(folder), folder),
        0,
        ("writes no special token after an answer, which therefore ends with the tokenizer's EOS",),
    ),
]  # fmt: skip


def _unended(arguments: list[str], folder: Path) -> list[str]:
    """The same command, with a policy whose template marks turns with ordinary text alone."""
    words = foreign.tokenizer("chatml")
    words.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    words.save_pretrained(folder / "policy")
    return arguments

"""Prompts from anywhere are written as PPO writes those of the recipe's data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlframe.compose import Project
from rlframe.compose.rendering import PromptWriter
from rlframe.data.rows import Held
from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from tests import foreign

Make = Callable[..., tuple[Project, PromptWriter]]


def questions(count: int = 12) -> list[dict[str, Any]]:
    """Prompts of 2 to 24 words, no two alike."""
    return [{"prompt": f"Is {n} good?" + " Tell me." * n, "n": n} for n in range(count)]


def conversations(count: int = 12) -> list[dict[str, Any]]:
    """Questions after an answer, with another answer behind them that is no part of the prompt."""
    return [
        {
            "n": n,
            "messages": [
                {"role": "user", "content": f"Is {n} good?" + " Tell me." * n},
                {"role": "assistant", "content": "Fine."},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Yes."},
            ],
        }
        for n in range(count)
    ]


def sharegpt(count: int = 12) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    return [
        {
            "n": row["n"],
            "conversations": [
                {"from": names[m["role"]], "value": m["content"]} for m in row["messages"]
            ],
        }
        for row in conversations(count)
    ]


def renamed(count: int = 12) -> list[dict[str, Any]]:
    return [{"q": row["prompt"], "n": row["n"], "text": "other"} for row in questions(count)]


def dialogues(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"prompt": f"\n\nHuman: Is {n} good?\n\nAssistant:", "n": n, "text": "other"}
        for n in range(count)
    ]


@pytest.fixture
def made(tmp_path: Path, tiny_recipe: Callable[..., Path]) -> Make:
    """A project, and what writes prompts as its PPO stage does."""

    def make(
        family: str, rows: list[dict[str, Any]], prompts: dict[str, Any], **dataset: Any
    ) -> tuple[Project, PromptWriter]:
        policy = foreign.saved(tmp_path / "policy", family)
        path = foreign.rows(tmp_path / "rows.jsonl", rows)
        recipe = tiny_recipe(
            data={"rows": {"path": str(path), "heldout": 0.2, **dataset}},
            model={"policy": str(policy)},
            prompts={"data": "rows", **prompts},
        )
        loaded = load_recipe(recipe)
        project = Project(loaded, tmp_path / "run", Registry())
        section = loaded.recipe.prompts
        assert section is not None
        spec, limit = [loaded.recipe.data["rows"]], section.max_tokens
        return project, PromptWriter(project.tokenizer, section, spec, None, limit)

    return make


CASES: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "plain": ("base", questions(), {}, {}),
    "chat": ("llama3", questions(), {}, {}),
    "system": ("chatml", questions(), {"system": "Be {brief}."}, {}),
    "messages": ("llama3", conversations(), {"system": "Be brief."}, {}),
    "sharegpt": ("gemma", sharegpt(), {}, {}),
    "not rendered": ("llama3", questions(), {}, {"format": "plain"}),
    "dialogues": ("llama3", dialogues(), {}, {}),
    "template": ("base", questions(), {"template": "{n}: {prompt} {{x}}"}, {}),
    "template in a chat": ("zephyr", questions(), {"template": "Q: {prompt}", "system": "S"}, {}),
    "renamed": ("chatml", renamed(), {}, {"columns": {"prompt": "q"}}),
    "first words": ("llama3", renamed(), {"first_words": 2}, {"columns": {"text": "q"}}),
    "first words cut": (
        "llama3",
        renamed(),
        {"first_words": 2, "max_tokens": 3, "truncate": "left"},
        {"columns": {"text": "q"}},
    ),
    "cut left": ("base", questions(), {"max_tokens": 20, "truncate": "left"}, {}),
    "cut right": ("llama3", questions(), {"max_tokens": 30, "truncate": "right"}, {}),
    "messages cut": ("llama3", conversations(), {"max_tokens": 50, "truncate": "left"}, {}),
    "dropped": ("base", questions(), {"max_tokens": 50, "truncate": "drop"}, {"heldout": 0.5}),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_prompts_of_a_file_are_those_of_ppo(made: Make, case: str, tmp_path: Path) -> None:
    family, rows, prompts, dataset = CASES[case]
    project, writer = made(family, rows, prompts, **dataset)
    if dataset.get("format") == "plain":
        writer = PromptWriter(
            writer.tokenizer, writer.section, writer.datasets, False, writer.limit
        )
    wanted = {p.columns["n"]: p for part in project.prompts for p in part}
    given, _ = writer.rows_of_file(tmp_path / "rows.jsonl")
    written = writer.written(given)
    found = {prompt.columns["n"]: prompt for _, prompt in written.prompts}
    if prompts.get("first_words") is None:
        assert found.keys() == wanted.keys()
    for n, prompt in wanted.items():
        assert (found[n].text, found[n].ids) == (prompt.text, prompt.ids), n
        assert found[n].messages == prompt.messages
    assert [number for number, _ in written.prompts] == sorted(found)
    if case == "first words cut":
        assert {len(prompt.ids) for prompt in found.values()} == {prompts["max_tokens"]}
    if prompts.get("truncate") == "drop":
        assert 0 < len(found) < len(rows)
        assert written.notes == (
            f"{len(rows) - len(found)} of {len(rows)} prompts have more than 50 tokens and are left "
            "out, as the recipe of the run says (prompts.truncate: drop)",
        )


def test_a_text_alone_is_asked_as_a_row_with_it(made: Make) -> None:
    _, writer = made("zephyr", questions(), {"template": "Q: {prompt}", "system": "S"})
    alone = writer.written(writer.rows_of_texts(["Is 3 good?"])).prompts[0][1]
    row = writer.written(Held([{"prompt": "Is 3 good?"}])).prompts[0][1]
    turn = writer.turn([], "Is 3 good?")
    assert alone.ids == row.ids == turn.ids
    assert "Q: Is 3 good?" in alone.text


def test_a_text_cannot_fill_a_template_of_two_columns(made: Make) -> None:
    _, writer = made("base", questions(), {"template": "{n}: {prompt}"})
    with pytest.raises(RecipeError, match=r"2 columns \(n, prompt\).*--prompts FILE"):
        writer.rows_of_texts(["a"])


def test_columns_are_the_runs_where_they_are_there_and_the_usual_ones_elsewhere(
    made: Make, tmp_path: Path
) -> None:
    _, writer = made("chatml", renamed(), {}, columns={"prompt": "q"})
    for name, row in {"own": {"q": "a?", "prompt": "b?"}, "usual": {"prompt": "a?"}}.items():
        file = foreign.rows(tmp_path / f"{name}.jsonl", [row])
        (_, prompt), *rest = writer.written(writer.rows_of_file(file)[0]).prompts
        assert prompt.messages == ({"role": "user", "content": "a?"},), name
        assert not rest


def test_a_row_without_a_prompt_and_one_that_is_too_long_are_named_by_their_place(
    made: Make, tmp_path: Path
) -> None:
    _, writer = made("base", questions(3), {"max_tokens": 30})
    file = foreign.rows(tmp_path / "odd.jsonl", [{"prompt": "a"}, {"n": 2}])
    with pytest.raises(RecipeError, match=r"odd\.jsonl:2: no text in column 'prompt'"):
        writer.written(writer.rows_of_file(file)[0])
    file = foreign.rows(tmp_path / "long.jsonl", [{"prompt": "a"}, {"prompt": "word " * 40}])
    with pytest.raises(
        RecipeError, match=r"long\.jsonl:2: the prompt has \d+ tokens, and 30 leave"
    ):
        writer.written(writer.rows_of_file(file)[0])
    with pytest.raises(RecipeError, match=r"^stdin:2: "):
        writer.rows_of_stream('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(RecipeError, match="stdin holds no prompts"):
        writer.rows_of_stream("\n")


def test_a_conversation_has_the_system_message_once_and_loses_its_oldest_turns(made: Make) -> None:
    _, writer = made("llama3", questions(), {"system": "S", "max_tokens": 120})
    assert writer.keeps_conversation
    said = [
        {"role": role, "content": f"{turn} says something."}
        for turn in range(6)
        for role in ("user", "assistant")
    ]
    prompt = writer.turn(said, "And now?")
    assert prompt.messages is not None
    assert [m["content"] for m in prompt.messages if m["role"] == "system"] == ["S"]
    assert prompt.messages[-1] == {"role": "user", "content": "And now?"}
    assert 2 < len(prompt.messages) < len(said)
    assert len(prompt.ids) <= 120

"""Chat policies as they are published: trained on what their template writes, and stopped by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlframe.compose import Outcome, run_recipe
from rlframe.data.chat import end_ids
from rlframe.recipe import load_recipe
from tests import foreign
from tests.compose.test_run import Notes
from tests.situations import recipe

ENDS = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "zephyr": "</s>"}
TWO_TURNS = ({"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."})


def conversations(count: int = 60) -> list[dict[str, Any]]:
    """Questions that differ, and the same two answers."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Is camera {number} good?"},
                {"role": "assistant", "content": "Fine."},
                *TWO_TURNS,
            ]
        }
        for number in range(count)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Outcome, Notes]]:
    """Runs a recipe of a foreign policy on rows."""

    def go(family: str, rows: list[dict[str, Any]], **sections: Any) -> tuple[Outcome, Notes]:
        # The generation config lists the tokenizer's EOS alone, as that of many fine-tuned models.
        policy = foreign.saved(tmp_path / "policy", family, ends=(), initializer_range=0.02)
        data = {"path": str(foreign.rows(tmp_path / "rows.jsonl", rows)), "heldout": 0.2}
        path = recipe(
            tmp_path,
            **{
                "data": {"rows": data},
                "model": {"policy": str(policy)},
                "prompts": {"data": "rows"},
                **sections,
            },
        )
        notes = Notes()
        return run_recipe(load_recipe(Path(path)), tmp_path / "run", notes), notes

    return go


SFT = {"data": "rows", "epochs": 8, "batch_size": 8, "learning_rate": 2e-2}


def greedy(folder: Path, messages: list[dict[str, str]]) -> str:
    """What a saved policy answers, by transformers alone and the ends that its folder lists."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    words: Any = AutoTokenizer.from_pretrained(folder)
    ids = words.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.no_grad():
        found = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    return str(words.decode(found[0, ids.shape[1] :]))


@pytest.mark.parametrize("family", ENDS)
def test_a_policy_learns_its_template_s_end_after_every_answer_and_stops_there(
    family: str, run: Callable[..., tuple[Outcome, Notes]]
) -> None:
    rows = conversations()
    done, _ = run(family, rows, sft=SFT, rollout={"prompts_per_update": 8, "max_new_tokens": 12})
    lines = (done.directory / "metrics.jsonl").read_text().splitlines()
    updates = [row for row in map(json.loads, lines) if "val/num_eos_tokens" in row]
    assert [row["val/num_eos_tokens"] for row in updates] == [8, 8]
    words = AutoTokenizer.from_pretrained(done.directory / "sft")
    messages = rows[0]["messages"]
    for folder in (done.directory / "sft", done.directory / "ppo" / "policy"):
        config = json.loads((folder / "generation_config.json").read_text())
        listed = config["eos_token_id"]
        assert set(listed if isinstance(listed, list) else [listed]) == set(end_ids(words))
    # The first answer was learned from as well as the last one, each with its end.
    assert greedy(done.directory / "sft", messages[:1]) == f"Fine.{ENDS[family]}"
    assert greedy(done.directory / "sft", messages[:3]) == f"Yes.{ENDS[family]}"


def test_the_last_answer_alone_is_learned_if_the_recipe_says_so(
    run: Callable[..., tuple[Outcome, Notes]],
) -> None:
    rows = conversations()
    without_ppo = dict.fromkeys(("prompts", "rollout", "evaluation", "rewards", "kl", "ppo"))
    done, _ = run("llama3", rows, sft={**SFT, "learn": "last"}, **without_ppo)
    assert greedy(done.directory / "sft", rows[0]["messages"][:3]) == "Yes.<|eot_id|>"
    assert not greedy(done.directory / "sft", rows[0]["messages"][:1]).startswith("Fine.")


def test_what_is_read_in_a_way_that_the_recipe_leaves_open_is_said_before_training(
    run: Callable[..., tuple[Outcome, Notes]],
) -> None:
    thought = {"role": "assistant", "content": "<think>Hm.</think>Fine."}
    rows = [{"messages": [row["messages"][0], thought, *TWO_TURNS]} for row in conversations(20)]
    rows += [{"prompt": f"Is lens {number} good?", "response": "Fine."} for number in range(20)]  # type: ignore[misc]
    _, notes = run(
        "thinking",
        rows,
        sft={**SFT, "epochs": 1},
        losses={"again": {"type": "sft", "data": "rows"}},
        rollout={"prompts_per_update": 2, "max_new_tokens": 4},
        ppo={"updates": 1},
    )
    rendered = "data.rows: prompts are rendered with the tokenizer's chat template"
    assert sum(line.startswith(f"sft: {rendered}") for line in notes.said) == 1
    assert sum(line.startswith(f"ppo: {rendered}") for line in notes.said) == 1
    (rewritten,) = (line for line in notes.said if line.startswith("sft: data.rows: in "))
    assert rewritten.startswith(
        "sft: data.rows: in 20 of 40 rows the chat template rewrites earlier"
    )
    stage = next(place for place, line in enumerate(notes.said) if line.startswith("sft: "))
    assert notes.said.index(rewritten) > stage
    assert any(line.startswith("ppo: prompts and losses: in ") for line in notes.said)


def test_a_prompt_longer_than_the_context_leaves_an_auxiliary_loss_its_answer(
    run: Callable[..., tuple[Outcome, Notes]], tmp_path: Path
) -> None:
    long = foreign.rows(
        tmp_path / "long.jsonl",
        [{"prompt": f"{number} " + "x y " * 300, "response": "Fine."} for number in range(20)],
    )
    rows = {"path": str(tmp_path / "rows.jsonl"), "heldout": 0.2}
    done, _ = run(
        "llama3",
        conversations(),
        data={"rows": rows, "long": {"path": str(long), "heldout": 0}},
        losses={"more": {"type": "sft", "data": "long", "examples_per_step": 4}},
        rollout={"prompts_per_update": 4, "max_new_tokens": 4},
        ppo={"updates": 1, "epochs": 1},
    )
    lines = (done.directory / "metrics.jsonl").read_text().splitlines()
    (update,) = (row for row in map(json.loads, lines) if "loss/more_avg" in row)
    assert 1 < update["loss/more_avg"] < 20  # a mean over tokens that there are, in nats

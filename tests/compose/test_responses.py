"""A responder has from the run's manifest what it needs, and needs nothing else of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlframe.compose import run_recipe
from rlframe.compose.responses import Changes, load_responder
from rlframe.errors import RecipeError
from rlframe.models.loading import weights_hash
from rlframe.models.pretrained import Pretrained
from rlframe.recipe import load_recipe
from rlframe.runs.display import SilentDisplay
from rlframe.runs.results import find_model
from tests import foreign
from tests.situations import recipe

DIALOGUES = [{"prompt": f"\n\nHuman: Is {n} good?\n\nAssistant:"} for n in range(20)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bfloat16 whose prompts are dialogues already, and that reads two variables."""
    folder = tmp_path_factory.mktemp("dialogues")
    sections: dict[str, Any] = {
        "data": {
            "rows": {"path": str(foreign.rows(folder / "rows.jsonl", DIALOGUES)), "heldout": 0.2}
        },
        "model": {"policy": str(foreign.saved(folder / "start", "llama3"))},
        "prompts": {"data": "rows"},
        "rollout": {"max_new_tokens": 4, "temperature": "${env:WARMTH}"},
        "rewards": {"short": {"type": "length", "target_tokens": "${env:TARGET}"}},
        "ppo": {"updates": 1},
        "runtime": {"device": "cpu", "threads": 1, "precision": "bfloat16"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARMTH", "0.75")
        patch.setenv("TARGET", "4")
        loaded = load_recipe(Path(recipe(folder, **sections)))
        return run_recipe(loaded, folder / "run", SilentDisplay()).directory


def test_variables_are_read_where_they_matter_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TARGET", raising=False)
    monkeypatch.setenv("WARMTH", "0.5")
    assert load_responder(find_model(run), Changes()).rollout.temperature == 0.5
    monkeypatch.delenv("WARMTH")
    with pytest.raises(RecipeError, match=r"rollout\.temperature: .*WARMTH"):
        load_responder(find_model(run), Changes())


def test_prompts_that_the_run_read_as_they_are_stay_so(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARMTH", "1.0")
    writer = load_responder(find_model(run), Changes()).writer
    assert writer.tokenizer.chat_template
    assert not writer.keeps_conversation
    text = "What is written as no dialogue"
    assert writer.turn([], text).text == text
    assert writer.written(writer.rows_of_texts([text])).prompts[0][1].text == text
    # Without samples nothing says what the run did, and the text itself decides.
    (run / "samples" / "before.jsonl").rename(run / "samples" / "gone")
    try:
        writer = load_responder(find_model(run), Changes()).writer
    finally:
        (run / "samples" / "gone").rename(run / "samples" / "before.jsonl")
    asked = [text, DIALOGUES[0]["prompt"]]
    written = [writer.written(writer.rows_of_texts([one])).prompts[0][1] for one in asked]
    assert [prompt.messages is not None for prompt in written] == [True, False]


def test_weights_are_those_of_the_folder_in_the_precision_of_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARMTH", "1.0")
    saved = find_model(run)
    responder = load_responder(saved, Changes(greedy=True), initial=True)
    for name, folder in (("policy", saved.folder), ("initial", run.parent / "start")):
        model = responder.models[name].component.policy.model
        assert model.dtype == torch.bfloat16
        wanted = Pretrained(str(folder)).load("causal", dtype=torch.bfloat16)
        assert weights_hash(model) == weights_hash(wanted)


def test_a_run_of_fine_tuning_alone_is_asked_in_its_template(tmp_path: Path) -> None:
    start = foreign.saved(tmp_path / "start", "chatml")
    nothing = dict.fromkeys(("prompts", "rollout", "rewards", "kl", "ppo", "evaluation"))
    sections: dict[str, Any] = {
        "data": {
            "chats": {"path": str(foreign.rows(tmp_path / "rows.jsonl", foreign.chats(30)))},
        },
        "model": {"policy": str(start)},
        "sft": {"data": "chats", "batch_size": 8},
    }
    loaded = load_recipe(Path(recipe(tmp_path, **nothing, **sections)))
    run = run_recipe(loaded, tmp_path / "run", SilentDisplay()).directory
    responder = load_responder(find_model(run), Changes(), initial=True)
    assert responder.writer.keeps_conversation
    prompt = responder.writer.turn([], "Hi.")
    assert prompt.text == "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    (written,) = responder.writer.written(responder.writer.rows_of_texts(["Hi."])).prompts
    assert written[1].ids == prompt.ids
    assert responder.rollout == load_responder(find_model(start), Changes()).rollout
    initial = responder.models["initial"].component.policy.model
    assert weights_hash(initial) == weights_hash(
        Pretrained(str(start)).load("causal", dtype=torch.float32)
    )

"""A chat policy with two ends, a reward model with other tokens and another template, all stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlframe.builtin.reward_model import RewardModel
from rlframe.compose import Outcome, Project, run_recipe
from rlframe.compose.checks import check
from rlframe.data.encode import RowEncoder
from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from rlframe.runs.display import SilentDisplay
from rlframe.stages.reward_model import scores
from rlframe.types import RewardBatch, StopReason
from tests import foreign


def chat_recipe(folder: Path, tiny_recipe: Callable[..., Path], **sections: Any) -> Path:
    """A Llama 3 policy and a Gemma reward model, each with its own tokenizer."""
    policy = foreign.saved(folder / "policy", "llama3")
    judge = foreign.saved(folder / "judge", "gemma", words=foreign.tokenizer("gemma", seed=4))
    chats = foreign.rows(folder / "chats.jsonl", foreign.chats(40))
    pairs = foreign.rows(folder / "pairs.jsonl", foreign.preferences(40))
    usual = {
        "data": {
            "chats": {"path": str(chats), "heldout": 0.2},
            "pairs": {"path": str(pairs), "heldout": 0.2},
        },
        "model": {"policy": str(policy), "lora": {"rank": 2}},
        "sft": {"data": "chats", "batch_size": 8, "learning_rate": 1e-3},
        "reward_model": {"data": "pairs", "initial": str(judge), "batch_size": 8},
        "prompts": {"data": "chats"},
        "rewards": {"helpful": {"type": "reward_model"}},
    }
    return tiny_recipe(**{**usual, **sections})


@pytest.fixture
def finished(tmp_path: Path, tiny_recipe: Callable[..., Path]) -> Outcome:
    loaded = load_recipe(chat_recipe(tmp_path, tiny_recipe))
    return run_recipe(loaded, tmp_path / "run", SilentDisplay())


def read_alone(folder: Path, ids: list[int]) -> float:
    """The score at the last of these tokens, by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state
        return float(model.score(hidden[0, -1]))


def test_responses_are_scored_as_the_reward_models_own_template_writes_them(
    finished: Outcome,
) -> None:
    folder = finished.directory / "reward_model"
    words = AutoTokenizer.from_pretrained(folder)
    assert "<start_of_turn>" in words.get_vocab()  # the reward model's tokens, not the policy's
    lines = (finished.directory / "samples" / "after.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines if line]
    questions = [f"Write review {number} of a camera." for number in range(40)]
    for row in rows:
        (question,) = (text for text in questions if text in row["prompt"])
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": row["response"]},
        ]
        text = words.apply_chat_template(turns, tokenize=False).removesuffix("\n")
        assert text.endswith("<end_of_turn>")
        ids = words.encode(text, add_special_tokens=False)
        assert row["rewards"]["helpful"] == pytest.approx(read_alone(folder, ids), rel=1e-4)


def test_a_pair_scores_in_ppo_as_it_does_in_training(
    finished: Outcome, tmp_path: Path, tiny_recipe: Callable[..., Path]
) -> None:
    loaded = load_recipe(chat_recipe(tmp_path, tiny_recipe))
    project = Project(loaded, finished.directory, Registry())
    asked = project.instance("rewards", "helpful").component
    assert isinstance(asked, RewardModel)
    words = project.tokenizer_of("stage:reward_model")
    own, policy = RowEncoder(words), RowEncoder(project.tokenizer)
    rows, _ = project.data.rows("pairs", words)
    for row in rows[:5]:
        ids = list(own.pair(row)[0].ids)
        with torch.no_grad():
            trained = scores(asked.model, torch.tensor([ids]), torch.tensor([len(ids)]))
        batch = RewardBatch(
            prompts=[policy.prompt(row)],
            response_texts=[str(row["chosen"])],
            response_ids=[[1]],
            stop_reasons=[StopReason.EOS],
            group_ids=[0],
            update=0,
            generator=torch.Generator(),
        )
        assert asked.score(batch) == pytest.approx(trained.tolist(), rel=1e-6)


def test_both_ends_of_the_policy_go_with_it(finished: Outcome) -> None:
    for stage in ("sft", "ppo/policy"):
        model = AutoModelForCausalLM.from_pretrained(finished.directory / stage)
        words = AutoTokenizer.from_pretrained(finished.directory / stage)
        ends = {words.convert_tokens_to_ids(t) for t in ("<|end_of_text|>", "<|eot_id|>")}
        assert set(model.generation_config.eos_token_id) == ends


def test_a_stage_that_leaves_the_policy_leaves_no_reward_model(
    tmp_path: Path, tiny_recipe: Callable[..., Path]
) -> None:
    rewards = {"helpful": {"type": "reward_model", "model": "stage:sft"}}
    loaded = load_recipe(chat_recipe(tmp_path, tiny_recipe, rewards=rewards))
    with pytest.raises(RecipeError, match="'stage:sft' is no reward model; use 'stage:reward_mod"):
        check(Project(loaded, tmp_path / "run", Registry()))


@pytest.mark.parametrize("form", ["text", "response"])
def test_another_form_than_that_of_training_is_refused_before_any_stage(
    tmp_path: Path, tiny_recipe: Callable[..., Path], form: str
) -> None:
    rewards = {"helpful": {"type": "reward_model", "input": form}}
    loaded = load_recipe(chat_recipe(tmp_path, tiny_recipe, rewards=rewards))
    project = Project(loaded, tmp_path / "run", Registry())
    with pytest.raises(RecipeError) as caught:
        check(project)
    message = str(caught.value)
    assert "rewards.helpful: PPO would ask the reward model for something else" in message
    assert "in training: '<bos><start_of_turn>user\\nWrite review" in message


def test_a_critic_cannot_start_from_a_reward_model_with_other_tokens(
    tmp_path: Path, tiny_recipe: Callable[..., Path]
) -> None:
    path = chat_recipe(tmp_path, tiny_recipe)
    loaded = load_recipe(path, ["model.critic.initial=stage:reward_model"])
    with pytest.raises(RecipeError, match=r"model\.critic\.initial.*other tokens"):
        check(Project(loaded, tmp_path / "run", Registry()))

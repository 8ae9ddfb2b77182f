"""`rlframe generate`: the run's own prompts and sampling, what changes them, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlframe.compose import Project
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from tests import foreign
from tests.finished import SYSTEM, chat_run, plain_run

TEXTS = ["The camera", "A phone that I have used for", "It"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_run(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_run(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def asked(rlframe: Any) -> Callable[..., list[dict[str, Any]]]:
    """The rows that `rlframe generate` prints."""

    def ask(run: Path, *options: object) -> list[dict[str, Any]]:
        ended = rlframe("generate", run, *options)
        assert ended.code == 0, ended.err
        return [json.loads(line) for line in ended.out.split("\n") if line]

    return ask


def prompts(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--prompt", text)]


def in_a_line(message: str) -> str:
    """A message without the box that it is shown in."""
    return " ".join(message.replace("│", " ").split())


def greedy_by_transformers(folder: Path | Any, words: Any, ids: list[int], *, tokens: int) -> str:
    """A greedy response of transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder) if isinstance(folder, Path) else folder
    given = torch.tensor([ids])
    with torch.no_grad():
        found = model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=tokens
        )
    return str(words.decode(found[0, len(ids) :], skip_special_tokens=True))


# What is answered


def test_greedy_responses_are_those_of_transformers(plain: Path, asked: Any) -> None:
    rows = asked(plain, *prompts(*TEXTS), "--greedy", "--max-new-tokens", 12)
    words = AutoTokenizer.from_pretrained(plain / "ppo" / "policy")
    for row, text in zip(rows, TEXTS, strict=True):
        assert row["prompt"] == text
        ids = words.encode(text)
        wanted = greedy_by_transformers(plain / "ppo" / "policy", words, ids, tokens=12)
        assert row["response"] == wanted
        assert row["stop_reason"] == ("length" if row["tokens"] == 12 else "eos")
    assert max(row["tokens"] for row in rows) > 3


def test_a_chat_is_asked_as_ppo_asked_it_and_answered_as_by_transformers(
    chat: Path, asked: Any
) -> None:
    lines = (chat / "samples" / "after.jsonl").read_text().split("\n")
    seen = [json.loads(line) for line in lines if line]
    rows = asked(chat, *prompts(*(row["question"] for row in seen)), "--greedy", "--initial")
    words = AutoTokenizer.from_pretrained(chat / "ppo" / "policy")
    for row, sample in zip(rows, seen, strict=True):
        assert row["prompt"] == sample["prompt"]
        assert row["messages"] == [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": sample["question"]},
        ]
        ids = words.encode(row["prompt"], add_special_tokens=False)
        for folder, answer in (
            (chat / "ppo" / "policy", row),
            (chat.parent / "start", row["initial"]),
        ):
            assert answer["response"] == greedy_by_transformers(folder, words, ids, tokens=8)
    assert any(row["response"] != row["initial"]["response"] for row in rows)


def test_the_policys_average_and_a_checkpoint_answer_by_their_path(
    chat: Path, plain: Path, asked: Any
) -> None:
    ema = chat / "ppo" / "ema"
    weights = [load_file(chat / "ppo" / name / "model.safetensors") for name in ("policy", "ema")]
    assert any(bool((weights[0][name] != weights[1][name]).any()) for name in weights[0])
    (row,) = asked(ema, *prompts("Hello."), "--greedy")
    words = AutoTokenizer.from_pretrained(ema)
    ids = words.encode(row["prompt"], add_special_tokens=False)
    assert SYSTEM in row["prompt"]  # the settings of the run that it lies in
    assert row["response"] == greedy_by_transformers(ema, words, ids, tokens=8)

    checkpoint = plain / "checkpoints" / "ppo" / "000001"
    by_path = asked(checkpoint, *prompts(*TEXTS), "--greedy")
    assert asked(plain, *prompts(*TEXTS), "--greedy", "--checkpoint", 1) == by_path
    words = AutoTokenizer.from_pretrained(plain / "ppo" / "policy")
    wanted = greedy_by_transformers(checkpoint / "policy", words, words.encode(TEXTS[1]), tokens=8)
    assert by_path[1]["response"] == wanted


def test_the_initial_model_is_the_one_before_the_stage(plain: Path, asked: Any) -> None:
    options = [*prompts(*TEXTS), "--seed", 3]
    after = asked(plain, *options, "--initial")
    before = asked(plain, *options, "--stage", "sft", "--initial")
    for ppo, sft in zip(after, before, strict=True):
        assert ppo["initial"] == {key: sft[key] for key in ("response", "stop_reason", "tokens")}
    # The model that fine-tuning started from was drawn at random, and is drawn again.
    project = Project(load_recipe(plain / "recipe.resolved.yaml"), plain, Registry())
    greedy = asked(plain, *prompts(TEXTS[0]), "--greedy", "--stage", "sft", "--initial")
    ids = list(project.encoder.prompt({"prompt": TEXTS[0]}).ids)
    drawn = project.models.policy()
    wanted = greedy_by_transformers(drawn, project.tokenizer, ids, tokens=8)
    assert greedy[0]["initial"]["response"] == wanted
    assert greedy[0]["response"] != greedy[0]["initial"]["response"]


# Random numbers


def test_a_response_depends_on_its_seed_number_and_sample_and_on_nothing_else(
    plain: Path, asked: Any
) -> None:
    many = asked(plain, *prompts(*TEXTS), "--samples", 15)  # more than are sampled at a time
    assert len(many) == 45
    assert [(row["number"], row["sample"]) for row in many[14:16]] == [(0, 14), (1, 0)]
    assert asked(plain, *prompts(*TEXTS), "--samples", 15) == many
    assert asked(plain, *prompts(*TEXTS)) == many[::15]
    assert asked(plain, *prompts(TEXTS[0])) == many[:1]
    assert len({row["response"] for row in many[:15]}) > 10
    assert {row["seed"] for row in many} == {0}
    other = asked(plain, *prompts(*TEXTS), "--seed", 1)
    assert [r["response"] for r in other] != [r["response"] for r in many[::15]]


def test_it_samples_as_the_run_did_unless_it_is_told_otherwise(chat: Path, asked: Any) -> None:
    usual = asked(chat, *prompts("Hi."), "--samples", 4)
    same = ["--temperature", 0.9, "--top-k", 40, "--top-p", 0.95, "--max-new-tokens", 8]
    assert asked(chat, *prompts("Hi."), "--samples", 4, *same) == usual
    assert asked(chat, *prompts("Hi."), "--samples", 4, "--temperature", 3) != usual
    longer = asked(chat, *prompts("Hi."), "--samples", 4, "--max-new-tokens", 16)
    for long, short in zip(longer, usual, strict=True):
        assert long["response"].startswith(short["response"].rstrip("\ufffd"))
    one = asked(chat, *prompts("Hi."), "--samples", 4, "--top-k", 1)
    assert {row["response"] for row in one} == {
        row["response"] for row in asked(chat, *prompts("Hi."), "--greedy")
    }
    floor = asked(chat, *prompts("Hi."), "--samples", 4, "--min-p", 1)
    assert [row["response"] for row in floor] == [row["response"] for row in one]


# Prompts and output


def test_files_of_every_kind_and_stdin_ask_the_same(
    chat: Path, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["Is it good?", 'A "quoted" one, with a comma']
    given = asked(chat, *prompts(*questions))
    objects = [{"prompt": text} for text in questions]
    messages = [{"messages": [{"role": "user", "content": text}]} for text in questions]
    files = {
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in objects),
        "b.json": json.dumps(messages),
        "c.csv": 'prompt,n\nIs it good?,1\n"A ""quoted"" one, with a comma",2\n',
        "d.txt": "\n".join(questions),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        assert asked(chat, "--prompts", tmp_path / name) == given, name
        if name in ("a.jsonl", "d.txt"):
            monkeypatch.setattr(sys, "stdin", io.StringIO(content))
            assert asked(chat, "--prompts", "-") == given, name


def test_output_goes_to_a_file_and_stdout_stays_empty(
    plain: Path, rlframe: Any, asked: Any, tmp_path: Path
) -> None:
    rows = asked(plain, *prompts(*TEXTS))
    ended = rlframe("generate", plain, *prompts(*TEXTS), "--output", tmp_path / "out.jsonl")
    assert (ended.code, ended.out) == (0, "")
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines if line] == rows
    assert str(tmp_path / "out.jsonl") in ended.err


def test_markup_and_control_characters_stay_text(plain: Path, rlframe: Any, asked: Any) -> None:
    text = "[bold]The[/bold] \x1b[31mcamera\u2028 \u202e:smile: <eos> {x} 5%"
    (row,) = asked(plain, *prompts(text))
    assert row["prompt"] == text
    ended = rlframe("generate", plain, *prompts(text))
    assert not {"\x1b", "\u202e", "\u2028"} & set(ended.out)


def test_a_folder_of_a_model_answers_without_a_run(asked: Any, tmp_path: Path) -> None:
    folder = foreign.saved(tmp_path / "model", "chatml")
    (row,) = asked(folder, *prompts("Hi."), "--greedy", "--max-new-tokens", 8)
    words = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Hi."}]
    written = words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert row["prompt"] == written
    ids = words.encode(written, add_special_tokens=False)
    assert row["response"] == greedy_by_transformers(folder, words, ids, tokens=8)


# What is refused


def test_code_and_pickles_in_a_folder_are_left_alone(rlframe: Any, tmp_path: Path) -> None:
    folder = foreign.saved(tmp_path / "model", "base")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Model")
    (folder / "config.json").write_text(json.dumps(config))
    assert rlframe("generate", folder, "--prompt", "a", "--max-new-tokens", 2).code == 0
    assert not (tmp_path / "ran").exists()
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    ended = rlframe("generate", folder, "--prompt", "a")
    assert (ended.code, ended.out) == (3, "")
    assert "pytorch_model.bin" in ended.err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "either --prompts FILE or --prompt TEXT"),
        (["--prompt", "a", "--prompts", "b.jsonl"], 2, "either --prompts FILE or --prompt TEXT"),
        (
            ["--prompt", "a", "--stage", "pp"],
            2,
            "'pp' is no stage of this run. Did you mean 'ppo'?",
        ),
        (["--prompt", "a", "--checkpoint", "7"], 2, "no checkpoint 7 with a model. There are 1"),
        (
            ["--prompt", "a", "--stage", "sft", "--checkpoint", "7"],
            2,
            "There is none of this stage",
        ),
        (["--prompt", "a", "--greedy", "--temperature", "1"], 2, "leave one of the two out"),
        (["--prompt", "a", "--temperature", "0"], 2, "write --greedy"),
        (["--prompt", "a", "--temperature", "nan"], 2, "must be above 0 and finite"),
        (["--prompt", "a", "--top-p", "0"], 2, "must be above 0"),
        (["--prompt", "a", "--samples", "0"], 2, "--samples"),
        (["--prompt", "a b c " * 60], 3, "leave room for a response"),
        (["--prompt", "a", "--max-new-tokens", "128"], 3, "Give a smaller --max-new-tokens"),
        (["--prompts", "nowhere.jsonl"], 3, "there is no file 'nowhere.jsonl'"),
        (["--prompt", "a", "--output", "/nowhere/x"], 5, "/nowhere/x cannot be written: No such"),
    ],
)
def test_wrong_options_end_with_a_reason(
    plain: Path, rlframe: Any, options: list[str], code: int, said: str
) -> None:
    ended = rlframe("generate", plain, *options)
    words = in_a_line(ended.err)
    assert (ended.code, ended.out) == (code, "")
    assert said in words
    assert "Traceback" not in words


def test_a_place_that_is_no_run_is_named_with_a_guess(
    plain: Path, rlframe: Any, tmp_path: Path
) -> None:
    missing = rlframe("generate", plain.parent / "rum", "--prompt", "a")
    assert missing.code == 5
    assert f"{plain.parent / 'rum'} is not there" in missing.err
    assert f"Did you mean '{plain}'?" in missing.err
    above = rlframe("generate", plain.parent, "--prompt", "a")
    assert above.code == 5
    assert f"Did you mean '{plain}', the newest run in it?" in above.err
    critic = rlframe("generate", plain / "ppo" / "critic", "--prompt", "a")
    assert critic.code == 5
    assert "holds no language model" in critic.err
    inside = rlframe("generate", plain / "sft", "--prompt", "a", "--stage", "sft")
    assert inside.code == 2
    folder = foreign.saved(tmp_path / "model", "base")
    alone = rlframe("generate", folder, "--prompt", "a", "--initial")
    assert alone.code == 2
    assert "belongs to no run" in in_a_line(alone.err)


def test_a_run_without_its_model_says_what_there_is(
    plain: Path, rlframe: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(plain, run)
    weights = run / "sft" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    short = rlframe("generate", run, "--prompt", "a", "--stage", "sft")
    assert short.code == 1
    assert "was a copy cut short?" in short.err
    shutil.rmtree(run / "ppo")
    ended = rlframe("generate", run, "--prompt", "a")
    assert ended.code == 5
    assert "has no model of the stage ppo yet: its status is 'finished'" in ended.err
    assert "--stage sft" in ended.err
    assert "--checkpoint N with N one of 1" in ended.err
    assert f"rlframe resume {run}" in ended.err


def test_an_initial_model_that_has_gone_is_named(chat: Path, rlframe: Any) -> None:
    start = chat.parent / "start"
    start.rename(chat.parent / "elsewhere")
    try:
        ended = rlframe("generate", chat, "--prompt", "a", "--initial")
        assert ended.code == 3
        assert f"model.policy: {str(start)!r}" in ended.err
        assert "leave --initial out" in ended.err
        assert rlframe("generate", chat, "--prompt", "a").code == 0
    finally:
        (chat.parent / "elsewhere").rename(start)

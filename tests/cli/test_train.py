"""`rlframe train`: what is wrong with a recipe, its data or its models is reported before training."""

import atexit
import importlib
import inspect
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlframe.cli import validate
from rlframe.cli.train import train
from rlframe.distributed.child import REPORTS, read_report, report_path
from rlframe.distributed.runtime import leave
from rlframe.errors import RunError
from tests.cli.broken import distribution


@pytest.fixture(scope="module")
def things(tmp_path_factory, tokenizer, language_model):
    """Files and models that something is wrong with, by name."""
    from transformers import LlamaForSequenceClassification

    root = tmp_path_factory.mktemp("things")
    (root / "empty.jsonl").write_text("\n\n")
    (root / "broken.jsonl").write_text('{"text": "one two three four"}\n{"text": \n')
    (root / "chats.jsonl").write_text('{"messages": [{"role": "user"}]}\n' * 40)
    (root / "one.jsonl").write_text('{"text": "one two three four"}\n')

    for name, shape in (
        ("other_vocabulary", {"num_labels": 1, "vocab_size": 280}),
        ("two_labels", {"num_labels": 2}),
    ):
        shaped = language_model(**shape).config
        LlamaForSequenceClassification(shaped).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture
def refused(rlframe, recipe, tmp_path, things):
    """Train the tiny recipe with overrides, {things} filled in; nothing may have been trained."""

    def train(*overrides):
        output = tmp_path / "run"
        filled = [override.replace("{things}", str(things)) for override in overrides]
        ended = rlframe("train", recipe, *filled, "--output", output)
        assert ended.code != 0
        assert ended.err.startswith("error: ")
        for stage in ("sft", "reward_model", "ppo"):
            assert not (output / stage).exists(), f"{stage} was trained before this was reported"
        return ended.code, ended.err

    return train


BAD_INPUT = {
    "unknown key": (3, "ppo.upates=3", "ppo.upates: unknown key 'upates'. Did you mean 'updates'?"),
    "wrong type": (3, "ppo.updates=many", "ppo.updates: input should be a valid integer"),
    "missing file": (
        3,
        "data.reviews={path: '{things}/nowhere.jsonl'}",
        "data.reviews.path: there is no file",
    ),
    "empty data set": (
        3,
        "data.reviews={path: '{things}/empty.jsonl'}",
        "data.reviews: the data set is empty",
    ),
    "data that is not JSON": (
        3,
        "data.reviews={path: '{things}/broken.jsonl'}",
        "broken.jsonl:2: not valid JSON",
    ),
    "nothing held out": (3, "data.reviews.heldout=0", "has no rows held out to measure it"),
    "no such column": (3, "prompts={data: reviews}", "no text in column 'prompt'"),
    "prompt longer than the context": (
        3,
        "rollout.max_new_tokens=60",
        "Set `prompts.truncate` to drop, left or right, or allow shorter responses",
    ),
    "vocabulary of the reward model": (
        3,
        "rewards.judge={type: reward_model, model: '{things}/other_vocabulary'}",
        "rewards.judge: '{things}/other_vocabulary' has an embedding of 280 tokens",
    ),
    "vocabulary of the reference": (
        3,
        "model.reference='{things}/other_vocabulary'",
        "model.reference: {things}/other_vocabulary lacks weights of a LlamaForCausalLM",
    ),
    "model that is not there": (
        3,
        "rewards.judge={type: reward_model, model: '{things}/nowhere'}",
        "rewards.judge: there is no folder '{things}/nowhere'",
    ),
    "unknown architecture key": (
        3,
        "model.policy.architecture.hiden_size=16",
        "model.policy.architecture: a llama config has no hiden_size",
    ),
    "architecture that fits no model": (
        3,
        "model.policy.architecture.num_attention_heads=3",
        "model.policy.architecture: ",
    ),
    "samples to compare": (
        3,
        "rewards.better={type: preference_difference, against: others, "
        "reward: {type: length, target_tokens: 4}}",
        "rewards.better: it compares the responses to one prompt",
    ),
    "column to compare with": (
        3,
        "rewards.better={type: preference_difference, against: column, column: human, "
        "reward: {type: length, target_tokens: 4}}",
        "rewards.better: not every row of the prompts' data has a value in column 'human'",
    ),
    "missing plugin": (
        4,
        "rewards.polite={type: acme/polite}",
        "rewards.polite.type: there is no reward called 'acme/polite'",
    ),
}


@pytest.mark.parametrize(("code", "override", "expected"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_told_before_anything_trains(refused, things, code, override, expected):
    found, error = refused(override)
    assert expected.replace("{things}", str(things)) in error
    assert found == code


TAKES_MORE_THAN_A_LOOK = {
    "data of a loss": (
        "losses.ptx.data: there is no data set 'revews'",
        ["losses.ptx={type: ptx, gamma: 0.1, data: revews}"],
    ),
    "data of a loss without prompts": (
        "losses.demos: ",
        ["losses.demos={type: sft, data: reviews}"],
    ),
    "start of the reward model": (
        "reward_model.initial: ",
        ["reward_model={data: reviews, initial: '{things}/nowhere'}"],
    ),
    "reward model with two labels": (
        "rewards.judge: ",
        [
            "model.policy.tokenizer='{things}/two_labels'",
            "rewards.judge={type: reward_model, model: '{things}/two_labels'}",
        ],
    ),
    "reward model that is the fine-tuned policy": (
        "rewards.judge: ",
        ["rewards.judge={type: reward_model, model: 'stage:sft'}"],
    ),
    "chats that are none": (
        "a message has the keys 'role'; it needs `role` and `content`",
        ["data.reviews={path: '{things}/chats.jsonl'}"],
    ),
}


@pytest.mark.parametrize(
    ("expected", "overrides"),
    [
        pytest.param(expected, overrides, id=name)
        for name, (expected, overrides) in TAKES_MORE_THAN_A_LOOK.items()
    ],
)
def test_bad_input_that_takes_more_than_a_look_is_told_before_anything_trains(
    refused, expected, overrides
):
    code, error = refused(*overrides)
    assert expected in error
    assert code == 3


def test_an_unknown_model_type_is_told_in_few_words_with_a_guess(refused):
    code, error = refused("model.policy.architecture.model_type=lama")
    assert code == 3
    assert "Did you mean 'llama'?" in error
    assert len(error) < 500


def test_a_plugin_that_can_not_be_imported_is_told_before_anything_trains(
    refused, tmp_path, monkeypatch
):
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    module = "import detoxify_is_missing\n"
    file = distribution(site, "brk", offers={"safety": "Reward"}, module=module)
    importlib.invalidate_caches()
    code, error = refused("rewards.safety={type: safety}")
    assert code == 4
    assert "rewards.safety.type: reward safety (brk 1.0) could not be imported" in error
    assert f"No module named 'detoxify_is_missing' [{file}:1]" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_the_device_ends_with_5(refused):
    code, error = refused("runtime.device=cuda")
    assert code == 5
    assert "torch sees no GPU" in error


def test_a_directory_that_holds_something_ends_with_5_and_is_left_as_it_is(
    rlframe, recipe, tmp_path
):
    output = tmp_path / "run"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    ended = rlframe("train", recipe, "--output", output)
    assert ended.code == 5
    assert f"{output} is not empty" in ended.err
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def test_an_output_that_is_a_file_ends_with_5(rlframe, recipe, tmp_path):
    output = tmp_path / "run"
    output.write_text("mine")
    ended = rlframe("train", recipe, "--output", output)
    assert ended.code == 5
    assert output.read_text() == "mine"


def test_a_typo_writes_no_run_directory_at_all(refused, tmp_path):
    refused("ppo.upates=3")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_was_refused_can_be_mended_and_checked_again_with_the_same_output(refused):
    refused("rollout.max_new_tokens=60")
    code, error = refused("rollout.max_new_tokens=60")
    assert code == 3
    assert "is not empty" not in error


# And what is right does train: the recipe of these tests is not what they refuse.


def test_the_recipe_of_these_tests_trains_and_says_where_everything_is(rlframe, recipe, tmp_path):
    output = tmp_path / "run"
    ended = rlframe("train", recipe, "--output", output)
    assert ended.code == 0, ended.err
    assert ended.out.endswith(f"Everything is in {output}\n")
    assert (output / "sft" / "model.safetensors").is_file()
    assert (output / "ppo" / "policy" / "model.safetensors").is_file()
    assert json.loads((output / "manifest.json").read_text())["status"] == "finished"


def test_a_reward_that_compares_the_samples_of_a_prompt_trains(rlframe, recipe, tmp_path):
    ended = rlframe(
        "train",
        recipe,
        "rollout.samples_per_prompt=2",
        "rewards.better={type: preference_difference, against: others, "
        "reward: {type: length, target_tokens: 4}}",
        "--output",
        tmp_path / "run",
    )
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("strategy", "called"), [("deepspeed", "DeepSpeed ZeRO-2"), ("fsdp", "FSDP2")]
)
def test_a_process_that_is_alone_runs_any_strategy(tiny_recipe, tmp_path, strategy, called):
    # In a process of its own: the engines' group of one would stay in this one.
    command = [
        sys.executable,
        "-m",
        "rlframe",
        "train",
        tiny_recipe(),
        "--output",
        tmp_path / "run",
    ]
    done = subprocess.run(
        [*map(str, command), f"runtime.strategy={strategy}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["strategy"].startswith(called)


# Several processes. What the launcher promises is in tests/distributed/test_launch.py.


@pytest.fixture
def launched(monkeypatch):
    """What would have been launched, as (command, settings); the launch ends with 42."""
    from rlframe.distributed import launch

    calls = []

    def instead(command, **settings):
        calls.append((command, settings))
        return launch.Ended(42)

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launch, "launch", instead)
    return calls


def test_every_option_reaches_the_ranks(rlframe, recipe, launched, tmp_path):
    output = tmp_path / "run"
    given = {
        "recipe": [recipe],
        "overrides": ["ppo.updates=3", "~sft"],
        "output": ["--output", output],
        "no_plugin": ["--no-plugin=rlframe/gae", "--no-plugin=rlframe/regex"],
        "allow_local_code": ["--allow-local-code"],
    }
    assert {*given, "processes"} == set(inspect.signature(train).parameters)
    words = [str(word) for words in given.values() for word in words]
    assert rlframe("train", "--processes", 3, *words, "algorithm.advantages.type=gae").code == 4
    assert rlframe("train", "--processes", 3, *words[:-3], words[-1]).code == 42
    [(command, settings)] = launched
    assert command[0] == sys.executable
    assert command[command.index("-m") :] == ["-m", "rlframe", "train", *words[:-3], words[-1]]
    assert settings == {"processes": 3, "threads": 1}


def test_the_ranks_share_one_directory_whenever_each_of_them_starts(rlframe, recipe, launched):
    rlframe("train", recipe, "--processes", 2)
    command = launched[0][0]
    assert Path(command[command.index("--output") + 1]).parts[:1] == ("runs",)


def test_a_file_beside_the_user_hides_no_library_from_the_ranks(
    rlframe, recipe, launched, monkeypatch
):
    for path, safe in ((["/somewhere"], True), ([os.getcwd()], False), ([""], False)):
        with monkeypatch.context() as patch:
            patch.setattr(
                sys, "path", [*path, *(p for p in sys.path if p not in ("", os.getcwd()))]
            )
            rlframe("train", recipe, "--processes", 2)
        assert ("-P" in launched.pop()[0]) is safe


@pytest.mark.parametrize(
    ("code", "words", "expected"),
    [
        (3, ["ppo.upates=3"], "Did you mean 'updates'?"),
        (2, ["--processes", "0"], "--processes"),
        (5, ["--output", "."], "is not empty"),
    ],
)
def test_what_can_be_told_before_a_process_starts_is(
    rlframe, recipe, launched, monkeypatch, tmp_path, code, words, expected
):
    monkeypatch.chdir(tmp_path)
    ended = rlframe("train", recipe, "--processes", "2", *words)
    assert ended.code == code
    assert expected in ended.err
    assert not launched


def test_one_process_has_no_children(rlframe, recipe, launched):
    assert rlframe("train", recipe, "ppo.upates=3", "--processes", 1).code == 3
    assert not launched


def test_processes_of_torchrun_start_no_processes(rlframe, recipe, launched, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = rlframe("train", recipe, "--processes", 2)
    assert ended.code == 2
    assert "WORLD_SIZE is set" in ended.err
    assert not launched


def test_a_refusal_by_all_ranks_is_told_once(recipe, tmp_path):
    command = [sys.executable, "-m", "rlframe", "train", str(recipe), "--processes", "2"]
    few = ["rollout.prompts_per_update=1", "--output", str(tmp_path / "run")]
    done = subprocess.run([*command, *few], capture_output=True, text=True)
    assert done.returncode == 3
    expected = (
        "error: override 'rollout.prompts_per_update=1': rollout.prompts_per_update: 1 prompts are too "
        "few for 2 processes\n"
    )
    assert done.stderr == expected
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (RunError("the loss is not finite"), 1, "error: the loss is not finite"),
        (KeyError("a bug"), 1, "error: KeyError: 'a bug'"),
    ],
)
def test_a_rank_leaves_its_error_to_the_launcher(
    rlframe, recipe, monkeypatch, tmp_path, error, code, expected
):
    def load_recipe(*_, **__):
        raise error

    monkeypatch.setenv(REPORTS, str(tmp_path))
    monkeypatch.setattr(validate, "load_recipe", load_recipe)
    assert rlframe("validate", recipe) == (code, "", "")
    report = read_report(report_path(tmp_path, 0))
    assert report.exit_code == code
    assert report.message.startswith(expected)
    assert str(error) in report.message


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ([], 0),
        (["ppo.updates=9", "checkpoints={stop_after_minutes: 0.0001}"], 130),
        (["ppo.updates=9", "ppo.learning_rate=1e30", "ppo.max_bad_steps=1"], 1),
    ],
)
def test_a_run_leaves_its_processes_where_all_of_them_end_together(
    rlframe, recipe, tmp_path, monkeypatch, changes, code
):
    """One that fails does not: the others may be anywhere."""
    at_exit = []
    monkeypatch.setattr(atexit, "register", lambda called, *_, **__: at_exit.append(called))
    ended = rlframe("train", recipe, *changes, "--output", tmp_path / "run")
    assert ended.code == code, ended.err
    assert (leave in at_exit) == (code != 1)


def test_two_launchers_of_torchrun_are_one_run(recipe, tmp_path):
    """As on two machines: each starts its own processes, and they find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--rdzv-id", "t", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    run = tmp_path / "run"
    words = ["-m", "rlframe", "train", str(recipe), "--output", str(run)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", *meeting, *words]
    several = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [launcher.communicate(timeout=240)[0] for launcher in several]
    assert [launcher.returncode for launcher in several] == [0, 0], said
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["processes"]) == ("finished", 2)
    assert "".join(said).count("Everything is in") == 1


@pytest.mark.parametrize(
    ("engine", "called"),
    [
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 1}",
            "DeepSpeed ZeRO-1, float32",
        ),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}", "FSDP2, float32"),
    ],
)
def test_accelerate_launch_runs_the_engine_of_its_config_file(recipe, tmp_path, engine, called):
    config = tmp_path / "accelerate.yaml"
    machine = "compute_environment: LOCAL_MACHINE\nuse_cpu: true\nmixed_precision: 'no'"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = f"num_machines: 1\nmachine_rank: 0\nnum_processes: 2\nmain_process_port: {port}"
    config.write_text(f"{machine}\n{count}\n{engine}\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    run = tmp_path / "run"
    words = ["-m", "rlframe", "train", str(recipe), "ppo.updates=1", "--output", str(run)]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    found = {key: manifest[key] for key in ("status", "processes", "strategy")}
    assert found == {"status": "finished", "processes": 2, "strategy": called}

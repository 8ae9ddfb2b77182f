"""`rlframe validate`: mistakes of data and of folders of models, all at once, without torch."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from rlframe.compose.preflight import left_out, look
from rlframe.errors import RlframeError
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from tests import foreign
from tests.conftest import TINY

TEXTS = [{"text": f"the lamp number {i} is fine", "label": i % 2} for i in range(40)]
ANSWERED = [{"prompt": f"how is lamp {i}?", "response": f"lamp {i} is fine"} for i in range(40)]
PAIRS = [{"prompt": f"lamp {i}?", "chosen": "fine", "rejected": "bad"} for i in range(40)]
FILES = {"texts": TEXTS, "answered": ANSWERED, "pairs": PAIRS}

Change = Callable[[dict[str, Any], Path], None]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: three data sets, and a model with its tokenizer."""
    monkeypatch.chdir(tmp_path)
    for name, rows in FILES.items():
        write(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def problems(folder: Path, *changes: Change) -> dict[str, str]:
    """Path -> message of each mistake of a sound recipe after some changes."""
    data = copy.deepcopy(TINY)
    data["data"] = {name: {"path": f"{name}.jsonl", "heldout": 0.2} for name in FILES}
    data["model"]["policy"]["tokenizer"]["data"] = "texts"
    data["sft"] = {"data": "answered"}
    data["reward_model"] = {"data": "pairs"}
    data["prompts"] = {"data": "answered"}
    for change in changes:
        change(data, folder)
    path = folder / "recipe.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(data, file)
    try:
        load_recipe(path, registry=Registry(local_code=True), look=look)
    except RlframeError as error:
        found = error.problems
    else:
        found = ()
    assert all(str(path) in problem.place for problem in found)
    return {".".join(map(str, p.path)): p.message for p in found}


def merged(**sections: Any) -> Change:
    """More keys for some sections of the recipe."""

    def change(data: dict[str, Any], folder: Path) -> None:
        for name, keys in sections.items():
            data[name] = {**data.get(name, {}), **keys}

    return change


def dataset(name: str, **keys: Any) -> Change:
    """More keys for one data set."""
    return lambda data, folder: data["data"][name].update(keys)


def file(name: str, content: str) -> Change:
    """Other content for a file."""

    def change(data: dict[str, Any], folder: Path) -> None:
        (folder / name).write_text(content)

    return change


def reward(**keys: Any) -> Change:
    return merged(rewards={"mine": keys})


def both(*changes: Change) -> Change:
    """One change after the other."""

    def change(data: dict[str, Any], folder: Path) -> None:
        for one in changes:
            one(data, folder)

    return change


def saved(family: str, spoil: Callable[[Path], object], *, place: str = "policy") -> Change:
    """A policy, or another model, of a folder that something happened to."""

    def change(data: dict[str, Any], folder: Path) -> None:
        foreign.saved(folder / "model", family)
        spoil(folder / "model")
        data["model"][place] = "./model"

    return change


def edited(name: str, **keys: Any) -> Callable[[Path], object]:
    """Other keys in a JSON file of a model's folder."""

    def spoil(path: Path) -> None:
        (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | keys))

    return spoil


def cut(name: str) -> Callable[[Path], object]:
    """A file of a model's folder without its end."""
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-9])


MISTAKES: dict[str, tuple[Change, str, str]] = {
    "a line that is no JSON": (
        file("answered.jsonl", '{"prompt": "a"\n'),
        "data.answered",
        "answered.jsonl:1: ",
    ),
    "an empty file": (file("pairs.jsonl", ""), "data.pairs", "the data set is empty"),
    "a column that is not there": (
        dataset("answered", columns={"prompt": "promt"}),
        "data.answered.columns.prompt",
        "no column 'promt'. Did you mean 'prompt'?",
    ),
    "a split of a file": (dataset("texts", split="test"), "data.texts.split", "only a folder"),
    "texts for sft without a text": (
        merged(sft={"data": "pairs"}),
        "sft.data",
        "data.pairs, pairs.jsonl:1: no text in column 'text'",
    ),
    "nothing held out": (
        dataset("pairs", heldout=0),
        "reward_model.data",
        "no rows held out to measure it (data.pairs.heldout is 0.0)",
    ),
    "pairs without pairs": (
        merged(reward_model={"data": "answered"}),
        "reward_model",
        "answered.jsonl:2: this row is neither a pair (chosen and rejected) nor a labelled text",
    ),
    "half of a pair": (
        file("pairs.jsonl", '{"chosen": "a", "rejected": "b"}\n{"chosen": "c"}\n' * 9),
        "reward_model",
        "pairs.jsonl:2: no text in column 'rejected'",
    ),
    "a label that nobody has": (
        merged(reward_model={"data": "texts", "preferred_label": "good"}),
        "reward_model.preferred_label",
        "0 rows are labelled 'good'",
    ),
    "labels of which the held-out side has one": (
        both(
            merged(reward_model={"data": "texts"}),
            dataset("texts", heldout=0.01),
        ),
        "reward_model.preferred_label",
        "pairs need both",
    ),
    "prompts without a prompt": (
        merged(prompts={"data": "texts"}),
        "prompts.data",
        "no text in column 'prompt'",
    ),
    "a list of messages as prompt": (
        file("answered.jsonl", '{"prompt": ["a", "b"], "response": "c"}\n' * 30),
        "prompts.data",
        "column 'prompt' holds a list, not a text",
    ),
    "a template with a column that is not there": (
        merged(prompts={"data": "answered", "template": "Q: {question}"}),
        "prompts.template",
        "there is no column 'question'",
    ),
    "a template whose braces are open": (
        merged(prompts={"data": "answered", "template": "Q: {prompt"}),
        "prompts.template",
        "a brace that is text is written twice",
    ),
    "a loss on texts that needs demonstrations": (
        merged(losses={"keep": {"type": "sft", "data": "texts"}}),
        "losses.keep",
        "no prompt with a response",
    ),
    "a loss on data without text": (
        merged(losses={"keep": {"type": "ptx", "data": "pairs", "gamma": 0.5}}),
        "losses.keep",
        "no text in column 'text'",
    ),
    "samples per prompt": (
        reward(
            type="preference_difference",
            against="others",
            reward={"type": "length", "target_tokens": 4},
        ),
        "rewards.mine",
        "set rollout.samples_per_prompt to 2 or more",
    ),
    "a model type that nobody knows": (
        merged(model={"policy": {"architecture": {"model_type": "lama"}, "tokenizer": "./model"}}),
        "model.policy.architecture",
        "transformers has no model type 'lama'. Did you mean 'llama'?",
    ),
    "no folder of that name": (
        merged(model={"policy": "./modle"}),
        "model.policy",
        "there is no folder './modle'",
    ),
    "a folder without weights": (
        saved("llama3", lambda path: (path / "model.safetensors").unlink()),
        "model.policy",
        "has no model.safetensors",
    ),
    "weights that are cut off": (
        saved("llama3", cut("model.safetensors")),
        "model.policy",
        "cut off or damaged",
    ),
    "a config that is cut off": (saved("llama3", cut("config.json")), "model.policy", "is no JSON"),
    "a config of a model to come": (
        saved("llama3", edited("config.json", model_type="llama9")),
        "model.policy",
        "no model type 'llama9'",
    ),
    "weights that are quantised": (
        saved("llama3", edited("config.json", quantization_config={"quant_method": "gptq"})),
        "model.policy",
        "the weights are quantised (gptq)",
    ),
    "a policy without a tokenizer": (
        saved("llama3", lambda path: [file.unlink() for file in path.glob("tokenizer*")]),
        "model.policy",
        "has no tokenizer",
    ),
    "an adapter as reference": (
        saved(
            "llama3",
            lambda path: (path / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
            place="reference",
        ),
        "model.reference",
        "is an adapter (LORA)",
    ),
    "responses that fill the context": (
        merged(rollout={"max_new_tokens": 128}),
        "rollout.max_new_tokens",
        "the model reads 128 tokens",
    ),
    "a context that a published config calls otherwise": (
        saved("llama3", edited("config.json", max_position_embeddings=None, n_ctx=8)),
        "rollout.max_new_tokens",
        "the model reads 8 tokens",
    ),
    "a system's message without a template": (
        merged(prompts={"data": "answered", "system": "Be brief."}),
        "prompts.system",
        "no chat template",
    ),
    "a system's message for a tokenizer without a template": (
        both(
            merged(prompts={"data": "answered", "system": "Be brief."}),
            saved("base", lambda path: None),
        ),
        "prompts.system",
        "no chat template",
    ),
    "settings of DeepSpeed that are not there": (
        merged(runtime={"strategy": "deepspeed", "deepspeed_config": "zero.json"}),
        "runtime.deepspeed_config",
        "there is no file 'zero.json'",
    ),
    "prompts that leave no room": (
        merged(prompts={"data": "answered", "max_tokens": 125}),
        "prompts.max_tokens",
        "are more than the 128",
    ),
}


def test_a_sound_recipe_has_none(folder: Path) -> None:
    assert problems(folder) == {}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_is_found_at_its_place(name: str, folder: Path) -> None:
    change, path, message = MISTAKES[name]
    found = problems(folder, change)
    assert message in found[path]


def test_all_are_told_at_once_together_with_those_of_the_recipe(folder: Path) -> None:
    found = problems(
        folder,
        merged(sft={"data": "pairs"}, prompts={"data": "texts"}, ppo={"max_grad_norm": -1}),
        dataset("texts", columns={"text": "txt"}),
        saved("llama3", cut("model.safetensors"), place="reference"),
        reward(type="lenght"),
    )
    assert set(found) == {
        "data.texts.columns.text",
        "sft.data",
        "model.reference",
        "rewards.mine.type",
        "ppo.max_grad_norm",
    }


def test_a_column_that_a_component_reads_has_a_value_in_every_row(folder: Path) -> None:
    source = (
        "from rlframe.api import ColumnName, PluginConfig, RewardProvider\n"
        "class Keys(PluginConfig):\n    key: ColumnName = 'answer'\n"
        "class Mine(RewardProvider[Keys]):\n"
        "    def score(self, batch):\n        return [0.0] * len(batch)\n"
    )
    (folder / "mine.py").write_text(source)
    found = problems(folder, reward(type="./mine.py:Mine"))
    assert (
        "not every row of the prompts' data has a value in column 'answer'" in found["rewards.mine"]
    )
    answered = [row | {"answer": "4"} for row in ANSWERED]
    write(folder / "answered.jsonl", answered)
    assert problems(folder, reward(type="./mine.py:Mine")) == {}
    write(folder / "answered.jsonl", [*answered, ANSWERED[0]])
    assert (
        "answered.jsonl:41 has none"
        in problems(folder, reward(type="./mine.py:Mine"))["rewards.mine"]
    )


def test_what_nothing_limits_or_reads_is_no_mistake(folder: Path) -> None:
    alibi = edited("config.json", max_position_embeddings=4, alibi=True)
    assert problems(folder, saved("llama3", alibi)) == {}
    brief = merged(prompts={"data": "answered", "system": "Be brief."})
    assert problems(folder, saved("llama3", lambda path: None), brief) == {}

    def without_ppo(data: dict[str, Any], folder: Path) -> None:
        data["model"]["critic"] = {"initial": "./nowhere"}
        for name in ("prompts", "rollout", "rewards", "kl", "ppo", "evaluation"):
            del data[name]

    assert problems(folder, without_ppo) == {}


def test_what_lies_on_the_hub_is_not_looked_for(folder: Path) -> None:
    def hub(data: dict[str, Any], folder: Path) -> None:
        data["model"]["policy"] = "somebody/some-model"
        data["data"]["answered"] = {"hub": {"id": "somebody/some-data"}}

    assert problems(folder, hub) == {}
    loaded = load_recipe(folder / "recipe.yaml")
    assert left_out(loaded.recipe, loaded.chosen) == [
        "data.answered ('somebody/some-data' of the hub)",
        "model.policy ('somebody/some-model' of the hub)",
    ]


def test_files_and_models_are_looked_at_without_torch(folder: Path) -> None:
    change = saved("llama3", lambda path: None)
    assert problems(folder, change) == {}
    script = (
        "import sys\nfrom rlframe.cli.main import main\n"
        "try:\n    main(['validate', 'recipe.yaml'])\n"
        "finally:\n    print([n for n in ('torch', 'transformers') if n in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr

"""Model folders as people have them, named in a recipe: nothing of them is random, misread or run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests import foreign
from tests.situations import Situation, recipe

Change = Callable[[Path], None]


def _train(folder: Path, **models: Any) -> list[str]:
    """Train the tiny recipe with those models, a policy in `policy` unless another is named."""
    if "policy" not in models:
        foreign.saved(folder / "policy", "chatml")
    path = recipe(folder, model={"policy": "policy", **models})
    return ["train", path, "--output", "run"]


def _policy(change: Change, name: str = "policy", **options: Any) -> Callable[[Path], list[str]]:
    """A policy whose folder was changed."""

    def make(folder: Path) -> list[str]:
        foreign.saved(folder / "policy", "chatml", **options)
        change(folder / "policy")
        return _train(folder, policy=name)

    return make


def _other(
    at: dict[str, Any], family: str = "chatml", *, seed: int = 0, **options: Any
) -> Callable[[Path], list[str]]:
    """A second model in `other`, which part of the recipe names; its vocabulary has a seed."""

    def make(folder: Path) -> list[str]:
        words = foreign.tokenizer(family, seed=seed)
        foreign.saved(folder / "other", family, words=words, **options)
        return _train(folder, **at)

    return make


def _weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return apply


def _config(**keys: Any) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))

    return apply


def _written(file: str, text: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / file).write_text(text)

    return apply


def _nothing(folder: Path) -> None:
    """The folder stays as it is."""


def _only(*kept: str, **written: str) -> Change:
    """Nothing but some files stay."""

    def apply(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()
        for name, text in written.items():
            (folder / name.replace("__", ".")).write_text(text)

    return apply


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _sharded_without_one(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    max(folder.glob("model-*.safetensors")).unlink()


def _moved(folder: Path) -> None:
    (folder / "ppo").mkdir()
    shutil.move(folder, folder.with_name("gone"))
    shutil.move(folder.with_name("gone"), folder / "ppo" / "policy")


def _pickled(folder: Path) -> None:
    import torch

    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4920739\n"
_TRAITOR = (
    "from pathlib import Path\nPath('RAN').touch()\nfrom transformers import LlamaConfig as C\n"
)


def _with_code(folder: Path) -> None:
    (folder / "evil.py").write_text(_TRAITOR)
    _config(model_type="evil", auto_map={"AutoConfig": "evil.C"})(folder)


def _adapter(folder: Path) -> None:
    _only("tokenizer.json", "tokenizer_config.json")(folder)
    about = {"peft_type": "LORA", "base_model_name_or_path": "acme/base-7b", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    save_file({}, folder / "adapter_model.safetensors")


def _planned(make: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
    return lambda folder: ["plan", make(folder)[1]]


def _mistral(folder: Path) -> list[str]:
    foreign.saved(folder / "mistral", "mistral")
    foreign.saved(folder / "other", "mistral", vocab_size=384)
    return _train(folder, policy="mistral", reference="other", critic={"initial": "mistral"})


AT = "recipe.yaml:"
CRITIC = {"critic": {"initial": "other"}}


def _grown(folder: Path) -> list[str]:
    """A token that was added to a tokenizer after its model was saved."""
    foreign.saved(folder / "policy", "chatml")
    words = foreign.tokenizer("chatml")
    words.add_tokens(["<tool>"])
    words.save_pretrained(folder / "policy")
    return _train(folder, policy="policy")


SITUATIONS = [
    # Weights that are missing
    Situation(
        "a projection is missing",
        _policy(
            _weights(lambda w: {k: v for k, v in w.items() if "layers.1.self_attn.o_proj" not in k})
        ),
        3,
        (
            AT,
            "model.policy: ",
            "which would be random: model.layers.1.self_attn.o_proj.weight. ",
        ),
    ),
    Situation(
        "weights saved inside of a wrapper",
        _policy(_weights(lambda w: {f"_orig_mod.{k}": v for k, v in w.items()})),
        3,
        ("Every name in the file begins with '_orig_mod.'",),
    ),
    Situation(
        "a head under another name",
        _policy(_weights(lambda w: {k.replace("lm_head", "output"): v for k, v in w.items()})),
        3,
        (
            "which would be random: lm_head.weight. ",
            "output.weight has the shape of lm_head.weight",
        ),
    ),
    Situation(
        "a classifier as reference",
        _other({"reference": "other"}, head="sequence", num_labels=1),
        3,
        (
            "model.reference: ",
            "which would be random: lm_head.weight. ",
            "head of another model, score.weight",
        ),
    ),
    Situation(
        "a critic is to keep a head that a language model has not",
        _other({"critic": {"initial": "other", "head": "keep"}}),
        3,
        ("model.critic.initial: ", "which would be random: score.weight. ", "`head: zero`"),
    ),
    Situation(
        "a config with fewer layers than the weights",
        _policy(_config(num_hidden_layers=1)),
        3,
        ("model.layers.1.", "would be left out"),
    ),
    Situation(
        "a config of another shape",
        _policy(_config(intermediate_size=64)),
        3,
        ("down_proj.weight has the shape [16, 32] in the file and [16, 64] by the config",),
    ),
    # Files that are not what they should be
    Situation("weights that are cut off", _policy(_cut), 3, ("model.safetensors is cut off",)),
    Situation(
        "weights that Git LFS never fetched",
        _policy(_written("model.safetensors", _POINTER)),
        3,
        ("model.safetensors is a Git LFS pointer", "git lfs pull"),
    ),
    Situation(
        "a tokenizer that Git LFS never fetched",
        _policy(_written("tokenizer.json", _POINTER)),
        3,
        ("tokenizer.json is a Git LFS pointer",),
    ),
    Situation(
        "one of several files of weights is missing",
        _policy(_sharded_without_one),
        3,
        (".safetensors is missing", "that model.safetensors.index.json names are not there"),
    ),
    Situation(
        "an empty config", _policy(_written("config.json", "")), 3, ("config.json is empty",)
    ),
    Situation("a config cut off", _policy(_written("config.json", '{"a":')), 3, ("is no JSON",)),
    Situation(
        "a broken generation config, whose ends would be lost",
        _policy(_written("generation_config.json", '{"eos_token_id": [1,')),
        3,
        ("generation_config.json is no JSON",),
    ),
    Situation(
        "a config with a number where there is none",
        _policy(_config(hidden_size="wide")),
        3,
        ("config.json makes no model", "hidden_size"),
    ),
    Situation(
        "a model type that transformers does not know",
        _policy(_config(model_type="lama")),
        3,
        ("has no model type 'lama'", "Did you mean 'llama'?"),
    ),
    Situation(
        "quantised weights",
        _policy(_config(quantization_config={"quant_method": "gptq", "bits": 4})),
        3,
        ("the weights are quantised (gptq)",),
    ),
    Situation(
        "pickled weights",
        _policy(_pickled),
        3,
        ("pytorch_model.bin is a pickle", "convert makes them elsewhere"),
        ("Traceback", "use_safetensors", "weights_only"),
    ),
    Situation(
        "a folder of GGUF",
        _policy(_only(model__gguf="GGUF")),
        3,
        ("model.gguf is in the format of GGUF",),
    ),
    Situation(
        "a folder without weights",
        _policy(_only("config.json", "tokenizer.json", "tokenizer_config.json")),
        3,
        ("has no model.safetensors. There are no weights in it",),
    ),
    Situation(
        "a model without a tokenizer",
        _policy(_only("config.json", "model.safetensors")),
        3,
        ("model.policy: policy has no tokenizer", "tokenizer.save_pretrained('policy')"),
    ),
    Situation(
        "an adapter",
        _policy(_adapter),
        3,
        ("policy is an adapter (LORA) of 'acme/base-7b', not a whole model", "merge_and_unload"),
    ),
    Situation(
        "a file of weights instead of the folder",
        _policy(_nothing, "policy/model.safetensors"),
        3,
        ("'policy/model.safetensors' is a file", "Did you mean 'policy'?"),
    ),
    Situation(
        "a run directory instead of the model in it",
        _policy(_moved),
        3,
        ("policy is no model: it has no config.json. Did you mean 'policy/ppo/policy'?",),
    ),
    # Kinds of models
    Situation(
        "an encoder as policy",
        _other({"policy": "other"}, kind="bert", head="token"),
        3,
        ("'other' is an encoder (bert)",),
    ),
    Situation(
        "an encoder as critic",
        _other(CRITIC, kind="bert", head="sequence", num_labels=1),
        3,
        ("model.critic.initial: BertForSequenceClassification has no linear `score` head",),
    ),
    # Names
    Situation(
        "a misspelt path is no repository",
        _policy(_nothing, "./polcy"),
        3,
        ("model.policy: there is no folder './polcy'. Did you mean 'policy'?",),
        ("Traceback", "repo id", "huggingface.co", "HF_HUB_OFFLINE"),
    ),
    Situation(
        "a path in a folder that is there is no repository",
        _policy(_nothing, "policy/final"),
        3,
        ("there is no folder 'policy/final'",),
        ("Traceback", "repo id", "huggingface.co", "HF_HUB_OFFLINE"),
    ),
    Situation(
        "a path through folders that are not there",
        lambda folder: _train(folder, policy="./models/llama/final"),
        3,
        (
            "there is no folder './models/llama/final'",
            "There is no 'models' in the current directory",
        ),
        ("Traceback", "repo id", "huggingface.co"),
    ),
    Situation(
        "a repository while the hub is out of reach",
        lambda folder: _train(folder, policy="acme/llama-7b"),
        3,
        ("'acme/llama-7b' is neither a folder here nor in the cache", "HF_HUB_OFFLINE is set"),
    ),
    # Tokenizers
    Situation(
        "a reference with another tokenizer of the same size",
        _other({"reference": "other"}, seed=7),
        3,
        ("model.reference: 'other' has another tokenizer than the policy", "of 320 tokens differ"),
    ),
    Situation(
        "a critic with another tokenizer of the same size",
        _other(CRITIC, "llama3", head="sequence", num_labels=1),
        3,
        ("model.critic.initial: 'other' has another tokenizer than the policy",),
    ),
    Situation(
        "two models are wrong, and both are reported",
        _other({"reference": "./nowhere", **CRITIC}, "llama3"),
        3,
        (
            "model.reference: there is no folder",
            "model.critic.initial: 'other' has another tokenizer",
        ),
    ),
    # Code
    Situation(
        "code in a model's folder",
        _policy(_with_code),
        3,
        ("has no model type 'evil', and the code that comes with the folder is never run",),
        ("Traceback", "trust_remote_code", "[y/N]"),
    ),
    Situation(
        "code in the folder of a planned model",
        _planned(_policy(_with_code)),
        3,
        ("the code that comes with the folder is never run",),
        ("Traceback", "trust_remote_code", "[y/N]"),
    ),
    # What works
    Situation(
        "a tokenizer with more tokens than the model has rows",
        _grown,
        0,
        ("none for 1 of the tokenizer's tokens, such as '<tool>'. Theirs are new and random",),
    ),
    Situation(
        "no padding token, a reference with more tokens and a critic from a language model",
        _mistral,
        0,
        ("Everything is in run",),
    ),
]

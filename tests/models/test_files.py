"""Where a model is looked for, and what is said of a folder that holds none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from rlframe.errors import RecipeError
from rlframe.models import files
from rlframe.models.pretrained import Pretrained
from tests import foreign

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(name: str) -> str:
    with pytest.raises(RecipeError) as caught:
        files.find(name)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["./model", "../model", "/nowhere/model", "~/no such model", "a/b/c", "models/", "some model",
     "folder/model", "back\\slash", ".hidden/model"],
)  # fmt: skip
def test_what_is_written_like_a_path_is_never_called_a_repository(name: str, here: Path) -> None:
    (here / "folder").mkdir()
    message = refusal(name)
    assert message.startswith(f"there is no folder {name!r}")
    assert "hub" not in message.lower()


@pytest.mark.parametrize("name", ["gpt2", "acme/model", "acme/model-7B_v0.1"])
def test_what_may_be_a_repository_is_looked_for_in_the_cache(name: str, here: Path) -> None:
    message = refusal(name)
    assert message.startswith(f"{name!r} is neither a folder here nor in the cache")
    assert "HF_HUB_OFFLINE is set" in message


def test_a_bare_name_beside_a_folder_of_a_similar_one_is_guessed(here: Path) -> None:
    (here / "policy").mkdir()
    assert "Did you mean 'policy'?" in refusal("polcy")


def test_the_home_directory_has_its_short_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    foreign.saved(here / "model", "chatml")
    assert Pretrained("~/model").check("causal") == ()


def test_a_repository_in_the_cache_is_opened_without_the_network(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = here / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--acme--tiny"
    snapshot = foreign.saved(repository / "snapshots" / COMMIT, "chatml")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    saved = Pretrained("acme/tiny", at="model.policy")
    assert saved.path == str(snapshot)
    assert len(saved.tokenizer) == 320
    assert saved.load("causal", dtype=torch.float64).dtype == torch.float64
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"^model\.policy: .* has no model\.safetensors"):
        Pretrained("acme/tiny", at="model.policy").check("causal")


def test_the_model_inside_of_a_folder_is_found(here: Path) -> None:
    model = foreign.saved(here / "model", "chatml")
    shutil.copytree(model, here / "run" / "ppo" / "policy")
    shutil.copytree(model, here / "run" / "ppo" / "critic")
    with pytest.raises(RecipeError) as caught:
        _ = Pretrained("run").config
    assert "Did you mean 'run/ppo/critic'?" in str(caught.value)
    assert "run/ppo/policy" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [("model.gguf", "GGUF"), ("tf_model.h5", "TensorFlow"), ("pytorch_model.bin", "is a pickle"),
     ("model.pt", "is a pickle"), ("consolidated.safetensors", "save_pretrained"),
     ("shard-00001-model-00001-of-00002.safetensors", "a rank's share")],
)  # fmt: skip
def test_other_formats_are_named_with_what_to_do(file: str, message: str, here: Path) -> None:
    model = foreign.saved(here / "model", "chatml")
    (model / "model.safetensors").rename(model / file)
    with pytest.raises(RecipeError, match=message):
        Pretrained("model").check("causal")


def test_a_folder_with_an_adapter_beside_a_model_is_refused(here: Path) -> None:
    """transformers would put the adapter on the model without a word."""
    model = foreign.saved(here / "model", "chatml")
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(RecipeError, match="is an adapter"):
        Pretrained("model").check("causal")


def test_an_index_that_names_nothing_is_damaged(here: Path) -> None:
    model = foreign.saved(here / "model", "chatml")
    (model / "model.safetensors").unlink()
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": []}'):
        (model / "model.safetensors.index.json").write_text(text)
        with pytest.raises(RecipeError, match="has no `weight_map`"):
            Pretrained("model").check("causal")

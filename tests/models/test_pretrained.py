"""Saved models of many families: whole, or refused before anything is loaded; their code never runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlframe.errors import RecipeError, RunError
from rlframe.models.pretrained import Pretrained, reload
from tests import foreign

# Names of weights that are fused, split or moved when they are read, tied heads, other prefixes.
FAMILIES = ("llama", "gpt2", "gpt_neox", "mixtral", "qwen2_moe", "gemma2", "phi3", "opt", "falcon")


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Change the weights of a folder."""
    file = path / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return path


def config(path: Path, **keys: Any) -> Path:
    """Change keys of a folder's config."""
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return foreign.saved(tmp_path / "model", "chatml")


def refusal(path: Path, head: Any = "causal", **options: Any) -> str:
    """What `check` says, which is what `load` says: of the same file, before and after it is read."""
    with pytest.raises(RecipeError) as checked:
        Pretrained(str(path), at="model.policy").check(head, **options)
    with pytest.raises(RecipeError) as loaded:
        Pretrained(str(path), at="model.policy").load(head, dtype=torch.float32, **options)
    assert str(checked.value) == str(loaded.value)
    assert str(checked.value).startswith("model.policy: ")
    return str(checked.value)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_whole_model_of_any_family_is_loaded_as_transformers_loads_it(
    kind: str, tmp_path: Path
) -> None:
    path = foreign.saved(tmp_path / "model", "chatml", kind=kind)
    saved = Pretrained(str(path))
    assert saved.check("causal") == ()
    mine = saved.load("causal", dtype=torch.float32).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(path).state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("kind", FAMILIES)
def test_any_missing_weight_of_any_family_is_refused(kind: str, tmp_path: Path) -> None:
    """Whichever it is, under whatever name it is stored."""
    path = foreign.saved(tmp_path / "model", "chatml", kind=kind, num_hidden_layers=1)
    weights = load_file(path / "model.safetensors")
    for name in list(weights):
        left = {key: value for key, value in weights.items() if key != name}
        save_file(left, path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RecipeError):
            Pretrained(str(path)).check("causal")


def test_a_trunk_saved_alone_is_whole_if_its_head_is_the_embedding(tmp_path: Path) -> None:
    words = foreign.tokenizer("chatml")
    for tied in (True, False):
        path = tmp_path / f"tied {tied}"
        whole = foreign.model(words, tie_word_embeddings=tied)
        whole.base_model.save_pretrained(path)  # without `model.` in front of its names
        if tied:
            loaded = Pretrained(str(path)).load("causal", dtype=torch.float32)
            assert torch.equal(loaded.lm_head.weight, whole.lm_head.weight)
        else:
            message = refusal(path)
            assert "would be random: lm_head.weight. The trunk was saved alone" in message
        new_head = Pretrained(str(path)).load(
            "sequence", dtype=torch.float32, labels=1, new_head=True
        )
        assert torch.equal(new_head.model.norm.weight, whole.model.norm.weight)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "policy.model."])
def test_a_prefix_of_a_wrapper_is_named(prefix: str, model: Path) -> None:
    message = refusal(rewritten(model, lambda weights: {prefix + k: v for k, v in weights.items()}))
    assert f"Every name in the file begins with '{prefix.partition('.')[0]}.'" in message


def test_a_head_under_another_name_is_pointed_at(model: Path) -> None:
    message = refusal(
        rewritten(
            model, lambda w: {("output" if k == "lm_head.weight" else k): v for k, v in w.items()}
        )
    )
    assert "would be random: lm_head.weight. " in message
    assert "output has the shape of lm_head.weight" in message


def test_a_classifier_is_no_policy_and_a_policy_has_no_score_to_keep(
    model: Path, tmp_path: Path
) -> None:
    judge = foreign.saved(tmp_path / "judge", "chatml", head="sequence", num_labels=1)
    assert "It has the head of another model, score.weight" in refusal(judge)
    assert "would be random: score.weight. " in refusal(model, "sequence", labels=1)
    assert Pretrained(str(judge)).check("sequence") == ()


def test_a_weight_of_another_shape_is_refused_with_both_shapes(model: Path) -> None:
    message = refusal(config(model, intermediate_size=48))
    assert (
        "down_proj.weight has the shape [16, 32] in the file and [16, 48] by the config" in message
    )
    assert "(6 weights differ)" in message
    two = foreign.saved(model.parent / "two", "chatml", head="sequence", num_labels=2)
    assert "[2, 16] in the file and [1, 16]" in refusal(two, "sequence", labels=1)
    assert Pretrained(str(two)).load("sequence", dtype=torch.float32).num_labels == 2


def test_weights_of_the_trunk_that_the_config_leaves_out_are_refused(model: Path) -> None:
    """Half of the layers, or biases that the config denies: another model would be computed."""
    assert "model.layers.1." in refusal(config(model, num_hidden_layers=1))
    config(model, num_hidden_layers=2)

    def biased(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights | {"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}

    assert "q_proj.bias would be left out" in refusal(rewritten(model, biased))


def test_a_head_of_something_else_beside_a_whole_model_is_a_remark(model: Path) -> None:
    rewritten(model, lambda weights: weights | {"v_head.summary.weight": torch.ones(1, 16)})
    (message,) = Pretrained(str(model), at="model.policy").check("causal")
    assert message.startswith("model.policy: ")
    assert "v_head.summary.weight is left out of the causal language model" in message


# Code


MALICE = "import pathlib\npathlib.Path(__file__).with_name('RAN').touch()\n"


@pytest.mark.parametrize("kind", ["llama", "nobody_knows"])
def test_code_in_a_folder_never_runs_and_nothing_is_asked(
    kind: str, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (model / "evil.py").write_text(
        MALICE + "from transformers import *\n"
        "class Config(LlamaConfig):\n    model_type = 'nobody_knows'\n"
        "class Model(LlamaForCausalLM): pass\nclass Words(PreTrainedTokenizerFast): pass\n"
    )
    config(
        model,
        model_type=kind,
        auto_map={
            "AutoConfig": "evil.Config",
            "AutoModelForCausalLM": "evil.Model",
            "AutoModelForSequenceClassification": "evil.Model",
        },
    )
    settings = model / "tokenizer_config.json"
    written = json.loads(settings.read_text())
    settings.write_text(
        json.dumps({**written, "auto_map": {"AutoTokenizer": [None, "evil.Words"]}})
    )
    saved = Pretrained(str(model))
    assert len(saved.tokenizer) == 320
    if kind == "llama":
        loaded = saved.load("causal", dtype=torch.float32)
        assert not hasattr(
            loaded.config, "auto_map"
        )  # or whoever opens the result is asked to run it
        saved.skeleton("sequence", labels=1)
    else:
        assert "the code that comes with the folder is never run" in refusal(model)
    assert not list(tmp_path.rglob("RAN"))


def test_a_kernel_of_somebody_elses_is_not_downloaded(model: Path) -> None:
    """config.json can name the repository of an attention kernel, which is code."""
    config(model, attn_implementation="somebody/kernel")
    assert (
        Pretrained(str(model)).load("causal", dtype=torch.float32).config._attn_implementation
        == "sdpa"
    )


# Vocabularies


def test_a_larger_vocabulary_that_begins_alike_is_no_mismatch(model: Path, tmp_path: Path) -> None:
    ours, theirs = foreign.tokenizer("chatml"), foreign.tokenizer("chatml")
    theirs.add_tokens(["<extra>"])
    other = foreign.saved(tmp_path / "other", "chatml", words=theirs)
    assert Pretrained(str(other)).check_vocabulary(ours) == ()
    wide = foreign.saved(tmp_path / "wide", "chatml", vocab_size=400)
    with pytest.raises(
        RecipeError, match=r"1 of 321 tokens differ, such as '<extra>', .* no token"
    ):
        Pretrained(str(wide)).check_vocabulary(theirs)
    with pytest.raises(RecipeError, match="1 of 321 tokens differ"):
        Pretrained(str(model)).check_vocabulary(theirs)
    assert Pretrained(str(model)).check_vocabulary(theirs, added=frozenset({"<extra>"})) == ()


def test_the_same_size_with_other_words_is_a_mismatch(tmp_path: Path) -> None:
    other = foreign.saved(tmp_path / "other", "chatml", words=foreign.tokenizer("chatml", seed=9))
    with pytest.raises(RecipeError, match=r"another tokenizer than the policy: \d+ of 320 tokens"):
        Pretrained(str(other)).check_vocabulary(foreign.tokenizer("chatml"))


def test_an_embedding_with_fewer_rows_than_tokens_cannot_read_them(tmp_path: Path) -> None:
    unset = {f"{role}_token_id": None for role in ("pad", "eos")}
    narrow = foreign.saved(tmp_path / "narrow", "chatml", vocab_size=300, **unset)
    with pytest.raises(RecipeError, match=r"embedding of 300 tokens, and the ids .* go up to 319"):
        Pretrained(str(narrow)).check_vocabulary(foreign.tokenizer("chatml"))


def test_without_a_tokenizer_beside_it_sizes_alone_are_compared_and_that_is_said(
    model: Path,
) -> None:
    for file in (*model.glob("tokenizer*"), *model.glob("*.jinja")):
        file.unlink()
    (message,) = Pretrained(str(model)).check_vocabulary(foreign.tokenizer("chatml"))
    assert "only the size of its vocabulary was compared" in message
    with pytest.raises(RecipeError, match="has no tokenizer"):
        _ = Pretrained(str(model)).tokenizer


def test_a_checkpoint_of_our_own_that_lacks_a_weight_is_damaged(model: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model)
    weights = reload(loaded, model, dtype=torch.float64)
    assert weights["lm_head.weight"].dtype == torch.float64
    assert torch.equal(weights["lm_head.weight"].float(), loaded.lm_head.weight)
    rewritten(model, lambda w: {k: v for k, v in w.items() if "o_proj" not in k})
    with pytest.raises(RunError, match=r"damaged: .*o_proj\.weight"):
        reload(loaded, model, dtype=torch.float32)


def test_a_classifier_is_loaded_as_transformers_loads_it(tmp_path: Path) -> None:
    path = foreign.saved(tmp_path / "judge", "chatml", head="sequence", num_labels=3)
    ids = torch.tensor([[5, 6, 7]])
    mine = Pretrained(str(path)).load("sequence", dtype=torch.float32)(ids).logits
    theirs = AutoModelForSequenceClassification.from_pretrained(path)(ids).logits
    assert torch.equal(mine, theirs)
    copied = shutil.copytree(path, tmp_path / "copied")
    assert Pretrained(str(copied)).check("sequence") == ()

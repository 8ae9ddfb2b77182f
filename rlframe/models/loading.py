"""Models from a path, a hub id or a config, with the mistakes found here instead of in training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedTokenizerBase

from rlframe.errors import RecipeError, did_you_mean
from rlframe.models.pretrained import Pretrained, new

Head = Literal["zero", "normal", "keep"]


def new_language_model(
    architecture: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype,
    seed: int,
) -> Any:
    """A causal language model with random weights.

    Args:
      architecture: `model_type` and keys of that transformers config.
      tokenizer: gives the size of the vocabulary and the special tokens.
      dtype: of the weights.
      seed: of the weights; the global generator is left unchanged.

    Raises:
      RecipeError: there is no such model type, or the config does not make a model.
    """
    shape = policy_config(architecture, tokenizer)
    with _making_sense(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new(shape, "causal", dtype=dtype).eval()
        if model.device.type != "meta":  # on which a plan makes them
            _read_something(model)
        return model


def policy_config(architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Any:
    """The transformers config of a new model for a tokenizer.

    Raises:
      RecipeError: as of `new_config`.
    """
    special = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos")
    }
    special["pad_token_id"] = padding_of(tokenizer)
    return new_config(architecture, vocab_size=rows_needed(tokenizer), **special)


@torch.no_grad()
def _read_something(model: Any) -> None:
    """Not every config whose model can be made can be run, such as one with 2 heads and 32 of keys."""
    try:
        model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    except Exception as error:
        settled = model.config.get_text_config().to_dict()
        sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
        used = ", ".join(f"{key} {settled[key]}" for key in sizes if settled.get(key))
        raise RuntimeError(
            f"a model of this shape cannot read a token: {error}. Usual cause: sizes that do not "
            f"divide each other, and some have defaults (here: {used})"
        ) from error


def new_config(architecture: dict[str, Any], **given: Any) -> Any:
    """The transformers config of a new model.

    Args:
      architecture: `model_type` and keys of that config.
      given: keys that the tokenizer decides, unless the architecture does.

    Raises:
      RecipeError: there is no such model type, or a key that it does not have.
    """
    options = dict(architecture)
    if "model_type" not in options:
        raise RecipeError("model.policy.architecture: `model_type` is required, as in `llama`")
    kind = options.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise RecipeError(
            f"model.policy.architecture: transformers has no model type {kind!r}."
            f"{did_you_mean(str(kind), CONFIG_MAPPING)}"
        )
    with _making_sense():
        shape = AutoConfig.for_model(kind, **{**given, **options})
        unread = sorted(set(options) - set(type(shape)().to_dict()))
        if unread:
            raise ValueError(f"a {kind} config has no {', '.join(unread)}")
        return shape


@contextmanager
def _making_sense() -> Iterator[None]:
    """One error for the many by which transformers says that a config makes no model."""
    try:
        yield
    except (ValueError, TypeError, KeyError, RuntimeError, StrictDataclassError) as error:
        raise RecipeError(f"model.policy.architecture: {error}") from error


def load_language_model(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype,
    at: str = "model.policy",
) -> Any:
    """A causal language model, whole, with a row of its embedding for each token of the tokenizer.

    Args:
      name: a path or hub id.
      tokenizer: the policy's.
      dtype: of the weights.
      at: the recipe's path, put in front of an error.

    Raises:
      RecipeError: it cannot be opened, or a weight is missing.
    """
    model = Pretrained(name, at=at).load("causal", dtype=dtype)
    return _reading(model, tokenizer).eval()


def _reading(model: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Give a model a row for each token, alike wherever it is done, and no padding token that is EOS.

    Masks come from lengths, so that nothing here reads the padding token. Others do who use the saved
    model: a classifier's score would be looked for before the first EOS.
    """
    if model.get_input_embeddings().num_embeddings < rows_needed(tokenizer):
        with torch.random.fork_rng(devices=[]):  # new rows are drawn: the same ones on each rank
            torch.default_generator.manual_seed(0)
            model.resize_token_embeddings(rows_needed(tokenizer))
    model.config.pad_token_id = padding_of(tokenizer)
    if model.config.pad_token_id is None:  # or EOS would get no gradient as an input
        model.get_input_embeddings().padding_idx = None
    return model


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of an embedding that has one for every id of a tokenizer, which may leave ids out."""
    return max(tokenizer.get_vocab().values()) + 1


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of a tokenizer's padding token, or None if it is EOS or there is none."""
    pad: int | None = tokenizer.pad_token_id
    return None if pad == tokenizer.eos_token_id else pad


def scalar_model_from(policy: Any, *, head: Head, seed: int) -> Any:
    """A sequence classifier with one output on a copy of the policy's trunk.

    Args:
      policy: a causal language model.
      head: "zero" or "normal", N(0, 1/(d+1)) (Huang et al. 2024, arXiv 2403.17031).
      seed: of the head.

    Raises:
      RecipeError: transformers has no such classifier for this architecture.
    """
    try:
        shape = type(policy.config).from_dict(policy.config.to_dict())
        shape.num_labels = 1
        model = new(shape, "sequence", dtype=policy.dtype)
        model.base_model.load_state_dict(policy.base_model.state_dict())
    except (ValueError, RuntimeError) as error:  # there is none, or its trunk is another
        said = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"{type(policy).__name__} has no sequence classifier in transformers with its trunk, which "
            f"critics and reward models are saved as. A critic of its own needs one: set "
            f"`model.critic.shared: true`, or begin with another model ({said})"
        ) from error
    init_head(score_head(model, at="model.policy"), head, seed=seed)
    return model.to(policy.device).eval()


def load_scalar_model(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head: Head,
    dtype: torch.dtype,
    seed: int,
    at: str = "model.critic.initial",
) -> Any:
    """A sequence classifier with one output, as critic or as a reward model to be trained.

    Args:
      name: a path or hub id: of a causal language model, whose trunk is taken, of a reward model, or of
        a critic saved by an earlier run.
      tokenizer: the policy's.
      head: "keep" leaves the head as it was saved, which it must have been.
      dtype: of the weights.
      seed: of a new head.
      at: the recipe's path, put in front of an error.

    Raises:
      RecipeError: it cannot be opened, a weight is missing, or there is no `score` head.
    """
    saved = Pretrained(name, at=at)
    model = saved.load("sequence", dtype=dtype, labels=1, new_head=head != "keep")
    init_head(score_head(model, at=at), head, seed=seed)
    return _reading(model, tokenizer).eval()


def value_head(width: int, *, head: Head, like: torch.Tensor, seed: int) -> nn.Linear:
    """A linear map from hidden states to one value, for a critic on the policy's trunk."""
    linear = nn.Linear(width, 1, bias=False).to(like)
    init_head(linear, head, seed=seed)
    return linear


def score_head(model: Any, *, at: str) -> nn.Linear:
    """The head of a causal trunk that is read at one token.

    Raises:
      RecipeError: the classifier has another, which reads the whole text.
    """
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise RecipeError(
            f"{at}: {type(model).__name__} has no linear `score` head, from which a value for each "
            "token is read. Name a causal model"
        )
    return model.score


@torch.no_grad()
def init_head(linear: nn.Linear, head: Head, *, seed: int) -> None:
    """Set a value head's weights: zero, or N(0, 1/(d+1)); any bias becomes 0. "keep" does nothing."""
    if head == "keep":
        return
    generator = torch.Generator().manual_seed(seed)
    scale = 0.0 if head == "zero" else 1 / math.sqrt(linear.in_features + 1)
    linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * scale)
    if linear.bias is not None:
        linear.bias.zero_()


def weights_hash(module: nn.Module) -> str:
    """sha256 over the names and values of all weights: equal only if every bit is."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

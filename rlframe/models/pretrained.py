"""Models and tokenizers that somebody else saved: the one place that opens them.

Code that lies in a model's folder never runs (`trust_remote_code=False`, and no question on stdin), and
weights are read from safetensors alone. transformers draws missing weights at random and warns; here a
model is whole or it is refused, and that is known before anything is loaded: names, shapes and dtypes
of its weights go through transformers' own loader on the meta device, so that prefixes, ties and
conversions of a family are those of the library.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import get_verbosity, set_verbosity

from rlframe.errors import RecipeError, RunError
from rlframe.models import files
from rlframe.models.whole import Fit, some

Head = Literal["causal", "sequence", "token"]
"""What stands on the trunk: a language model's head, or a classifier's of a text or of each token."""

_CLASSES: Mapping[str, Any] = {
    "causal": AutoModelForCausalLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}
_NOUNS = {
    "causal": "causal language model",
    "sequence": "sequence classifier",
    "token": "token classifier",
}
# Attention that is torch's own; any other name is that of a kernel, which transformers would download.
_ATTENTION = (None, "eager", "sdpa")


class Pretrained:
    """A model as it was saved: its config, its tokenizer, and the names and shapes of its weights.

    Args:
      name: a path or the id of a repository of the hub.
      at: the recipe's path, put in front of every error.

    Raises:
      RecipeError: there is no such folder, or it does not hold a model, but an adapter for instance.
    """

    def __init__(self, name: str, *, at: str = "") -> None:
        self._front = f"{at}: " if at else ""
        self.name = name
        with self._naming():
            self._folder = files.find(name)

    @property
    def path(self) -> str:
        """The folder on this machine."""
        return str(self._folder.path)

    # Config and tokenizer

    @cached_property
    def config(self) -> Any:
        """Of transformers.

        Raises:
          RecipeError: it is damaged, needs code of its own, or describes weights that are quantised.
        """
        with self._naming():
            self._folder.check_model()
            self._folder.check_config(CONFIG_MAPPING)
            with _opening(f"{self._folder.path / files.CONFIG} makes no model"):
                config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        _without_code(config)
        return config

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one that lies beside the model.

        Raises:
          RecipeError: there is none, or it is damaged or needs code of its own.
        """
        with self._naming():
            self._folder.check_tokenizer()
            with _opening(f"the tokenizer in {self.path} cannot be opened"):
                found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                    self.path, trust_remote_code=False
                )
        return found

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is one beside the model."""
        return self._folder.has_tokenizer()

    def check_vocabulary(
        self, tokenizer: PreTrainedTokenizerBase, *, added: frozenset[str] = frozenset()
    ) -> tuple[str, ...]:
        """A model that is to read another tokenizer's ids means the same by each of them.

        Its own vocabulary may have more tokens. Where it lies without a tokenizer, sizes are compared.

        Args:
          tokenizer: the policy's.
          added: tokens of it that no model has, and that every model is given a row for.

        Returns:
          What should be said about it: nothing, or one sentence.

        Raises:
          RecipeError: a token has another id or none, or the embedding has no row for it.
        """
        ours = {t: i for t, i in tokenizer.get_vocab().items() if t not in added}
        rows = self.config.get_text_config().vocab_size
        known = self._folder.has_tokenizer()
        theirs = self.tokenizer.get_vocab() if known else ours
        with self._naming():
            if other := sorted((i, t) for t, i in ours.items() if theirs.get(t) != i):
                number, token = other[0]
                raise RecipeError(
                    f"{self.name!r} has another tokenizer than the policy: {len(other)} of {len(ours)} "
                    f"tokens differ, such as {token!r}, which is {number} for the policy and "
                    f"{theirs.get(token, 'no token')} there, so that the policy's ids would mean "
                    "something else to it. Name a model with the policy's tokenizer"
                )
            if max(ours.values()) >= rows:
                raise RecipeError(
                    f"{self.name!r} has an embedding of {rows} tokens, and the ids that it is to read "
                    f"go up to {max(ours.values())}. Name a model with that tokenizer"
                )
        if known:
            return ()
        return (
            f"{self._front}{self.name!r} has no tokenizer beside it, so that only the size of its "
            "vocabulary was compared with the policy's",
        )

    # Weights

    def skeleton(self, head: Head, *, labels: int | None = None) -> Any:
        """The model without its weights, on the meta device.

        Args:
          head: what stands on the trunk.
          labels: outputs of a classifier; those that it was saved with if None.

        Raises:
          RecipeError: this model type has no such head, or is no decoder.
        """
        config = self._configured(labels)
        with self._naming(), _opening(f"{self._folder.path / files.CONFIG} makes no model"):
            self._check_head(config, head)
            with torch.device("meta"):
                return new(config, head)

    def _configured(self, labels: int | None) -> Any:
        config = copy.deepcopy(self.config)
        if labels is not None:
            config.num_labels = labels
        return config

    def _check_head(self, config: Any, head: Head) -> None:
        kind = config.model_type
        if type(config) not in _CLASSES[head]._model_mapping:
            raise RecipeError(
                f"{self.name!r} is a {kind}, and transformers has no {_NOUNS[head]} of that type"
            )
        if head != "causal":
            return
        if getattr(config, "is_encoder_decoder", False):
            raise RecipeError(
                f"{self.name!r} is an encoder-decoder ({kind}), and what is trained here continues its "
                "prompt. Name a decoder"
            )
        # Encoders have a class with a causal head too, which still attends to both sides.
        both = {*MODEL_FOR_MASKED_LM_MAPPING} & {*MODEL_FOR_CAUSAL_LM_MAPPING}
        if type(config) in both and not getattr(config, "is_decoder", False):
            raise RecipeError(
                f"{self.name!r} is an encoder ({kind}), which reads both sides of a token and cannot "
                "write text. Name a decoder"
            )

    def check(
        self, head: Head, *, labels: int | None = None, new_head: bool = False
    ) -> tuple[str, ...]:
        """Refuse a model of which a weight would be drawn at random, or left unread. Nothing is loaded.

        Args:
          head: what it is to be loaded as.
          labels: outputs of a classifier; those that it was saved with if None.
          new_head: the head is to be new, so that only the trunk must be whole.

        Returns:
          What should be said about it: weights of another head that are left out.

        Raises:
          RecipeError: a weight is missing or has another shape, or one of the trunk is left over.
        """
        found = self._fit(head, labels=labels, new_head=new_head)
        left = [name for name in found.unused if not new_head or not _of_a_head(name)]
        if not left:
            return ()
        return (f"{self._front}{self.name!r}: {some(left)} is left out of the {_NOUNS[head]}",)

    def _fit(self, head: Head, *, labels: int | None, new_head: bool) -> Fit:
        skeleton = self.skeleton(head, labels=labels)
        with self._naming():
            weights = self._folder.weights()
            with _quiet(), _opening(f"the weights in {self.path} are not those of its config"):
                probed, info = type(skeleton).from_pretrained(
                    None,
                    config=skeleton.config,
                    state_dict=dict(weights),
                    device_map="meta",
                    ignore_mismatched_sizes=True,  # so that all are reported; see `_check_whole`
                    output_loading_info=True,
                )
            fit = Fit(probed, weights, info, new_head=new_head)
            fit.check(self.path)
        return fit

    def load(
        self,
        head: Head,
        *,
        dtype: torch.dtype,
        labels: int | None = None,
        new_head: bool = False,
    ) -> Any:
        """The model, whole, in eval mode.

        Args:
          head: what stands on the trunk.
          dtype: of the weights.
          labels: outputs of a classifier; those that it was saved with if None.
          new_head: the head will be set by the caller, so that it need not be there.

        Raises:
          RecipeError: as of `check`.
        """
        fit = self._fit(head, labels=labels, new_head=new_head)
        with self._naming(), _quiet(), _opening(f"{self.path} cannot be loaded"):
            model, info = type(fit.model).from_pretrained(
                self.path,
                config=fit.model.config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=new_head,  # of the head alone: nothing else has passed
                output_loading_info=True,
            )
            Fit(model, fit.weights, info, new_head=new_head).check(self.path)
        return model.eval()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Put the recipe's path in front of an error."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError(f"{self._front}{error}") from error


def new(config: Any, head: Head, **options: Any) -> Any:
    """A model with random weights, on torch's current device.

    Args:
      config: of transformers.
      head: what stands on the trunk.
      options: of transformers, such as `dtype`.
    """
    return _CLASSES[head].from_config(config, trust_remote_code=False, **options)


def reload(model: Any, directory: Path, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a model that this library saved, by name.

    Args:
      model: of the same class and config; it is left alone.
      directory: where `save_pretrained` wrote it.
      dtype: of the weights.

    Raises:
      RunError: a weight is missing, so that it would be random.
    """
    with _quiet():
        found, info = type(model).from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    try:
        Fit(found, {}, info, new_head=False).check(str(directory))
    except RecipeError as error:
        raise RunError(f"the checkpoint is damaged: {error}") from error
    weights: dict[str, Tensor] = found.state_dict()
    return weights


def _of_a_head(name: str) -> bool:
    return name.partition(".")[0] in ("lm_head", "embed_out", "score", "classifier")


def _without_code(config: Any) -> None:
    """Take out of a config what makes transformers run something else than its own code."""
    if hasattr(config, "auto_map"):
        del config.auto_map
    if getattr(config, "_attn_implementation", None) not in _ATTENTION:
        config._attn_implementation = None


@contextmanager
def _opening(what: str) -> Iterator[None]:
    """One error for the many kinds by which transformers says that files make no model."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        message = message if len(message) <= 400 else message[:397] + "..."
        raise RecipeError(f"{what}: {type(error).__name__}: {message}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of missing weights, which is an error here."""
    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(before)

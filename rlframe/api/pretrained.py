"""What a component may ask of a model that somebody else saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class PretrainedModel(Protocol):
    """A saved model, which `Context.pretrained` opens.

    Code in its folder never runs, weights are read from safetensors alone, and a missing weight is an
    error, where transformers would draw it at random. Use it in `check` and in the constructor:

        saved = context.pretrained(config.model)
        saved.check("sequence")                               # reads headers alone
        model = context.prepare(saved.load("sequence", dtype=context.dtype))

    A `head` is "causal" (a language model), "sequence" (a classifier of texts) or "token" (a classifier
    of each token).
    """

    name: str
    """The name of the model in the recipe."""

    @property
    def path(self) -> str:
        """The folder of the model on this machine."""

    @property
    def config(self) -> Any:
        """The model's transformers config."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that was saved with the model."""

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Refuse a tokenizer whose ids mean something else to this model.

        Returns:
          Remarks for the user; none if the model was saved with a tokenizer to compare.

        Raises:
          RecipeError: an id stands for another token, or has no row in the model's embedding.
        """

    def skeleton(self, head: Literal["causal", "sequence", "token"]) -> Any:
        """The model without its weights, on the meta device."""

    def check(self, head: Literal["causal", "sequence", "token"]) -> tuple[str, ...]:
        """Refuse a model with a missing weight. Reads nothing but the headers of the weight files.

        Returns:
          Remarks for the user, such as weights of another head that are not used.

        Raises:
          RecipeError: a weight is missing, has another shape, or has no place in the model.
        """

    def load(self, head: Literal["causal", "sequence", "token"], *, dtype: torch.dtype) -> Any:
        """The model with its weights, in eval mode, on the CPU."""

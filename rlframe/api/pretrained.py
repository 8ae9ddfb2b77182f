"""What a component may ask of a model that somebody else saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class PretrainedModel(Protocol):
    """A saved model: whole and without any code of its own, or an error for people.

    Code in its folder never runs, weights are read from safetensors alone, and a weight that is missing
    is an error, where transformers would draw it at random. Use it in `check` and in the constructor:

        saved = context.pretrained(config.model)
        saved.check("sequence")                               # reads headers alone
        model = context.prepare(saved.load("sequence", dtype=context.dtype))

    A `head` is "causal", "sequence" (a classifier of a text) or "token" (of each token).
    """

    name: str
    """As the recipe has it."""

    @property
    def path(self) -> str:
        """The folder on this machine."""

    @property
    def config(self) -> Any:
        """Of transformers."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one that lies beside the model."""

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Refuse a model to which another tokenizer's ids mean something else. Returns remarks."""

    def skeleton(self, head: Literal["causal", "sequence", "token"]) -> Any:
        """The model without weights, on the meta device."""

    def check(self, head: Literal["causal", "sequence", "token"]) -> tuple[str, ...]:
        """Refuse a model of which a weight is missing. Returns remarks."""

    def load(self, head: Literal["causal", "sequence", "token"], *, dtype: torch.dtype) -> Any:
        """The model with its weights, in eval mode, on the CPU."""

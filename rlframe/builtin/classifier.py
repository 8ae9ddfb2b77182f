"""A transformers classifier as it lies in its folder: what it puts out, and how that is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from rlframe.api import Context, PretrainedModel, context_tokens
from rlframe.builtin.reward_input import Reader
from rlframe.errors import RecipeError, did_you_mean, listed
from rlframe.types import ENDS_WITH_TURN

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Output = Literal["logit", "probability", "log_probability"]


@dataclass(frozen=True)
class Classifier:
    """What config and tokenizer say of a classifier, so that no weight has to be read for it."""

    name: str
    """As the recipe calls it."""
    saved: PretrainedModel
    config: Any
    tokenizer: PreTrainedTokenizerBase
    per_token: bool
    """A token classifier: one output for each token of its input, not one for the whole."""
    causal: bool
    """A sequence classifier with a linear `score` head on a causal trunk."""

    @classmethod
    def of(cls, name: str, context: Context) -> Classifier:
        """Look at a model.

        Args:
          name: a path or hub id, or `stage:reward_model` once that stage has run.
          context: of the component that asks.

        Raises:
          RecipeError: it cannot be opened, is no classifier, or lacks weights.
        """
        saved = context.pretrained(name)
        written = saved.config.architectures or []
        per_token = any("TokenClassification" in kind for kind in written)
        if written and not any("Classification" in kind for kind in written):
            raise RecipeError(
                f"reward model {name!r} was saved as {listed(written)}, which has no trained score head"
            )
        tokenizer = context.tokenizer_of(name)
        tokenizer.truncation_side = "left"
        found = cls(name, saved, saved.config, tokenizer, per_token=per_token, causal=False)
        saved.check(found.head)
        saved.check_vocabulary(tokenizer)  # it must have a row for each of its own ids
        return replace(found, causal=not per_token and hasattr(saved.skeleton(found.head), "score"))

    @property
    def head(self) -> Literal["sequence", "token"]:
        """What stands on the trunk."""
        return "token" if self.per_token else "sequence"

    @property
    def reader(self) -> Reader:
        """What it can be given."""
        text = self.config.get_text_config()
        return Reader(
            name=self.name,
            tokenizer=self.tokenizer,
            embedding=int(text.vocab_size),
            limit=context_tokens(self.config),
            ids=self.causal or self.per_token,
            per_token=self.per_token,
            ends_with_turn=bool(getattr(self.config, ENDS_WITH_TURN, False)),
        )

    def label(self, wanted: int | str | None) -> int:
        """The number of the output that is read.

        Args:
          wanted: its number or name; None where there is but one.

        Raises:
          RecipeError: there are several and none was asked for, or there is none of that name.
        """
        names = {int(number): str(name) for number, name in self.config.id2label.items()}
        shown = ", ".join(f"{number} ({name})" for number, name in sorted(names.items()))
        if wanted is None:
            if len(names) == 1:
                return 0
            raise RecipeError(
                f"reward model {self.name!r} has {len(names)} outputs: {shown}. Say which one is the "
                f"reward, as in `label: {names[max(names)]}`"
            )
        for number, name in names.items():
            if wanted in (number, name) or str(wanted).casefold() == name.casefold():
                return number
        raise RecipeError(
            f"reward model {self.name!r} has no label {wanted!r}."
            f"{did_you_mean(str(wanted), names.values())} It has {shown}"
        )

    def load(self, dtype: torch.dtype) -> Any:
        """The model with its weights."""
        return self.saved.load(self.head, dtype=dtype)

    def logits(
        self, model: Any, encoded: list[dict[str, list[int]]], device: torch.device
    ) -> Tensor:
        """[B, K] outputs, or [B, L, K] of a token classifier.

        A causal model is read at the last token of its input: transformers would look for the last
        one that is not padding, and a policy may sample padding.

        Args:
          model: that `load` gave.
          encoded: B inputs, each field -> numbers, as long as `input_ids`.
          device: of the model.
        """
        import torch

        lengths = [len(e["input_ids"]) for e in encoded]
        width, pad = max(lengths), self.config.get_text_config().pad_token_id
        # Behind every real token and hidden by a mask; but some models count positions by its id.
        filling = {"input_ids": 0 if pad is None else int(pad)}
        fields = {
            name: torch.tensor(
                [e[name] + [filling.get(name, 0)] * (width - len(e[name])) for e in encoded],
                device=device,
            )
            for name in encoded[0]
        }
        ends = torch.tensor(lengths, device=device)
        if self.causal:
            hidden = model.base_model(**fields).last_hidden_state
            last: Tensor = hidden[torch.arange(len(encoded), device=device), ends - 1]
            return model.score(last)
        mask = torch.arange(width, device=device) < ends[:, None]
        return model(**fields, attention_mask=mask.long()).logits

    def read(self, logits: Tensor, label: int, output: Output) -> Tensor:
        """[..., K] logits -> [...] of one label, at least in float32.

        A probability is the softmax's over the labels; the sigmoid where there is one label, or where
        labels do not exclude each other (`problem_type: multi_label_classification`).
        """
        from torch.nn.functional import logsigmoid

        logits = logits if logits.element_size() > 4 else logits.float()
        if output == "logit":
            return logits[..., label]
        independent = self.config.problem_type == "multi_label_classification"
        if independent or logits.shape[-1] == 1:
            log = logsigmoid(logits[..., label])
        else:
            log = logits.log_softmax(-1)[..., label]
        return log if output == "log_probability" else log.exp()

"""The score of a trained reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from rlframe.errors import RecipeError, listed
from rlframe.hooks import Context, PluginConfig, RewardBatch, RewardProvider

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RewardModelConfig(PluginConfig):
    model: str = Field(
        "stage:reward_model", description="a path or hub id, or the reward model of this recipe"
    )
    input: Literal["ids", "text"] = Field(
        "ids", description="hand over the sampled tokens, or text for a model with other tokens"
    )
    batch_tokens: PositiveInt = Field(8192, description="padded tokens in one forward pass")


class RewardModel(RewardProvider[RewardModelConfig]):
    """A transformers sequence classifier with one output, read at the last token of the response.

    With `input: ids` the model sees exactly the tokens that the policy sampled, so its vocabulary must
    be the policy's. With `input: text` prompt and response are tokenised again by the model's own
    tokenizer, and any classifier will do.
    """

    def __init__(self, config: RewardModelConfig, context: Context) -> None:
        # Imported here: validating a recipe imports this module and must not import torch.
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        super().__init__(config, context)
        path = context.model_path(config.model)
        _check_shape(path, config, context)
        model = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, dtype=context.dtype
        )
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = context.prepare(model)

    @classmethod
    def check(cls, config: RewardModelConfig, context: Context) -> None:
        if not config.model.startswith("stage:"):
            _check_shape(config.model, config, context)
            return
        context.model_path(config.model)
        if config.model != "stage:reward_model":
            raise RecipeError(f"{config.model!r} is no reward model; use 'stage:reward_model'")

    def score(self, batch: RewardBatch) -> list[float]:
        if self.config.input == "text":
            encoded = [
                self._tokenizer(prompt + response)["input_ids"]
                for prompt, response in zip(batch.prompt_texts, batch.response_texts, strict=True)
            ]
        else:
            encoded = [
                [*prompt.ids, *response]
                for prompt, response in zip(batch.prompts, batch.response_ids, strict=True)
            ]
        scores = [0.0] * len(encoded)
        for rows in _by_length(encoded, self.config.batch_tokens):
            judged = self._forward([encoded[row] for row in rows])
            for row, score in zip(rows, judged, strict=True):
                scores[row] = score
        return scores

    def _forward(self, encoded: list[list[int]]) -> list[float]:
        import torch

        device = self.context.device
        width = max(map(len, encoded))
        lengths = torch.tensor([len(ids) for ids in encoded], device=device)
        tokens = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in encoded], device=device)
        mask = torch.arange(width, device=device) < lengths[:, None]
        with torch.no_grad():
            if hasattr(self._model, "score"):
                # Right-padded and causal: the last real token sees no padding, and its place comes
                # from the length, so a padding id that the policy sampled can not move it.
                hidden = self._model.base_model(input_ids=tokens).last_hidden_state
                scores = self._model.score(hidden[torch.arange(len(encoded)), lengths - 1])
            else:
                scores = self._model(input_ids=tokens, attention_mask=mask.long()).logits
        return scores.squeeze(-1).float().tolist()


def _check_shape(path: str, config: RewardModelConfig, context: Context) -> None:
    """Everything about a reward model that can be told from its config and tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    try:
        shape = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        with torch.device("meta"):  # the architecture without its weights
            model = AutoModelForSequenceClassification.from_config(shape)
    except (OSError, ValueError) as error:
        raise RecipeError(f"reward model {path!r} can not be opened: {error}") from error
    saved = shape.architectures or []
    if saved and not any("SequenceClassification" in name for name in saved):
        raise RecipeError(
            f"reward model {path!r} was saved as {listed(saved)}, which has no trained score head"
        )
    if shape.num_labels != 1:
        raise RecipeError(f"reward model {path!r} has {shape.num_labels} outputs, it must have 1")
    if config.input == "ids" and not hasattr(model, "score"):
        raise RecipeError(
            f"reward model {path!r} ({type(model).__name__}) is not a causal model with a score "
            "head; use `input: text`"
        )
    if config.input == "ids":
        _check_vocabulary(path, tokenizer, shape, context)


def _check_vocabulary(
    path: str, tokenizer: PreTrainedTokenizerBase, shape: Any, context: Context
) -> None:
    ours, theirs = context.tokenizer.get_vocab(), tokenizer.get_vocab()
    if ours != theirs or shape.vocab_size < len(ours):
        differing = len(set(ours.items()) ^ set(theirs.items()))
        raise RecipeError(
            f"reward model {path!r} has another vocabulary than the policy ({len(theirs)} tokens, "
            f"embedding of {shape.vocab_size}; the policy's tokenizer has {len(ours)}; {differing} "
            "entries differ), so the policy's token ids mean nothing to it. Use `input: text`"
        )


def _by_length(encoded: list[list[int]], budget: int) -> list[list[int]]:
    """Row numbers in batches of similar length, at most `budget` padded tokens each."""
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * len(encoded[row]) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches

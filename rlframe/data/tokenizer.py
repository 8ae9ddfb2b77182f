"""Tokenizers: one trained from text with the `tokenizers` library, and what every one must have."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlframe.errors import RecipeError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, lowercase: bool
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with <pad>, <bos> and <eos>, which puts <bos> before a text.

    Args:
      texts: what to learn the merges from.
      vocab_size: tokens, the special ones and the 256 bytes included; fewer if the text has fewer.
      lowercase: write everything in lower case.
    """
    raw = Tokenizer(models.BPE())
    if lowercase:
        raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, raw.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=PAD, bos_token=BOS, eos_token=EOS, padding_side="right"
    )


def check_special_tokens(
    tokenizer: PreTrainedTokenizerBase, *, name: str, pad_token: str | None
) -> None:
    """Give the tokenizer the wanted padding token and make sure that padding and EOS differ.

    Args:
      tokenizer: changed in place.
      name: where it came from, for the message.
      pad_token: a token of the vocabulary, or a new one.

    Raises:
      RecipeError: there is no EOS, no padding token, or both are the same.
    """
    if pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            f"model.policy: tokenizer of {name!r} has no EOS token: nothing could end"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        state = "no padding token" if tokenizer.pad_token_id is None else "a pad equal to eos"
        raise RecipeError(
            f"model.pad_token: tokenizer of {name!r} has {state} ({tokenizer.eos_token!r}), and then "
            "a finished response can not be told from padding. Set `model.pad_token` to an unused "
            "token of the vocabulary, or to a new one such as '<pad>'"
        )

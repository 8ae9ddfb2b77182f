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
) -> frozenset[str]:
    """Give the tokenizer the padding token that the recipe wants, and make sure that there is an EOS.

    None is needed here, and it may be EOS: masks come from lengths, never from token ids.

    Args:
      tokenizer: changed in place.
      name: where it came from, for the message.
      pad_token: a token of the vocabulary, or a new one.

    Returns:
      The tokens that were added to the vocabulary: the padding token, or none.

    Raises:
      RecipeError: there is no EOS.
    """
    known = set(tokenizer.get_vocab())
    if pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            f"model.policy: the tokenizer of {name!r} has no EOS token, so that no response could end. "
            "Set `eos_token` in its tokenizer_config.json"
        )
    return frozenset(tokenizer.get_vocab()) - known

"""How many tokens a model reads, as its config says it in one of many ways."""

from __future__ import annotations

from typing import Any

_KEYS = (
    "max_position_embeddings",
    "max_target_positions",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "context_length",
)

# Their positions are counted from the padding token's id and one more (fairseq's convention), so that
# the table of positions has that many rows which no text reaches.
_FROM_PADDING = frozenset(
    {
        "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
        "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip


def context_tokens(config: Any) -> int | None:
    """The most tokens that a model with this config can read at once.

    Args:
      config: a transformers config of a causal model or a classifier.

    Returns:
      The number of tokens; None if nothing limits it, as for models without positions or with ALiBi.
    """
    text = config.get_text_config(decoder=True)
    kind = getattr(text, "model_type", None)
    if (getattr(text, "alibi", False) and kind != "mpt") or kind == "bloom":
        return None  # bias by distance; mpt's is a table of a fixed length
    found = next((value for key in _KEYS if (value := getattr(text, key, None))), None)
    if not isinstance(found, int) or found <= 0:
        return None
    if kind in _FROM_PADDING:
        padding = getattr(text, "pad_token_id", None)
        return found - (1 if padding is None else padding) - 1
    return found

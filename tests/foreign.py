"""Models, tokenizers and chat templates as other people have them: nothing here is made by rlframe.

Each family writes its turns, its special tokens and its ends in its own way. The weights are random and
small; the tokenizer, its special tokens and its template have the structure of the published ones.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

from rlframe.builtin.product_reviews import product_reviews


@dataclass(frozen=True)
class Family:
    """How one family of chat models writes a conversation."""

    template: str
    special: tuple[str, ...]
    eos: str
    """The tokenizer's EOS, which is not always what ends a turn."""
    pad: str | None
    bos: str | None = None
    """Put in front of every text by the tokenizer's post-processor."""
    ends: tuple[str, ...] = ()
    """What the generation config lists as ends, the tokenizer's EOS apart."""
    more: dict[str, Any] = field(default_factory=dict)


_TURNS = "{% for m in messages %}"
_NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
)

FAMILIES: dict[str, Family] = {
    # The template writes BOS itself; a turn ends with <|eot_id|>, the tokenizer's EOS is another token.
    "llama3": Family(
        "{{ bos_token }}"
        + _TURNS
        + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|finetune_right_pad_id|>",
        ),
        eos="<|end_of_text|>",
        pad="<|finetune_right_pad_id|>",
        bos="<|begin_of_text|>",
        ends=("<|eot_id|>",),
    ),
    # No BOS; a newline follows the end of a turn.
    "chatml": Family(
        _TURNS + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        ends=("<|endoftext|>",),
    ),
    # Content is trimmed, the assistant is called "model", a turn ends with <end_of_turn>, EOS is <eos>.
    "gemma": Family(
        "{{ bos_token }}"
        + _NO_SYSTEM
        + _TURNS
        + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        pad="<pad>",
        bos="<bos>",
        ends=("<end_of_turn>",),
    ),
    # No padding token, no system role; the answer begins with a space and ends with EOS itself.
    "mistral": Family(
        "{{ bos_token }}"
        + _NO_SYSTEM
        + _TURNS
        + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        ("<unk>", "<s>", "</s>"),
        eos="</s>",
        pad=None,
        bos="<s>",
    ),
    # Roles are ordinary text; the end of a turn is EOS and a newline.
    "zephyr": Family(
        _TURNS + "<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<unk>", "<s>", "</s>", "<pad>"),
        eos="</s>",
        pad="<pad>",
        bos="<s>",
    ),
    # Reasoning of earlier turns is removed when a later turn is rendered.
    "thinking": Family(
        "{% set last = messages | length - 1 %}"
        + _TURNS
        + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.index0 < last %}"
        "{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
    ),
    # Two special tokens follow the last answer: the end of the turn, and that of the text.
    "phi3": Family(
        _TURNS + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        ends=("<|end|>",),
    ),
    # A base model: no template, one special token for everything (GPT-2).
    "base": Family("", ("<|endoftext|>",), eos="<|endoftext|>", pad=None),
}


@cache
def _trained(special: tuple[str, ...], vocab_size: int, seed: int) -> str:
    """A byte-level BPE over reviews; its special tokens come after the ordinary ones, as in Llama 3."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator((row["text"] for row in product_reviews(200, seed=seed)), trainer)
    raw.add_special_tokens(list(special))
    return raw.to_str()


def tokenizer(family: str, *, vocab_size: int = 320, seed: int = 0) -> Any:
    """The tokenizer of a family, with its template; another seed makes another vocabulary."""
    kind = FAMILIES[family]
    raw = Tokenizer.from_str(_trained(kind.special, vocab_size, seed))
    if kind.bos is not None:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A",
            pair=f"{kind.bos} $A {kind.bos} $B",
            special_tokens=[(kind.bos, raw.token_to_id(kind.bos))],
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=kind.eos, pad_token=kind.pad, bos_token=kind.bos
    )
    made.chat_template = kind.template or None
    return made


SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Wide enough that the distributions are not uniform and differences show.
    "initializer_range": 0.5,
}

_HEADS = {
    "causal": AutoModelForCausalLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}


def model(
    words: Any,
    *,
    kind: str = "llama",
    head: str = "causal",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    ends: tuple[str, ...] = (),
    **shape: Any,
) -> Any:
    """A small model with random weights.

    Args:
      words: its tokenizer, which gives the size of the vocabulary and the special tokens.
      kind: `model_type`.
      head: causal, sequence or token.
      seed: of the weights; the global generator is left alone.
      dtype: of the weights.
      ends: tokens that the generation config lists as ends beside EOS.
      shape: keys of the config; those of `SHAPE` are used where the config has them.
    """
    known = AutoConfig.for_model(kind).to_dict()
    special = {f"{r}_token_id": getattr(words, f"{r}_token_id") for r in ("pad", "bos", "eos")}
    given = {key: value for key, value in SHAPE.items() if key in known}
    config = AutoConfig.for_model(kind, **{"vocab_size": len(words), **special, **given, **shape})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _HEADS[head].from_config(config, dtype=dtype).eval()
    if head == "causal":
        listed = [words.eos_token_id, *(words.convert_tokens_to_ids(end) for end in ends)]
        made.generation_config.eos_token_id = listed if len(listed) > 1 else listed[0]
        made.generation_config.pad_token_id = words.pad_token_id
    return made


def saved(path: Path, family: str, *, words: Any = None, **options: Any) -> Path:
    """Write a model folder of a family, as `save_pretrained` does: weights, config, tokenizer."""
    words = tokenizer(family) if words is None else words
    ends = FAMILIES[family].ends if options.get("head", "causal") == "causal" else ()
    model(words, **{"ends": ends, **options}).save_pretrained(path)
    words.save_pretrained(path)
    return path


def rows(path: Path, content: list[dict[str, Any]]) -> Path:
    """Write a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def chats(count: int = 60, *, system: str | None = None) -> list[dict[str, Any]]:
    """Conversations of one question and one answer, no two alike."""
    found = []
    for number, row in enumerate(product_reviews(count, seed=1)):
        messages = [
            {"role": "user", "content": f"Write review {number} of a camera."},
            {"role": "assistant", "content": row["text"]},
        ]
        front = [] if system is None else [{"role": "system", "content": system}]
        found.append({"messages": [*front, *messages]})
    return copy.deepcopy(found)


def preferences(count: int = 60) -> list[dict[str, Any]]:
    """Pairs of answers to one question, as text."""
    texts = product_reviews(2 * count, seed=2)
    return [
        {
            "prompt": f"Write review {number} of a camera.",
            "chosen": texts[2 * number]["text"],
            "rejected": texts[2 * number + 1]["text"],
        }
        for number in range(count)
    ]

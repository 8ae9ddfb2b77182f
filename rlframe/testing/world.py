"""A tiny world for components to run in: tokenizer, models, rows, responses. No file, no network.

Everything is made in process from the built-in text, in about a second, and only when it is asked for.
"""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rlframe.api.component import Context, RewardProvider, RewardSpec
from rlframe.builtin.product_reviews import product_reviews
from rlframe.data.encode import RowEncoder
from rlframe.data.tokenizer import train_tokenizer
from rlframe.models.loading import new_language_model, scalar_model_from
from rlframe.models.policy import Policy
from rlframe.models.pretrained import Pretrained
from rlframe.models.vocabulary import vocabulary_of
from rlframe.registry.discovery import Registry
from rlframe.registry.nested import NestedReward
from rlframe.stage_table import STAGES, referred
from rlframe.types import Prompt, RewardBatch, Row, StopReason

SAMPLES_PER_PROMPT = 2
MAX_NEW_TOKENS = 64

RESPONSES = (
    "Great battery, easy to set up, and it has not failed once in a month.",
    "broke after two days",
    "Easy!",
    "The picture is great but the battery is not, so I am of two minds about keeping it.",
    "",
    "It works. It works. It works.",
    "I would NOT buy this again - returned it for 39.99, twice.",
    " great great great ",
    "No idea yet; the manual is in Dutch (handleiding) and the box was open.",
    "fine\n\n- light\n- quiet\n- cheap\n",
)
"""What the policy of this world answers: long, short, empty, repetitive, with marks and numbers, and
with spaces at both ends."""

_SHAPE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8192,
    # Wide enough that the distributions are not uniform and differences show.
    "initializer_range": 0.5,
}


@cache
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of 300 tokens with <pad> 0, <bos> 1 and <eos> 2."""
    texts = [str(row["text"]) for row in product_reviews(200, seed=0)]
    return train_tokenizer(texts, vocab_size=300, lowercase=False)


def rows(data: Mapping[str, Sequence[Any]] | None = None) -> list[Row]:
    """The data set of this world: reviews in every role, with the given columns laid over them.

    Args:
      data: column -> values, repeated until there is one a row.
    """
    reviews = product_reviews(24, seed=1)
    own = data or {}
    count = max(len(reviews), *map(len, own.values())) if own else len(reviews)
    made: list[Row] = []
    for number in range(count):
        review = reviews[number % len(reviews)]
        words = str(review["text"]).split(" ")
        split = {"prompt": " ".join(words[:4]), "response": " " + " ".join(words[4:])}
        given = {name: values[number % len(values)] for name, values in own.items()}
        made.append({**review, **split, **given})
    return made


CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""The chat template of this world, if it has one."""


def tiny_context(*, data: Mapping[str, Sequence[Any]] | None = None, chat: bool = False) -> Context:
    """What the engine would give a component, on a CPU.

    Every data set of this world is `rows(data)`, whatever it is called; `stage:reward_model` and
    `stage:sft` are tiny models with random weights.

    Args:
      data: columns of the data set.
      chat: whether the tokenizer has a chat template, so that prompts have messages.
    """
    # A copy: a component that changes it must not change the next one's.
    tokenizer, table = copy.deepcopy(tiny_tokenizer()), rows(data)
    tokenizer.chat_template = CHAT if chat else None

    def build_reward(spec: RewardSpec) -> RewardProvider[Any]:
        component: Any = Registry().load(spec.kind, spec.type)
        built = component(component.Config.model_validate(spec.options), context)
        built.name = spec.type
        return NestedReward(built, lambda: None)

    context = Context(
        device=torch.device("cpu"),
        dtype=torch.float32,
        tokenizer=tokenizer,
        seed=0,
        rank=0,
        world_size=1,
        samples_per_prompt=SAMPLES_PER_PROMPT,
        columns=frozenset(table[0]),
        rewards=frozenset({"reward"}),
        prepare=lambda module: module.eval().requires_grad_(False),
        model_path=_model_path,
        pretrained=lambda name: Pretrained(_model_path(name)),
        training_rows=lambda name: table,
        tokenize=RowEncoder(tokenizer).example,
        build_reward=build_reward,
        tokenizer_of=lambda name: Pretrained(_model_path(name)).tokenizer,
        prompts=lambda: _prompts(tokenizer, table),
        max_new_tokens=MAX_NEW_TOKENS,
    )
    return context


def tiny_policy(*, seed: int = 0) -> Policy:
    """The policy in training: a one-layer GPT-2 in float64, so that finite differences are exact.

    Not a Llama, whose norms compute in float32 whatever the weights are in.
    """
    shape = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 512}
    wide = {**shape, "initializer_range": 0.3}
    model = new_language_model(wide, tiny_tokenizer(), dtype=torch.float64, seed=seed)
    model.config.pad_token_id = None  # or GPT-2 warns of padding that the mask leaves out anyway
    return Policy(model, temperature=1.0, chunk=512)


def sampled_policy(temperature: float) -> Policy:
    """A policy to sample from: a one-layer Llama in float32, whose head has rows without a token."""
    tokenizer = tiny_tokenizer()
    model = new_language_model(_SHAPE, tokenizer, dtype=torch.float32, seed=0)
    size = len(tokenizer)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model.resize_token_embeddings(size + 20, mean_resizing=False)
        head = model.get_output_embeddings().weight
        head[size:] = 2 * head[:20]  # they would be sampled, and often
    vocabulary = vocabulary_of(tokenizer)
    return Policy(model, temperature=temperature, chunk=64, vocabulary=vocabulary)


def reward_batch(
    context: Context,
    *,
    data: Mapping[str, Sequence[Any]] | None = None,
    responses: Sequence[str] = (),
) -> RewardBatch:
    """A rollout to judge: every prompt answered twice, for every reason that ends a response.

    Args:
      context: gives the tokenizer.
      data: column -> values, one a prompt; `prompt` is what the policy is asked.
      responses: what it answers, dealt to the prompts in turn.
    """
    texts = list(responses) or list(RESPONSES)
    longest = max([-(-len(texts) // SAMPLES_PER_PROMPT), *map(len, (data or {}).values()), 3])
    table = rows(data)[:longest]
    count = len(table) * SAMPLES_PER_PROMPT
    groups = [number // SAMPLES_PER_PROMPT for number in range(count)]
    asked = _prompts(context.tokenizer, table)
    # A column may be changed by a reward that misbehaves, so each prompt has a row of its own.
    prompts = [replace(asked[g], columns=dict(asked[g].columns)) for g in groups]
    answered = [texts[number % len(texts)] for number in range(count)]
    reasons = [list(StopReason)[number % len(StopReason)] for number in range(count)]
    batch = RewardBatch(
        prompts=tuple(prompts),
        response_texts=tuple(answered),
        response_ids=_ids(context, answered, reasons),
        stop_reasons=tuple(reasons),
        group_ids=tuple(groups),
        update=0,
        generator=torch.Generator().manual_seed(0),
    )
    other = [*answered[1:], answered[0]]
    ids = _ids(context, other, reasons)
    reference = batch.with_responses(tuple(other), ids, batch.stop_reasons)
    return replace(batch, sample_reference=lambda: reference)


def _prompts(tokenizer: PreTrainedTokenizerBase, table: Sequence[Row]) -> list[Prompt]:
    """What rows ask; with a chat template as the only message of a chat."""
    encode = RowEncoder(tokenizer)
    if not tokenizer.chat_template:
        return [encode.prompt(row) for row in table]
    chats = [{"messages": [{"role": "user", "content": row["prompt"]}], **row} for row in table]
    pairs = zip(map(encode.prompt, chats), table, strict=True)
    return [replace(prompt, columns=row) for prompt, row in pairs]


def _ids(context: Context, texts: Sequence[str], reasons: Sequence[StopReason]) -> list[list[int]]:
    """The sampled tokens: EOS last where it ended the response, and never none at all."""
    tokenizer = context.tokenizer
    encoded = [list(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    return [
        [*ids, tokenizer.eos_token_id] if reason is StopReason.EOS or not ids else ids
        for ids, reason in zip(encoded, reasons, strict=True)
    ]


def _model_path(name: str) -> str:
    stage = referred(name)
    return name if stage is None else str(_models() / stage.name)


@cache
def _models() -> Path:
    """A directory with the results of all stages that leave one."""
    disable_progress_bar()
    directory = Path(tempfile.mkdtemp(prefix="rlframe-kit-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    tokenizer = tiny_tokenizer()
    model = new_language_model(_SHAPE, tokenizer, dtype=torch.float32, seed=0)
    with torch.random.fork_rng(devices=[]):
        judge = scalar_model_from(model, head="normal", seed=0)
    results: dict[str | None, Any] = {"policy": model, "scorer": judge}
    for stage in STAGES:
        if stage.result in results:
            results[stage.result].save_pretrained(directory / stage.name)
            tokenizer.save_pretrained(directory / stage.name)
    return directory

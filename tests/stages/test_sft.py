from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlframe.distributed.runtime import Runtime
from rlframe.models.policy import Policy
from rlframe.stages.sft import fine_tune, packed, perplexity
from rlframe.stages.supervised import FineTuningSettings
from rlframe.types import TokenExample

RUNTIME = Runtime(device="cpu")
SETTINGS = FineTuningSettings(
    epochs=3,
    batch_size=4,
    processes=1,
    learning_rate=3e-2,
    warmup_share=0.1,
    weight_decay=0.0,
    seed=0,
    cpu=True,
)
TEXTS = [TokenExample((1, 20 + i % 3, 30, 31, 2), 0) for i in range(24)]


def policy_of(model: Any) -> Policy:
    return Policy(model, temperature=1.0, chunk=16)


def test_a_model_without_an_opinion_is_as_perplexed_as_its_vocabulary_is_large(
    language_model: Any,
) -> None:
    model = language_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = perplexity(policy_of(model), TEXTS[:3], budget=100, runtime=RUNTIME)
    assert found == pytest.approx(model.config.vocab_size, rel=1e-5)


def test_perplexity_weighs_tokens_whatever_the_batches(language_model: Any) -> None:
    model = language_model()
    mixed = [*TEXTS[:2], TokenExample((1, 7, 8, 9, 10, 11, 2), 3)]
    total, count = 0.0, 0
    for example in mixed:
        with torch.no_grad():
            logp = model(torch.tensor([example.ids])).logits[0, :-1].log_softmax(-1)
        picked = logp.gather(-1, torch.tensor(example.ids)[1:, None]).squeeze(-1)
        picked = picked[max(example.context_tokens, 1) - 1 :]
        total, count = total - float(picked.sum()), count + len(picked)
    for budget in (1, 1000):
        found = perplexity(policy_of(model), mixed, budget=budget, runtime=RUNTIME)
        assert found == pytest.approx(math.exp(total / count), rel=1e-4)


def test_fine_tuning_learns_and_tells_of_each_step(language_model: Callable[..., Any]) -> None:
    model = language_model(initializer_range=0.02)
    before = perplexity(policy_of(model), TEXTS, budget=1000, runtime=RUNTIME)
    steps: list[tuple[int, int]] = []
    fine_tune(
        model,
        TEXTS,
        pack_to=None,
        settings=SETTINGS,
        progress=lambda done, total, _: steps.append((done, total)),
    )
    assert perplexity(policy_of(model), TEXTS, budget=1000, runtime=RUNTIME) < before / 10
    assert steps[-1] == (18, 18)  # 24 examples / 4, 3 epochs
    assert not model.training


def test_context_is_not_learned(language_model: Callable[..., Any]) -> None:
    """Two data sets that differ in nothing but the tokens of their prompts' predictions."""
    model = language_model(initializer_range=0.02)
    examples = [TokenExample((1, 40, 41, 50, 2), 3)] * 24
    fine_tune(model, examples, pack_to=None, settings=SETTINGS, progress=lambda *_: None)
    answer = perplexity(
        policy_of(model), [TokenExample((1, 40, 41, 50, 2), 3)], budget=100, runtime=RUNTIME
    )
    prompt = perplexity(
        policy_of(model), [TokenExample((1, 40, 41), 0)], budget=100, runtime=RUNTIME
    )
    assert answer < 2
    assert prompt > 50


def test_every_answer_of_a_conversation_weighs_by_its_tokens(
    language_model: Callable[..., Any],
) -> None:
    model = language_model()
    example = TokenExample((1, 40, 41, 50, 2, 42, 51, 52, 2), 3, ((3, 5), (6, 9)))
    with torch.no_grad():
        logp = model(torch.tensor([example.ids])).logits[0].log_softmax(-1)
    picked = [-logp[place - 1, example.ids[place]] for place in (3, 4, 6, 7, 8)]
    found = perplexity(policy_of(model), [example], budget=100, runtime=RUNTIME)
    assert found == pytest.approx(math.exp(sum(map(float, picked)) / 5), rel=1e-5)


def test_what_stands_between_answers_is_not_learned(language_model: Callable[..., Any]) -> None:
    model = language_model(initializer_range=0.02)
    example = TokenExample((1, 40, 50, 2, 41, 51, 2), 2, ((2, 4), (5, 7)))
    fine_tune(model, [example] * 24, pack_to=None, settings=SETTINGS, progress=lambda *_: None)
    answers = perplexity(policy_of(model), [example], budget=100, runtime=RUNTIME)
    question = TokenExample(example.ids[:5], 4)
    between = perplexity(policy_of(model), [question], budget=100, runtime=RUNTIME)
    assert answers < 2
    assert between > 50


def test_packing_fills_rows_with_whole_examples_whose_positions_start_again() -> None:
    sizes = [4, 2, 3, 1, 5, 2, 4, 3]
    rows = [
        {
            "input_ids": [10 * i + k for k in range(n)],
            "labels": [-100] + [10 * i + k for k in range(1, n)],
        }
        for i, n in enumerate(sizes)
    ]
    found = packed(rows, tokens=6, seed=0)
    assert max(len(row["labels"]) for row in found) <= 6
    assert len(found) <= 5  # 24 tokens fill four rows; a fifth is what whole examples cost
    pieces = []
    for row in found:
        for token, label, position in zip(
            *(row[k] for k in ("input_ids", "labels", "position_ids")), strict=True
        ):
            if position == 0:
                pieces.append({"input_ids": [], "labels": []})
            pieces[-1]["input_ids"].append(token)
            pieces[-1]["labels"].append(label)
    assert sorted(pieces, key=lambda piece: piece["input_ids"]) == rows
    assert found == packed(rows, tokens=6, seed=0) != packed(rows, tokens=6, seed=1)


def test_packed_examples_do_not_see_each_other(language_model: Callable[..., Any]) -> None:
    model = language_model()
    first, second = [5, 6, 7, 2], [8, 9, 2]
    (row,) = packed(
        [{"input_ids": ids, "labels": ids} for ids in (first, second)], tokens=8, seed=0
    )
    tensors = {key: torch.tensor([row[key]]) for key in ("input_ids", "position_ids")}
    together = model(**tensors, use_cache=False).logits[0]  # as Trainer calls it
    alone = [model(torch.tensor([ids])).logits[0] for ids in (first, second)]
    order = alone if row["input_ids"][0] == first[0] else alone[::-1]
    torch.testing.assert_close(together, torch.cat(order))


def test_packed_fine_tuning_learns_and_counts_rows(language_model: Callable[..., Any]) -> None:
    model = language_model(initializer_range=0.02)
    steps: list[tuple[int, int]] = []
    fine_tune(
        model,
        TEXTS,  # 24 of 5 tokens
        pack_to=20,
        settings=replace(SETTINGS, batch_size=2, epochs=6),
        progress=lambda done, total, _: steps.append((done, total)),
    )
    assert steps[-1] == (18, 18)  # 6 rows of 20 tokens, 2 a step, 6 epochs
    assert perplexity(policy_of(model), TEXTS, budget=1000, runtime=RUNTIME) < 10

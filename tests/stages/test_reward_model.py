from __future__ import annotations

from typing import Any

import pytest
import torch

from rlframe.distributed.runtime import Runtime
from rlframe.models.loading import scalar_model_from
from rlframe.stages.reward_model import pair_accuracy, train_reward_model
from rlframe.stages.supervised import FineTuningSettings
from rlframe.types import TokenExample

RUNTIME = Runtime(device="cpu")


def pairs(count: int) -> list[tuple[TokenExample, TokenExample]]:
    """Token 20 somewhere in the text wins over token 30 there; lengths differ."""
    return [
        (
            TokenExample((1, *[5] * (i % 4), 20, *[6] * (i % 3), 2), 0),
            TokenExample((1, *[5] * (i % 3), 30, *[6] * (i % 5), 2), 0),
        )
        for i in range(count)
    ]


def test_a_reward_model_learns_to_order_pairs_and_centring_keeps_scores_near_zero(
    language_model: Any,
) -> None:
    settings = FineTuningSettings(
        epochs=4,
        batch_size=8,
        processes=1,
        learning_rate=1e-2,
        warmup_share=0.1,
        weight_decay=0.0,
        seed=0,
        cpu=True,
    )
    means = []
    for center in (0.0, 0.1):
        model = scalar_model_from(language_model(initializer_range=0.1), head="normal", seed=0)
        train_reward_model(
            model,
            pairs(64),
            center=center,
            settings=settings,
            progress=lambda *_: None,
        )
        assert pair_accuracy(model, pairs(30), budget=100, runtime=RUNTIME) == 1.0
        assert not model.training
        means.append(abs(mean_score(model)))
    assert means[1] < 0.5


def mean_score(model: Any) -> float:
    from rlframe.stages.reward_model import scores

    texts = [e.ids for pair in pairs(20) for e in pair]
    with torch.no_grad():
        found = [
            float(scores(model, torch.tensor([ids]), torch.tensor([len(ids)]))[0]) for ids in texts
        ]
    return sum(found) / len(found)


def test_the_same_tokens_are_a_tie_whatever_the_batches_make_of_them(
    language_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches round in their own ways: here each text scores higher than the one before it."""
    from rlframe.stages import reward_model

    seen = iter(range(10**6))

    def scores(model: Any, tokens: Any, lengths: Any) -> Any:
        return torch.tensor([float(next(seen)) for _ in tokens])

    monkeypatch.setattr(reward_model, "scores", scores)
    model = scalar_model_from(language_model(), head="normal", seed=0)
    same, other = TokenExample((1, 20, 2), 0), TokenExample((1, 30, 2), 0)
    for given, expected in (
        ([(same, same)], 0.5),
        ([(same, same), (same, other)], 0.25),  # the second of a batch scores higher
        ([(same, same)] * 3 + [(other, same)], 1.5 / 4),
    ):
        assert pair_accuracy(model, given, budget=100, runtime=RUNTIME) == expected


def test_a_model_without_an_opinion_orders_half_of_the_pairs(language_model: Any) -> None:
    model = scalar_model_from(language_model(), head="zero", seed=0)
    assert pair_accuracy(model, pairs(7), budget=20, runtime=RUNTIME) == 0.5

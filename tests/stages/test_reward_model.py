from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rlframe.distributed.runtime import Runtime
from rlframe.errors import RecipeError
from rlframe.models.loading import scalar_model_from
from rlframe.stages.reward_model import pair_accuracy, pairs_from_labels, train_reward_model
from rlframe.stages.supervised import FineTuningSettings
from rlframe.types import TokenExample

ROWS = [{"text": f"good {i}", "label": 1} for i in range(4)]
ROWS += [{"text": f"bad {i}", "label": 0} for i in range(2)]
RUNTIME = Runtime(device="cpu")


def test_pairs_put_the_preferred_label_first_and_use_every_text_before_any_again() -> None:
    pairs = pairs_from_labels(ROWS, preferred=1, count=None, seed=0)
    assert len(pairs) == 4  # the more frequent side
    assert all(p["chosen"].startswith("good") and p["rejected"].startswith("bad") for p in pairs)
    assert set(Counter(p["chosen"] for p in pairs).values()) == {1}
    assert set(Counter(p["rejected"] for p in pairs).values()) == {2}
    assert len(pairs_from_labels(ROWS, preferred=1, count=9, seed=0)) == 9
    turned = pairs_from_labels(ROWS, preferred=0, count=1, seed=0)
    assert turned[0]["chosen"].startswith("bad")


def test_the_seed_decides_the_pairing() -> None:
    one, same, other = (pairs_from_labels(ROWS, preferred=1, count=20, seed=s) for s in (0, 0, 1))
    assert one == same != other


def test_a_label_that_nobody_has_is_an_error_with_both_counts() -> None:
    with pytest.raises(RecipeError, match=r"0 rows are labelled 'good' and 6 are not"):
        pairs_from_labels(ROWS, preferred="good", count=None, seed=0)


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
    import torch

    from rlframe.stages.reward_model import scores

    texts = [e.ids for pair in pairs(20) for e in pair]
    with torch.no_grad():
        found = [
            float(scores(model, torch.tensor([ids]), torch.tensor([len(ids)]))[0]) for ids in texts
        ]
    return sum(found) / len(found)


def test_a_model_without_an_opinion_orders_half_of_the_pairs(language_model: Any) -> None:
    model = scalar_model_from(language_model(), head="zero", seed=0)
    assert pair_accuracy(model, pairs(7), budget=20, runtime=RUNTIME) == 0.5

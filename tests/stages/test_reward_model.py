from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

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
    with pytest.raises(RecipeError, match=r"0 rows are labelled 'good' and 6 .* are 0, 1"):
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


@pytest.mark.parametrize(
    "row",
    [{"text": "good"}, {"label": 1}, {"text": 5, "label": 1}, {"text": "good", "label": None}],
)
def test_a_row_that_is_neither_a_pair_nor_labelled_is_told(row: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"neither a pair .* nor a labelled text"):
        pairs_from_labels([*ROWS, row], preferred=1, count=None, seed=0)


def test_a_model_without_an_opinion_orders_half_of_the_pairs(language_model: Any) -> None:
    model = scalar_model_from(language_model(), head="zero", seed=0)
    assert pair_accuracy(model, pairs(7), budget=20, runtime=RUNTIME) == 0.5


def test_the_labels_of_csv_are_text_and_mean_what_they_say():
    rows = [{"text": "good", "label": "1"}, {"text": "bad", "label": "0"}]
    made = pairs_from_labels(rows, preferred=1, count=None, seed=0)
    assert made == [{"chosen": "good", "rejected": "bad"}]

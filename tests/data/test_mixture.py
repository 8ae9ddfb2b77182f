"""Several data sets as one: proportions, nothing lost, nothing on both sides."""

from collections import Counter

import pytest

from rlframe.data.mixture import mixed
from rlframe.errors import RecipeError


def parts(**sizes):
    """Data sets of so many rows to train on, and a tenth of it held out."""
    return {
        name: ([f"{name}{i}" for i in range(size)], [f"{name}-{i}" for i in range(size // 10)])
        for name, size in sizes.items()
    }


def mix(sets, weights, seed=0):
    train, heldout = mixed(sets, weights, seed=seed, asked=str)
    return list(train), list(heldout)


def test_an_epoch_by_hand():
    train, heldout = mix({"a": (["a0", "a1", "a2"], ["x"]), "b": (["b0"], ["y"])}, {"a": 3, "b": 1})
    assert train == ["a0", "a1", "b0", "a2"]
    assert heldout == ["x", "y"]


@pytest.mark.parametrize("weights", [{"a": 0.7, "b": 0.3}, {"a": 7, "b": 3}, {"a": 1, "b": 20}])
def test_every_stretch_has_the_proportions_and_nothing_is_lost(weights):
    sets = parts(a=100, b=330)
    train, _ = mix(sets, weights)
    assert set(train) == {*sets["a"][0], *sets["b"][0]}
    share = weights["a"] / sum(weights.values())
    for end in range(1, len(train) + 1):
        assert abs(sum(row[0] == "a" for row in train[:end]) - share * end) <= 1
    times = Counter(train)
    for name in "ab":  # repeats are shared out evenly
        counts = [times[row] for row in sets[name][0]]
        assert max(counts) - min(counts) <= 1
    assert min(max(times[row] for row in sets[name][0]) for name in "ab") == 1


def test_the_seed_chooses_what_is_repeated_and_nothing_else_does():
    sets, weights = parts(a=10, b=100), {"a": 1, "b": 6}
    one, again, other = (mix(sets, weights, seed)[0] for seed in (0, 0, 1))
    assert one == again
    assert Counter(one) != Counter(other)
    assert len(one) == len(other)


def test_held_out_examples_alternate_and_are_not_repeated():
    sets = parts(a=100, b=330)
    _, heldout = mix(sets, {"a": 1, "b": 1})
    assert sorted(heldout) == sorted([*sets["a"][1], *sets["b"][1]])
    assert Counter(row[0] for row in heldout[:20]) == {"a": 10, "b": 10}


def test_what_one_holds_out_is_trained_on_from_none():
    sets = {"a": (["p", "q"], ["r"]), "b": (["r", "s"], ["q"])}
    train, _ = mix(sets, {"a": 1, "b": 1})
    assert sorted(train) == ["p", "s"]
    with pytest.raises(RecipeError, match="nothing to train on is left of b"):
        mix({"a": (["p"], ["r"]), "b": (["r"], [])}, {"a": 1, "b": 1})


def test_weights_that_make_an_epoch_endless_are_refused():
    with pytest.raises(RecipeError, match=r"data set 'b' has 1000 rows .* data\.b\.limit"):
        mix(parts(a=10, b=1000), {"a": 1, "b": 1e-3})

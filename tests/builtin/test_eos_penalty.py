"""The EOS trick: the reason why sampling stopped decides, and where the penalty goes is the mode's."""

import pytest
import torch
from pydantic import ValidationError

from rlframe.api import StopReason
from rlframe.builtin.eos_penalty import EosPenalty

EOS, STOP, LENGTH = StopReason.EOS, StopReason.STOP_STRING, StopReason.LENGTH


@pytest.fixture
def three(batch):
    """Responses that ended by EOS, by a stop string, and not at all."""
    return batch(["a b", "a b c", "a"], stops=[EOS, STOP, LENGTH])


def test_only_the_response_that_was_cut_is_penalised(build, three):
    assert build(EosPenalty, penalty=2).score(three) == [0, 0, -2]


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (["length"], [0, 0, -2]),
        (["stop_string"], [0, -2, 0]),
        (["length", "stop_string"], [0, -2, -2]),
        (["eos"], [-2, 0, 0]),
    ],
)
def test_the_reasons_that_are_penalised_can_be_chosen(build, three, reasons, expected):
    assert build(EosPenalty, penalty=2, reasons=reasons).score(three) == expected


def test_the_last_token_does_not_decide(build, batch):
    # An EOS id at the end of a response that was cut, and none in one that ended (TRL #3750).
    ended_and_cut = batch(["a", "a"], ids=[[5, 6], [5, 0]], stops=[STOP, LENGTH])
    assert build(EosPenalty, penalty=1).score(ended_and_cut) == [0, -1]


# The mix so far: token rewards of 1 and 2, of 4, and of 8 at the end. The penalty comes times its
# weight, as the engine hands it over.
TOTAL = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 4.0], [8.0, 0.0, 0.0]])
VALUES = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-6.0, 0.0, 0.0]])


def test_subtract_lowers_the_score_of_the_response_that_was_cut(build, three):
    found = build(EosPenalty, penalty=2).combine(TOTAL, VALUES, three)
    assert found.tolist() == [[1, 2, 0], [0, 0, 4], [2, 0, 0]]


def test_replace_takes_the_place_of_all_rewards_before_it(build, three):
    found = build(EosPenalty, penalty=2, mode="replace").combine(TOTAL, VALUES, three)
    assert found.tolist() == [[1, 2, 0], [0, 0, 4], [-6, 0, 0]]


def test_replace_makes_no_quality_make_up_for_not_ending(build, three):
    reward = build(EosPenalty, penalty=2, mode="replace")
    for scale in (0.0, 1.0, 1e6):
        found = reward.combine(TOTAL * scale, VALUES, three)
        assert found[2].tolist() == [-6, 0, 0]


def test_replace_takes_away_token_rewards_too(build, batch):
    cut = batch(["a b c"], stops=[LENGTH])
    total, values = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    found = build(EosPenalty, penalty=1, mode="replace").combine(total, values, cut)
    assert found.tolist() == [[0, 0, -1]]


@pytest.mark.parametrize("mode", ["subtract", "replace"])
def test_the_mix_that_is_handed_in_is_left_as_it_was(build, three, mode):
    total, values = TOTAL.clone(), VALUES.clone()
    build(EosPenalty, penalty=2, mode=mode).combine(total, values, three)
    assert torch.equal(total, TOTAL)
    assert torch.equal(values, VALUES)


@pytest.mark.parametrize(
    "keys",
    [{"penalty": -1}, {"penalty": 1, "reasons": []}, {"penalty": 1, "reasons": ["late"]}, {}],
)
def test_a_penalty_is_not_negative_and_has_a_reason(keys):
    with pytest.raises(ValidationError):
        EosPenalty.Config.model_validate(keys)

"""The EOS trick: the reason why sampling stopped decides, and where the penalty goes is the mode's."""

import pytest
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


def test_replace_shuts_the_other_rewards_out_where_a_response_was_cut(build, three):
    reward = build(EosPenalty, penalty=2, mode="replace")
    assert reward.gate(three) == [1, 1, 0]
    assert reward.score(three) == [0, 0, -2]


def test_mask_judges_no_response_that_was_cut(build, three):
    reward = build(EosPenalty, mode="mask")
    assert reward.score(three) == [0, 0, None]


@pytest.mark.parametrize(
    ("keys", "gates", "invalidates"),
    [
        ({"penalty": 2}, False, False),
        ({"penalty": 2, "mode": "replace"}, True, False),
        ({"mode": "mask"}, False, True),
    ],
)
def test_replace_alone_has_a_gate_and_mask_alone_leaves_responses_out(keys, gates, invalidates):
    config = EosPenalty.Config(**keys)
    assert (EosPenalty.has_gate(config), EosPenalty.invalidates(config)) == (gates, invalidates)


@pytest.mark.parametrize(
    "keys",
    [
        {"penalty": -1},
        {"penalty": 1, "reasons": []},
        {"penalty": 1, "reasons": ["late"]},
        {},
        {"penalty": 1, "mode": "mask"},
    ],
)
def test_a_penalty_is_not_negative_and_has_a_reason(keys):
    with pytest.raises(ValidationError):
        EosPenalty.Config.model_validate(keys)

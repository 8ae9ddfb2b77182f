"""From scores to token rewards: the score lands on the last generated token."""

import pytest
import torch

from rlframe.functional import rewards


def test_the_score_lands_on_the_last_generated_token():
    scores, lengths = torch.tensor([5.0, -6.0, 7.0]), torch.tensor([1, 3, 4])
    assert rewards.at_last_token(scores, lengths, width=4).tolist() == [
        [5, 0, 0, 0],  # a single token
        [0, 0, -6, 0],
        [0, 0, 0, 7],  # cut at the token limit: no padding at all
    ]


def test_the_score_lands_where_the_response_mask_ends():
    lengths = torch.arange(1, 9)
    mask = rewards.response_mask(lengths, width=8)
    placed = rewards.at_last_token(torch.ones(8), lengths, width=8).bool()
    followed = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    assert torch.equal(placed, mask & ~followed)


def test_the_score_keeps_its_dtype_and_a_width_of_one_is_enough():
    scores = torch.tensor([0.1], dtype=torch.float64)
    assert torch.equal(rewards.at_last_token(scores, torch.tensor([1]), width=1), scores[:, None])


@pytest.mark.parametrize("length", [0, 5])
def test_a_length_outside_the_response_is_refused(length):
    with pytest.raises(RuntimeError, match="out of bounds"):
        rewards.at_last_token(torch.ones(1), torch.tensor([length]), width=4)


def test_no_responses_give_no_rewards():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert rewards.at_last_token(torch.zeros(0), nothing, width=3).shape == (0, 3)
    assert rewards.response_mask(nothing, width=3).shape == (0, 3)


def test_response_mask_is_true_on_the_first_length_tokens():
    mask = rewards.response_mask(torch.tensor([0, 1, 3]), width=3)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [
        [False, False, False],
        [True, False, False],
        [True, True, True],
    ]


@pytest.mark.parametrize(
    ("score", "nats", "coefficient", "reward"),
    [
        (1.0, 2.0, 0.25, 0.5),  # drifting costs
        (1.0, -2.0, 0.25, 1.5),  # a sampled estimate may be negative, and then pays
        (0.0, 2.0, 0.25, -0.5),  # the tokens before the last pay too
        (3.0, 2.0, 0.0, 3.0),  # free
    ],
)
def test_kl_penalty_table(score, nats, coefficient, reward):
    found = rewards.apply_kl_penalty(
        torch.tensor([[score]]), torch.tensor([[nats]]), kl_coefficient=coefficient
    )
    assert found.item() == reward

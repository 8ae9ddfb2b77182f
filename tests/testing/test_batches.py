"""Batches from plain lists: what is left out, and what a mask and a gradient are on."""

import torch

from rlframe.testing import credit_batch, policy_loss_batch, value_loss_batch

MASK = [[True, True], [True, False]]


def test_a_credit_batch_has_the_scores_of_its_rewards_and_a_group_per_response():
    batch = credit_batch([[1.0, 2.0], [4.0]], values=[[0.5, 0.5], [1.0]])
    assert batch.mask.tolist() == MASK
    assert batch.scores.tolist() == [3, 4]
    assert batch.values.tolist() == [[0.5, 0.5], [1, 0]]
    assert batch.group_ids.tolist() == [0, 1]


def test_a_policy_loss_batch_is_at_ratio_1_unless_it_says_otherwise():
    batch = policy_loss_batch([[-1.0, -2.0], [-3.0]], advantages=[[1.0, 1.0], [-1.0]])
    assert batch.mask.tolist() == MASK
    assert batch.logprobs.tolist() == batch.old_logprobs.tolist() == [[-1, -2], [-3, 0]]
    assert batch.advantages.tolist() == [[1, 1], [-1, 0]]
    assert not batch.entropy.any()
    assert [name for name, x in vars(batch).items() if x.requires_grad] == ["logprobs", "entropy"]
    given = {"old_logprobs": [[-4.0]], "entropy": [[2.0]]}
    batch = policy_loss_batch([[-1.0]], advantages=[[1.0]], **given)
    assert (batch.old_logprobs.item(), batch.entropy.item()) == (-4, 2)


def test_a_value_loss_batch_has_the_old_values_unless_it_says_otherwise():
    batch = value_loss_batch([[1.0, 2.0], [3.0]], returns=[[0.0, 1.0], [2.0]])
    assert batch.mask.tolist() == MASK
    assert torch.equal(batch.values, batch.old_values)
    assert batch.returns.tolist() == [[0, 1], [2, 0]]
    assert [name for name, x in vars(batch).items() if x.requires_grad] == ["values"]
    assert value_loss_batch([[1.0]], returns=[[0.0]], old_values=[[5.0]]).old_values.item() == 5

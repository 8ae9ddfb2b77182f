"""The statistics of groups by hand; advantages and transforms test what is made of them."""

import pytest
import torch

from rlframe.functional.groups import group_statistics


def test_group_statistics_by_hand():
    # Group 7 has 1, 2 and 6, whose squared deviations are 4 + 1 + 9; 0 is alone; nothing of 3 is valid.
    scores = torch.tensor([1.0, 5.0, 2.0, torch.nan, 6.0, -8.0], dtype=torch.float64)
    group_ids = torch.tensor([7, 0, 7, 7, 7, 3])
    valid = torch.tensor([True, True, True, False, True, False])
    found = group_statistics(scores, group_ids, valid)
    assert found.number.tolist() == [3, 1, 3, 3, 3, 0]
    assert found.mean.tolist() == [3, 5, 3, 3, 3, 0]
    assert found.deviation.tolist() == [-2, 0, -1, 0, 3, 0]
    assert found.std.tolist() == pytest.approx([7**0.5, 0, 7**0.5, 7**0.5, 7**0.5, 0])


def test_group_statistics_of_float32_scores_are_taken_in_float64():
    scores = torch.tensor([1.0, 1.5, 0.25])
    found = group_statistics(scores, torch.zeros(3).long(), scores > 0)
    expected = group_statistics(scores.double(), torch.zeros(3).long(), scores > 0)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float64
        assert torch.equal(one, other)

import pytest
from pydantic import ValidationError

from rlframe.builtin.length import Length


def test_length_is_0_at_the_target_and_falls_by_1_for_every_target_away_from_it(build, batch):
    lengths = [1, 5, 10, 15, 20, 40]
    found = build(Length, target_tokens=10).score(batch(["x"] * 6, ids=lengths))
    assert found == pytest.approx([-0.9, -0.5, 0.0, -0.5, -1.0, -3.0])


def test_length_counts_sampled_tokens_and_does_not_read_the_text(build, batch):
    reward = build(Length, target_tokens=2)
    assert reward.score(batch(["a b c d", ""], ids=[2, 2])) == [0.0, 0.0]


@pytest.mark.parametrize("target", [0, -1, 1.5])
def test_a_target_is_a_positive_number_of_tokens(target):
    with pytest.raises(ValidationError):
        Length.Config(target_tokens=target)

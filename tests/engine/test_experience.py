"""Parts of experience that a comparison of whole updates does not show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlframe.engine.experience import Experience
from rlframe.errors import RunError
from rlframe.models.policy import Policy
from tests.engine.test_updater import (
    LENGTHS,
    Assigned,
    actor_critic,
    credited,
    experience_of,
    rollout,
    schedule_of,
)


@pytest.fixture
def experience(language_model: Callable[..., Any]) -> Experience:
    models = actor_critic(language_model, torch.float64, chunk=512, shared=False)
    return experience_of(models, models.policy, budget=10_000)


def test_kl_is_measured_in_both_units_over_all_ranks(experience: Experience) -> None:
    kl = torch.arange(experience.mask.numel(), dtype=torch.float64).reshape(experience.mask.shape)
    found = replace(experience, kl=kl).measured(
        "nats_per_token", lambda x: 3 * x
    )  # three equal ranks
    total = sum(float(kl[row, :length].sum()) for row, length in enumerate(LENGTHS))
    assert found.responses == 3 * len(LENGTHS)
    assert found.nats_per_response == pytest.approx(total / len(LENGTHS), rel=1e-12)
    assert found.kl == found.nats_per_token == pytest.approx(total / sum(LENGTHS), rel=1e-12)
    assert replace(experience, kl=kl).measured(
        "nats_per_response", lambda x: x
    ).kl == pytest.approx(found.nats_per_response, rel=1e-12)


def test_rows_are_trimmed_to_the_longest_of_them(experience: Experience) -> None:
    part = experience.rows([2, 0])
    assert part.mask.tolist() == [[True] * 3, [True, False, False]]
    for name in ("logprobs", "values", "advantages", "returns"):
        assert torch.equal(getattr(part, name)[0], getattr(experience, name)[2, :3])
    assert part.sequences.tokens.shape[1] == int(part.sequences.lengths.max())
    assert part.update == experience.update


def test_a_dummy_is_a_response_that_counts_for_nothing(experience: Experience) -> None:
    part = experience.dummy()
    assert (len(part.sequences), int(part.mask.sum())) == (1, 0)
    assert part.sequences.lengths.tolist() == [2]
    assert not any(
        getattr(part, name).any() for name in ("logprobs", "advantages", "returns", "values")
    )


@pytest.mark.parametrize(("size", "penalty"), [(3e38, False), (2e39, False), (-2e39, True)])
def test_rewards_that_are_infinite_in_the_critics_precision_end_the_run(
    language_model: Callable[..., Any], size: float, penalty: bool
) -> None:
    """Of any rank, since all of them have to end: the others would wait forever."""
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    counted: list[float] = []

    def reduce(x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 0:
            counted.append(float(x))
        return x

    settings = {"credit": Assigned(lambda r, v, m: (r, r)), "reduce": reduce, "penalty": penalty}
    scores = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.float64)
    scores[1, 6] = scores[4, 8] = size
    scores[0, 5] = float("inf")  # padding
    schedule = schedule_of(rollout(), budget=10_000, minibatches=1)
    settings["whiten_advantages"] = False
    if abs(size) < 3.4e38:
        credited(models, models.policy, scores, schedule, **settings)
        assert counted == [0.0]
        return
    with pytest.raises(
        RunError, match=r"update 0.*not finite in torch.float32.*2e\+39.*`weight`"
    ) as caught:
        credited(models, models.policy, scores, schedule, **settings)
    assert counted == [2.0]
    assert ("nats times 0.1" in str(caught.value)) == penalty


def test_the_error_of_another_ranks_rewards_is_raised_here_too(
    language_model: Callable[..., Any],
) -> None:
    models = actor_critic(language_model, torch.float32, chunk=512, shared=False)
    scores = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.float64)
    schedule = schedule_of(rollout(), budget=10_000, minibatches=1)
    with pytest.raises(RunError, match="not finite"):
        credited(models, models.policy, scores, schedule, reduce=lambda x: x + 1)


VALID = [True, False, True, True, True, False, True, True]


def test_what_is_left_out_changes_nothing_for_the_others(
    language_model: Callable[..., Any],
) -> None:
    """Whatever its scores are: no whitening, no moments and no KL penalty sees it."""
    models = actor_critic(language_model, torch.float64, chunk=512, shared=False)
    reference = Policy(language_model(dtype=torch.float64, seed=5), temperature=0.9, chunk=512)
    schedule = schedule_of(rollout(), budget=10_000, minibatches=1)
    scores = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        scores[row, length - 1] = row - 3.5
    changed = scores.clone()
    changed[1, 6] = changed[5, 3] = 1e6
    found, other = (
        credited(models, reference, given, schedule, valid=VALID, whiten_rewards=True)
        for given in (scores, changed)
    )
    assert found.valid.tolist() == VALID
    assert found.sampled.sum(-1).tolist() == list(LENGTHS)
    for name in ("rewards", "advantages", "returns"):
        assert torch.equal(getattr(found, name), getattr(other, name))
        assert not getattr(found, name)[[1, 5]].any()
    real = found.advantages[found.mask]
    assert float(real.mean()) == pytest.approx(0, abs=1e-12)
    assert float(real.std(correction=0)) == pytest.approx(1, rel=1e-6)
    assert float(found.kl[1].abs().sum()) > 0  # the policy has written it all the same
    everyone = credited(models, reference, scores, schedule)
    assert found.measured("nats_per_token", lambda x: x) == everyone.measured(
        "nats_per_token", lambda x: x
    )


@pytest.mark.parametrize(
    ("needed", "expected"), [(1, VALID), (2, [False, False, True, True, False, False, True, True])]
)
def test_a_group_with_too_few_valid_responses_is_left_out_as_a_whole(
    language_model: Callable[..., Any], needed: int, expected: list[bool]
) -> None:
    models = actor_critic(language_model, torch.float64, chunk=512, shared=False)
    schedule = schedule_of(rollout(), budget=10_000, minibatches=1)
    pairs = replace(rollout(), group_ids=tuple(9 - row // 2 for row in range(len(LENGTHS))))
    compares = Assigned(lambda r, v, m: (r, r))
    compares.needs = replace(compares.needs, samples_per_prompt=needed)
    scores = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.float64)
    found = credited(
        models, models.policy, scores, schedule, valid=VALID, credit=compares, played=pairs
    )
    assert found.valid.tolist() == expected

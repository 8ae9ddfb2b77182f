"""What the models say of a rollout, against a plain forward pass of one response at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlframe.engine.evaluation import Models
from rlframe.models.actor_critic import SharedCritic
from rlframe.types import StopReason
from tests.engine.test_updater import LENGTHS, RUNTIME, actor_critic, rollout, schedule_of

ENDED = (StopReason.EOS, StopReason.STOP_STRING)


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("budget", [1, 20, 10_000])
def test_the_value_after_the_last_token_is_asked_for_where_a_response_was_cut(
    language_model: Callable[..., Any], shared: bool, budget: int
) -> None:
    models = actor_critic(language_model, torch.float64, chunk=512, shared=shared)
    reasons = [StopReason.LENGTH if row % 3 else ENDED[row % 2] for row in range(len(LENGTHS))]
    played = replace(rollout(), stop_reasons=tuple(reasons))
    nothing: Any = None
    asked = Models(models, models.policy, nothing, RUNTIME, nothing, "k1", bootstrap=True)
    found = asked.evaluate(played, schedule_of(played, budget=budget, minibatches=1)).last_values
    assert found is not None
    critic: Any = models.critic
    for row, (prompt, ids) in enumerate(zip(played.prompts, played.response_ids(), strict=True)):
        whole = torch.tensor([[*prompt.ids, *ids]])
        with torch.no_grad():
            if isinstance(critic, SharedCritic):
                hidden = models.policy.model.model(input_ids=whole).last_hidden_state
                expected = critic.head(hidden[0, -1]).item()
            else:
                hidden = critic.model.model(input_ids=whole).last_hidden_state
                expected = critic.model.score(hidden[0, -1]).item()
        cut = reasons[row] is StopReason.LENGTH
        assert found[row].item() == pytest.approx(expected if cut else 0.0, rel=1e-9, abs=1e-12)


def test_nobody_asks_for_it_unless_an_estimator_does(language_model: Callable[..., Any]) -> None:
    models = actor_critic(language_model, torch.float64, chunk=512, shared=False)
    nothing: Any = None
    asked = Models(models, models.policy, nothing, RUNTIME, nothing, "k1")
    played = rollout()
    found = asked.evaluate(played, schedule_of(played, budget=20, minibatches=1))
    assert found.last_values is None
    assert found.values is not None

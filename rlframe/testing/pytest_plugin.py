"""Fixtures for plugin authors, on offer in every pytest run; nothing is imported until one is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rlframe.api import Context, RewardBatch
    from rlframe.models.policy import Policy


@pytest.fixture(scope="session")
def rlframe_context() -> Context:
    """What a component is built with: a tiny tokenizer, models and data, on a CPU."""
    from rlframe.testing.world import tiny_context

    return tiny_context()


@pytest.fixture(scope="session")
def rlframe_policy() -> Policy:
    """A one-layer GPT-2 with random weights in float64, as an auxiliary loss sees it."""
    from rlframe.testing.world import tiny_policy

    return tiny_policy()


@pytest.fixture
def rlframe_batch(rlframe_context: Context) -> Callable[..., RewardBatch]:
    """Makes a batch for a reward: `rlframe_batch("one response", "another", answer=["4"])`."""
    from rlframe.testing.world import reward_batch

    def made(*responses: str, **columns: Sequence[Any]) -> RewardBatch:
        return reward_batch(rlframe_context, data=columns, responses=responses)

    return made


@pytest.fixture
def rlframe_check() -> Callable[..., None]:
    """Runs every check of a component: `rlframe_check(LengthReward, {"target_tokens": 20})`."""
    from rlframe.testing.run import check_component
    from rlframe.testing.subject import Subject

    def checked(
        component: type[Any],
        config: Mapping[str, Any] | None = None,
        *,
        skip: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        __tracebackhide__ = True
        results = check_component(Subject(component, config or {}, **settings), skip=skip)
        failures = [result.message for result in results if result.outcome == "failed"]
        if failures:
            pytest.fail("\n\n".join(failures), pytrace=False)

    return checked

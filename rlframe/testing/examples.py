"""Configs and data to try a component with, where the caller gives none.

A component may carry them itself, so that anybody can check it by name:

    class ExactMatch(RewardProvider[ExactMatchConfig]):
        example = {"column": "answer"}                       # keys of its config
        example_data = {"answer": ["4", "Paris"]}            # columns of the data set
        example_responses = ["It is 4.", "London"]           # what the policy answers
        example_chat = True                                  # prompts are chats, not plain text
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlframe.api.component import Component

BUILT_IN: dict[str, Mapping[str, Any]] = {
    "rlframe.builtin.product_reviews:ProductReviews": {"rows": 200},
    "rlframe.builtin.length:Length": {"target_tokens": 20},
    "rlframe.builtin.text_rules:Regex": {"pattern": "easy|great", "ignore_case": True},
    "rlframe.builtin.text_rules:Keyword": {"words": ["great", "battery"]},
    "rlframe.builtin.eos_penalty:EosPenalty": {"penalty": 1.0},
    "rlframe.builtin.preference_difference:PreferenceDifference": {
        "reward": {"type": "length", "target_tokens": 20},
        "against": "others",
    },
    "rlframe.builtin.kl:Fixed": {"coefficient": 0.1},
    "rlframe.builtin.kl:Adaptive": {"target": 6.0},
    "rlframe.builtin.losses:SFT": {"data": "reviews"},
    "rlframe.builtin.losses:PTX": {"data": "reviews", "gamma": 0.5},
}
"""Where a built-in is defined -> keys that it cannot do without."""


def example_config(component: type[Component[Any]]) -> Mapping[str, Any]:
    """The keys that a component is tried with."""
    place = f"{component.__module__}:{component.__qualname__}"
    found: Mapping[str, Any] = getattr(component, "example", BUILT_IN.get(place, {}))
    return found


def example_data(component: type[Component[Any]]) -> Mapping[str, Sequence[Any]]:
    """The columns that a component is tried with, beside the kit's own."""
    found: Mapping[str, Sequence[Any]] = getattr(component, "example_data", {})
    return found


def example_chat(component: type[Component[Any]]) -> bool:
    """Whether a reward is tried with chats, whose prompts have messages."""
    return bool(getattr(component, "example_chat", False))


def example_responses(component: type[Component[Any]]) -> Sequence[str]:
    """The responses that a reward is tried with; empty for the kit's own."""
    found: Sequence[str] = getattr(component, "example_responses", ())
    return found

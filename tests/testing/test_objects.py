"""The kit hands components the same objects as a run: types, number types, what is None."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from rlframe.api import Component
from rlframe.api.events import ScoredResponse
from rlframe.api.functions import reward_from_function
from rlframe.batches import CreditBatch
from rlframe.builtin.advantages import GAE, RLOO
from rlframe.builtin.eos_penalty import EosPenalty
from rlframe.builtin.kl import Adaptive
from rlframe.builtin.length import Length
from rlframe.builtin.losses import SFT
from rlframe.builtin.policy_losses import Clip
from rlframe.builtin.reward_transforms import RunningStandardize
from rlframe.builtin.value_losses import Clipped
from rlframe.registry.relay import Relay
from rlframe.testing import Subject, check_component
from rlframe.testing.check import DoesNotApply
from rlframe.testing.checks import checks_of
from rlframe.testing.moments import observed
from rlframe.testing.world import reward_batch, tiny_context
from rlframe.types import RewardBatch
from tests.testing.expected import GATED, TRANSFORMED, WITH_A_LOSS
from tests.testing.runs import ran, registry_of, world

CALLS: list[tuple[type[Component[Any]], str, dict[str, Any]]] = [
    (Length, "score", {"target_tokens": 20}),
    (EosPenalty, "gate", {"penalty": 1.0, "mode": "replace"}),
    (RunningStandardize, "apply", {}),
    (Adaptive, "update", {"target": 6.0}),
    (SFT, "loss", {"data": "reviews"}),
    (GAE, "estimate", {}),
    (Clip, "loss", {}),
    (Clipped, "loss", {}),
]
"""Component, the method that the engine calls, its config."""

Calls = dict[str, list[tuple[Any, ...]]]
"""What was called -> its arguments, each time."""


@contextmanager
def recorded() -> Iterator[Calls]:
    """The arguments of the components of CALLS, and events under their names."""
    calls: Calls = {}

    def recording(name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(usual)
        def called(self: Any, *given: Any, **named: Any) -> Any:
            calls.setdefault(name, []).append((*given, *named.values()))
            return usual(self, *given, **named)

        return called

    def tell(self: Relay, name: str, event: object) -> None:
        calls.setdefault(name, []).append((event,))

    with pytest.MonkeyPatch.context() as patch:
        for component, method, _ in CALLS:
            usual = getattr(component, method)
            patch.setattr(component, method, recording(component.__name__, usual))
        patch.setattr(Relay, "tell", tell)
        yield calls


def shape_of(value: Any) -> Any:
    """What a value is, without what it says: types and number types, and which fields are None."""
    if isinstance(value, torch.Tensor):
        return "tensor", str(value.dtype), value.ndim
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), {f.name: shape_of(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # with a name and named entries
        return type(value), tuple(map(shape_of, value))
    if isinstance(value, list | tuple):
        return type(value), shape_of(value[0]) if value else "empty"
    if isinstance(value, Mapping):
        return "mapping"
    return "callable" if callable(value) else type(value)


def differences(run: Any, kit: Any, path: str = "") -> list[str]:
    if isinstance(run, tuple) and isinstance(kit, tuple) and isinstance(run[-1], dict):
        if run[0] is not kit[0]:
            return [f"{path}: {run[0]} in a run, {kit[0]} in the kit"]
        found = []
        for name in run[-1]:
            found += differences(run[-1][name], kit[-1][name], f"{path}.{name}")
        return found
    return [] if run == kit else [f"{path}: {run} in a run, {kit} in the kit"]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    """What a run hands out, with a component of each kind."""
    folder = world(tmp_path_factory.mktemp("world"))
    also = {**GATED, **TRANSFORMED, **WITH_A_LOSS}
    with recorded() as calls:
        done = ran(folder, tmp_path_factory.mktemp("runs") / "run", registry_of([]), [], also)
    assert done.error is None
    return calls


@pytest.mark.parametrize(
    ("component", "method", "config"), CALLS, ids=lambda x: str(getattr(x, "__name__", ""))
)
def test_the_kit_gives_a_component_what_a_run_gives(component, method, config, seen):
    name = component.__name__
    with recorded() as calls:
        for check in checks_of(component):
            with suppress(DoesNotApply):
                check.verify(Subject(component, config, chat=True))  # as the run has a template
    skipped = 1 if component is SFT else 0  # what stands for the policy is of another class
    run = [shape_of(value) for value in seen[name][-1][skipped:]]
    tried = [[shape_of(value) for value in given[skipped:]] for given in calls[name]]
    nearest = min((_all(run, kit) for kit in tried), key=len)
    assert not nearest


def _all(run: Sequence[Any], kit: Sequence[Any]) -> list[str]:
    pairs = zip(run, kit, strict=True)
    return [
        found
        for number, pair in enumerate(pairs)
        for found in differences(*pair, f"argument {number}")
    ]


def test_a_batch_of_the_kit_has_complete_groups_and_all_that_texts_can_have():
    batch = reward_batch(tiny_context())
    assert {batch.group_ids.count(group) for group in batch.group_ids} == {2}
    texts = batch.response_texts
    assert "" in texts
    assert any(text.startswith(" ") and text.endswith(" ") for text in texts)
    assert any(text.endswith("\n") for text in texts)
    assert len(set(batch.stop_reasons)) == 3
    assert isinstance(batch.rows([0, 1]).response_texts, tuple)


def test_so_does_a_run_of_these_tests(seen):
    batches: list[RewardBatch] = [batch for (batch,) in seen["Length"]]
    assert {batch.group_ids.count(group) for batch in batches for group in batch.group_ids} == {2}
    texts = [text for batch in batches for text in batch.response_texts]
    assert "" in texts
    assert any(text.startswith(" ") for text in texts)
    assert any(text.endswith((" ", "\n")) for text in texts)


def test_an_estimator_without_a_critic_gets_neither_values_nor_what_it_did_not_ask_for(monkeypatch):
    batches: list[CreditBatch] = []
    usual = RLOO.estimate

    def recording(self: Any, batch: CreditBatch) -> Any:
        batches.append(batch)
        return usual(self, batch)

    monkeypatch.setattr(RLOO, "estimate", recording)
    check_component(Subject(RLOO))
    none = {(batch.values, batch.last_values, batch.score_moments) for batch in batches}
    assert none == {(None, None, None)}
    assert {batch.rewards.dtype for batch in batches} == {torch.float32, torch.float64}
    assert {batch.scores.dtype for batch in batches} == {torch.float64}


@pytest.mark.parametrize(
    "name", ["heldout_evaluated", "rollout_scored", "metrics", "checkpoint_saved"]
)
def test_events_of_the_kit_are_those_of_a_run(name, seen, tmp_path: Path):
    every = observed(tiny_context(chat=True), tmp_path, "reward")
    found = [event for other, event in every if other == name]
    run = seen[name][-1][0]
    assert {type(event) for event in found} == {type(run)}
    for response in getattr(run, "responses", ())[:1]:
        kit = [one for event in found for one in event.responses]
        assert min((_of_response(response, one) for one in kit), key=len) == []
        run, found = replace(run, responses=()), [replace(one, responses=()) for one in found]
    assert min((differences(shape_of(run), shape_of(event)) for event in found), key=len) == []


def _of_response(run: ScoredResponse, kit: ScoredResponse) -> list[str]:
    """Differences in what a plugin is promised; the engine's own class may have more."""
    return [
        found
        for field in fields(ScoredResponse)
        for found in differences(*(shape_of(getattr(one, field.name)) for one in (run, kit)))
    ]


def length_of_the_answer(completions):
    """Reads a message, which there is in chats alone."""
    return [float(len(completion[0]["content"])) for completion in completions]


def test_a_reward_is_given_chats_if_it_is_written_for_them():
    component = reward_from_function(length_of_the_answer)
    results = check_component(Subject(component, chat=True))
    assert {result.outcome for result in results} == {"ok"}
    assert "failed" in {result.outcome for result in check_component(Subject(component))}

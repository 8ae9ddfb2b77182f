"""What the engine makes of a sampler: which weights it has, what is refused, what memory does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlframe.api import PluginConfig, Sampler, SamplerCapabilities, Samples, StopReason
from rlframe.engine.sampling import Request, ResponseSampler
from rlframe.errors import RunError
from rlframe.models.policy import Policy
from rlframe.models.vocabulary import Vocabulary
from rlframe.types import Prompt
from tests.sampling import CPU, response_sampler

PROMPTS = [(1, 5, 9), (1, 30)]
REQUESTS = [Request(Prompt("", ids), n, n) for n, ids in enumerate(PROMPTS)]
EOS = 2


class Scripted(Sampler[PluginConfig]):
    """Answers what a test says."""

    able = SamplerCapabilities(
        filters=frozenset({"top_k"}), logprobs="filtered", shares_weights=True
    )

    def __init__(self, **changes: Any) -> None:
        super().__init__(PluginConfig(), None)  # type: ignore[arg-type]
        self.changes = changes
        self.pushed: list[int] = []
        self.seeds: list[tuple[int, list[int]]] = []
        self.closed = 0

    @classmethod
    def capabilities(cls, config: PluginConfig) -> SamplerCapabilities:
        return cls.able

    def push(self, version: int, probe: Sequence[Sequence[int]]) -> Any:
        self.pushed.append(version)
        return super().push(version, probe)

    def sample(self, requests: Any, params: Any, seed: int) -> Any:
        self.seeds.append((seed, [request.seed for request in requests]))
        sound = Samples(
            ids=[[7, 8, EOS], [9] * params.max_new_tokens],
            stop_reasons=[StopReason.EOS, StopReason.LENGTH],
            weight_version=self.version,
            logprobs=[[-1.0, -2.0, -3.0], [-0.5] * params.max_new_tokens],
            retried=1,
        )
        return (
            self.changes["answer"]
            if self.changes.keys() == {"answer"}
            else replace(sound, **self.changes)
        )

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def connected(language_model: Any, tokenizer: Any) -> Callable[..., ResponseSampler]:
    policy = Policy(
        language_model(), temperature=1.0, chunk=8, vocabulary=Vocabulary(299, missing=(12,))
    )

    def make(sampler: Sampler[Any], **params: Any) -> ResponseSampler:
        how = {"eos_ids": {EOS}, "max_new_tokens": 4, "logprobs": True, **params}
        return response_sampler(policy, tokenizer, sampler=sampler, **how)

    return make


def ask(sampler: ResponseSampler, *, version: int = 0, update: int = 0) -> Any:
    return sampler.sample(REQUESTS, update=update, purpose="rollout", version=version)


def test_an_answer_becomes_a_rollout(connected: Any) -> None:
    rollout = ask(connected(Scripted()), update=3)
    assert rollout.response_ids() == [[7, 8, EOS], [9, 9, 9, 9]]
    assert rollout.logprobs == ((-1, -2, -3), (-0.5,) * 4)
    assert rollout.update == 3
    assert rollout.retried == 1
    assert rollout.prompts == tuple(request.prompt for request in REQUESTS)


def test_weights_are_pushed_when_they_have_changed_and_not_again(connected: Any) -> None:
    sampler = Scripted()
    asked = connected(sampler)
    for version in (0, 0, 1, 1, 2):
        ask(asked, version=version)
    assert sampler.pushed == [0, 1, 2]


def test_seeds_belong_to_update_and_response_and_differ(connected: Any) -> None:
    sampler = Scripted()
    asked = connected(sampler)
    ask(asked), ask(asked), ask(asked, update=1)
    first, again, later = sampler.seeds
    assert first == again
    assert len({*first[1], *later[1], first[0], later[0]}) == 6
    assert all(0 <= seed < 2**63 for seed in first[1])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no Samples": ({"answer": [[1], [2]]}, "it must return Samples"),
    "a tuple": ({"answer": None}, "returned None"),
    "one response too few": ({"ids": [[7, EOS]]}, "returned 1 entries as `ids` for 2 requests"),
    "other weights": ({"weight_version": 7}, "of weights of version 7; version 0 was pushed"),
    "nothing written": ({"ids": [[], [9] * 4]}, "response 0 with 0 tokens"),
    "too much written": ({"ids": [[7, 8, EOS], [9] * 5]}, "with 5 tokens; it must have 1 to 4"),
    "tokens behind EOS": ({"ids": [[EOS, 8, EOS], [9] * 4]}, "goes on after token 2"),
    "an id beyond the head": (
        {"ids": [[300, EOS], [9] * 4]},
        "with the id 300, which has no token",
    ),
    "an id without a token": ({"ids": [[12, EOS], [9] * 4]}, "with the id 12, which has no token"),
    "a tensor": ({"ids": [torch.tensor([7, EOS]), [9] * 4]}, "it must be a list of ints"),
    "the wrong reason": ({"stop_reasons": [StopReason.LENGTH] * 2}, "it must be 'eos'"),
    "EOS without EOS": ({"stop_reasons": [StopReason.EOS] * 2}, "it must be 'length'"),
    "text as a reason": ({"stop_reasons": ["eos", "length"]}, "it must be a StopReason"),
    "no log-probabilities": ({"logprobs": None}, "returned None as `logprobs`"),
    "one of them missing": ({"logprobs": [[-1.0], [-1.0] * 4]}, "1 log-probabilities for 3 tokens"),
    "a probability": ({"logprobs": [[0.5] * 3, [-1.0] * 4]}, "log-probability of 0.5"),
    "minus infinity": ({"logprobs": [[-1.0, -2.0, -torch.inf], [-1.0] * 4]}, "of -inf"),
    "a negative count": ({"retried": -1}, "retried=-1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_answer_that_breaks_the_contract_ends_the_run(connected: Any, wrong: str) -> None:
    changes, message = WRONG[wrong]
    with pytest.raises(RunError, match=message) as caught:
        ask(connected(Scripted(**changes)))
    assert "sampler 'sampler' of type of a test" in str(caught.value)


def test_a_sampler_that_raises_is_named(connected: Any) -> None:
    class Down(Scripted):
        def sample(self, requests: Any, params: Any, seed: int) -> Any:
            raise ConnectionError("the server is gone")

    with pytest.raises(RunError, match=r"sampler 'sampler' .*ConnectionError.*the server is gone"):
        ask(connected(Down()))


class Hungry(Scripted):
    """Has memory for one response."""

    able = SamplerCapabilities(smaller_batches=True, logprobs="filtered", shares_weights=True)

    def sample(self, requests: Any, params: Any, seed: int) -> Any:
        if params.batch != 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return super().sample(requests, params, seed)


def test_fewer_responses_at_a_time_where_memory_runs_out(connected: Any) -> None:
    asked = connected(Hungry())
    with pytest.warns(RuntimeWarning, match="rollout.generation_batch"):
        assert len(ask(asked)) == 2
    assert asked.params.batch == 1
    assert len(ask(asked)) == 2  # and from then on without a warning


def test_a_sampler_that_cannot_take_fewer_ends_the_run(connected: Any) -> None:
    class Rigid(Hungry):
        able = SamplerCapabilities(logprobs="filtered", shares_weights=True)

    with pytest.raises(RunError, match="cannot sample fewer at a time"):
        ask(connected(Rigid()))


class Copying(Scripted):
    """Has weights of its own, as an inference server has."""

    able = SamplerCapabilities(logprobs="filtered")
    spoil: Callable[[Any], None] = staticmethod(lambda model: None)

    def push(self, version: int, probe: Sequence[Sequence[int]]) -> Any:
        super().push(version, probe)
        theirs: Any = self.policy
        own = Policy(copy.deepcopy(theirs.model), temperature=1, chunk=8)
        own.vocabulary = theirs.vocabulary
        with torch.no_grad():
            type(self).spoil(own.model)
            return [
                own.logprobs(torch.tensor([list(row)], device=CPU))[0].tolist() for row in probe
            ]


def spoilt(model: Any) -> None:
    """A projection that was copied under another name."""
    model.model.layers[0].mlp.up_proj.weight.mul_(-3)


@pytest.mark.parametrize("spoil", [None, spoilt], ids=["whole", "a layer missing"])
def test_weights_that_did_not_arrive_are_noticed(connected: Any, spoil: Any) -> None:
    kind = type("Kind", (Copying,), {"spoil": staticmethod(spoil or (lambda model: None))})
    asked = connected(kind(), probe=[(1, 5, 9, 17), (1, 30)])
    if spoil is None:
        assert len(ask(asked)) == 2
        return
    with pytest.raises(RunError, match="has other weights than the policy after `push`"):
        ask(asked)


def test_weights_of_its_own_have_to_be_proven(connected: Any) -> None:
    class Silent(Scripted):
        able = SamplerCapabilities(logprobs="filtered")

    with pytest.raises(RunError, match=r"returned None from `push`.*declares `shares_weights`"):
        ask(connected(Silent(), probe=[(1, 5, 9, 17)]))


def test_a_proof_of_another_shape_is_none(connected: Any) -> None:
    class Short(Scripted):
        def push(self, version: int, probe: Any) -> Any:
            super().push(version, probe)
            return [[-1.0]]

    with pytest.raises(RunError, match="one log-probability per token of the probe"):
        ask(connected(Short(), probe=[(1, 5, 9, 17)]))


def test_closing_reaches_the_sampler(connected: Any) -> None:
    sampler = Scripted()
    connected(sampler).close()
    assert sampler.closed == 1

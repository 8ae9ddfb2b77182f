"""The loop, with parts that note when they are called and with what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from rlframe.api.events import RolloutScored
from rlframe.engine.metrics import Clock
from rlframe.engine.ppo import Run, RunState, train
from rlframe.types import KLState


class Parts:
    """Fake parts. What each returns is a word that says what it was made of."""

    def __init__(
        self, updates: int, *, evaluated: tuple[int, ...] = (), stops: int | None = None
    ) -> None:
        self.calls: list[str] = []
        self.inside = False
        self.saved: list[tuple[int, Any, float | None]] = []
        self.logged: list[Any] = []
        self.heard: list[tuple[str, Any]] = []
        self.evaluated, self.stops = evaluated, stops
        self.ended: list[int] = []
        parts: Any = {
            "generator": SimpleNamespace(generate=self.generate),
            "scorer": SimpleNamespace(score=self.score),
            "rebalancer": SimpleNamespace(rebalance=self.rebalance),
            "scheduler": SimpleNamespace(schedule=self.asked("schedule")),
            "models": SimpleNamespace(gathered=self.gathered, evaluate=self.asked("evaluation")),
            "experience": SimpleNamespace(build=self.build),
            "updater": SimpleNamespace(budget=77, update_policy=self.update_policy),
            "control": SimpleNamespace(
                measure=lambda experience: f"kl({experience.name})", update=self.adapt
            ),
            "heldout": SimpleNamespace(after=self.heldout),
            "metrics": SimpleNamespace(log=self.log),
            "checkpoints": SimpleNamespace(after=self.save),
            "observers": SimpleNamespace(tell=self.tell, stop=None),
            "gather": lambda mine: [mine, self.elsewhere],
        }
        self.elsewhere: str | None = None
        self.run = Run(updates=updates, clock=Clock(), **parts)

    def save(self, done: int, state: Any, *, score: float | None, ends: bool) -> None:
        self.saved.append((done, state, score))
        if ends:
            self.ended.append(done)

    def tell(self, name: str, event: Any) -> None:
        self.heard.append((name, event))

    def log(self, update: Any, heldout: Any) -> None:
        self.logged.append((update, heldout))
        if update.number == self.stops:
            self.elsewhere = "enough, says an observer of another rank"

    @contextmanager
    def gathered(self) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False

    def generate(self, number: int) -> Any:
        assert self.inside
        return SimpleNamespace(name=f"rollout{number}", sequences=f"sequences{number}")

    def score(self, rollout: Any) -> Any:
        self.asked("scores")(rollout)
        return SimpleNamespace(
            name="scores", responses=lambda rollout: (f"responses of {rollout.name}",)
        )

    def asked(self, what: str) -> Any:
        def call(*given: Any, **options: Any) -> str:
            assert self.inside, f"{what} without whole weights"
            names = [getattr(g, "name", g) for g in given] + [
                f"{k}={v}" for k, v in options.items()
            ]
            self.calls.append(f"{what}({', '.join(map(str, names))})")
            return what

        return call

    def rebalance(self, rollout: Any, scores: Any) -> Any:
        assert scores.name == "scores"
        moved = SimpleNamespace(
            name=f"moved {rollout.name}", sequences=f"moved {rollout.sequences}"
        )
        return moved, SimpleNamespace(name="moved scores")

    def build(self, rollout: Any, scores: Any, *rest: Any, kl_coefficient: float) -> Any:
        self.calls.append(f"build({rollout.name}, {scores.name}, {rest}, {kl_coefficient})")
        return SimpleNamespace(name=rollout.name)

    def update_policy(self, experience: Any, *, kl_coefficient: float) -> Any:
        assert not self.inside, "weights are still gathered while others are trained"
        self.calls.append(f"update({experience.name}, {kl_coefficient})")
        return "meter", {"lr": 0.1}

    def adapt(self, state: KLState, measured: Any) -> KLState:
        return KLState(state.coefficient * 2, {"seen": state.memory.get("seen", 0) + 1})

    def heldout(self, done: int, *, of: int) -> Any:
        self.calls.append(f"heldout({done} of {of})")
        return SimpleNamespace(mean=done / 10) if done in self.evaluated else None


def test_each_quantity_is_made_of_the_one_before() -> None:
    parts = Parts(1)
    train(parts.run, RunState(0, KLState(0.5)))
    assert parts.calls == [
        "scores(rollout0)",
        "schedule(moved rollout0, budget=77)",
        "evaluation(moved rollout0, schedule)",
        "build(moved rollout0, moved scores, ('evaluation', 'schedule'), 0.5)",
        "update(moved rollout0, 0.5)",
        "heldout(1 of 1)",
    ]


def test_the_coefficient_of_an_update_is_the_one_that_the_update_before_chose() -> None:
    parts = Parts(3)
    last = train(parts.run, RunState(0, KLState(0.5)))
    for kind in ("build", "update"):
        used = [float(c[:-1].split(", ")[-1]) for c in parts.calls if c.startswith(kind)]
        assert used == [0.5, 1.0, 2.0]
    assert last == RunState(3, KLState(4.0, {"seen": 3}))
    logged = [(update.kl.coefficient, update.next_kl.coefficient) for update, _ in parts.logged]
    assert logged == [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0)]
    assert [update.measured for update, _ in parts.logged][2] == "kl(moved rollout2)"


def test_what_is_saved_is_the_state_after_the_update_with_the_score_of_its_evaluation() -> None:
    parts = Parts(2, evaluated=(2,))
    train(parts.run, RunState(0, KLState(0.5)))
    assert parts.saved == [
        (1, {"updates": 1, "kl": {"coefficient": 1.0, "memory": {"seen": 1}}}, None),
        (2, {"updates": 2, "kl": {"coefficient": 2.0, "memory": {"seen": 2}}}, 0.2),
    ]
    assert [seen and seen.mean for _, seen in parts.logged] == [None, 0.2]


@pytest.mark.parametrize(("done", "expected"), [(2, [2, 3]), (4, [])])
def test_a_resumed_run_makes_the_updates_that_are_left(done: int, expected: list[int]) -> None:
    parts = Parts(4)
    last = train(parts.run, RunState(done, KLState(0.5)))
    assert [update.number for update, _ in parts.logged] == expected
    assert last.updates == 4


def test_observers_are_given_the_responses_of_each_update_with_their_scores() -> None:
    parts = Parts(2)
    train(parts.run, RunState(0, KLState(0.5)))
    assert parts.heard == [
        ("rollout_scored", RolloutScored(0, ("responses of rollout0",))),  # type: ignore[arg-type]
        ("rollout_scored", RolloutScored(1, ("responses of rollout1",))),  # type: ignore[arg-type]
    ]


def test_every_phase_is_timed() -> None:
    parts = Parts(1)
    train(parts.run, RunState(0, KLState(0.5)))
    assert parts.run.clock.seconds.keys() == {
        "rollout",
        "reward",
        "experience",
        "learn",
        "checkpoint",
    }


def test_an_observer_of_any_rank_ends_the_training_after_its_update() -> None:
    parts = Parts(5, stops=1)
    assert train(parts.run, RunState(0, KLState(0.5))).updates == 2
    assert [done for done, *_ in parts.saved] == [1, 2]
    assert parts.ended == [2]
    assert parts.run.stop_reason() == "enough, says an observer of another rank"

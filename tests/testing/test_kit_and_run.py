"""What the kit refuses a run refuses, for the same reason, unless it is declared why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from rlframe.api import Component, ContractError
from rlframe.api.algorithm import AdvantageEstimator
from rlframe.compose import ppo, profiles
from rlframe.registry.discovery import KINDS, Registry
from rlframe.registry.offers import CORE
from rlframe.testing import CheckFailed, Subject
from rlframe.testing.checks import checks_of
from tests.testing.defects import PLANTED, RIGHT, Controller, Sleeps
from tests.testing.expected import Planted, Unseen, Warned
from tests.testing.generator_defects import TakesItsTime
from tests.testing.runs import PLACES, Ran, Tried, ran, registry_of, world

ALL = [(kind, planted) for kind, every in PLANTED.items() for planted in every]
SEEN = [(kind, planted) for kind, planted in ALL if not isinstance(planted.run, Unseen)]
MOST = 9
"""Components in one run."""
ALONE = {kind for kind, place in PLACES.items() if "{}" not in place} - {"reward_transforms"}
"""Kinds of which a recipe has one component."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny world; its one model is probed once, and not in every run."""
    probes = [(profiles, "profile_of"), (profiles, "profile_by"), (ppo, "check_policy")]
    with pytest.MonkeyPatch.context() as patch:
        for module, name in probes:
            patch.setattr(module, name, _remembered(getattr(module, name)))
        yield world(tmp_path_factory.mktemp("world"))


def _remembered(probe: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[str, Any] = {}

    def probed(model: Any, **how: Any) -> Any:
        key = f"{how} {getattr(model, 'dtype', None)}"
        if key not in known:
            known[key] = probe(model, **how)
        return known[key]

    return probed


@pytest.fixture(scope="module")
def registry() -> Registry:
    right = [(kind_of(component), component) for component in RIGHT]
    planted = [(kind, planted.component) for kind, planted in ALL]
    return registry_of([*planted, *right, *in_the_box(), *plugins()])


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """One of the defects sets it for the whole process."""
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def tried(folder: Path, registry: Registry, tmp_path: Path) -> Callable[..., Ran]:
    def run(*components: Tried, **also: object) -> Ran:
        return ran(folder, tmp_path / "run", registry, components, also)

    return run


def kind_of(component: type[Component]) -> str:
    return next(kind for kind, (base, _) in KINDS.items() if issubclass(component, base))


def refused_by_the_kit(planted: Planted) -> CheckFailed:
    component = planted.component
    more: dict[str, float] = {}
    if issubclass(component, Controller):
        more["target"] = Controller.target
    if component in (Sleeps, TakesItsTime):
        more["seconds_per_thousand"] = 1e-9
    check = next(check for check in checks_of(component) if check.name == planted.check)
    with pytest.raises(CheckFailed) as caught:
        check.verify(Subject(component, **more))
    return caught.value


def mistake(error: BaseException) -> tuple[str, ...]:
    """Where a contract was found broken, or what a component raised, behind whatever was made of it."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    broken = next((e for e in reversed(chain) if isinstance(e, ContractError)), None)
    if broken is None:
        return type(chain[-1]).__name__, str(chain[-1])
    trace = broken.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    return trace.tb_frame.f_code.co_filename, str(trace.tb_lineno)


def names(kind: str, component: type[Component], error: Exception) -> bool:
    """Whether an error has the component's name, or its place in the recipe."""
    place = ".".join(PLACES[kind]).format(component.__name__)
    return component.__name__ in str(error) or place in str(error)


@pytest.mark.parametrize(("kind", "planted"), SEEN, ids=[p.component.__name__ for _, p in SEEN])
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_the_kit_and_a_run_refuse_the_same_mistake(kind, planted, tried):
    kit, run = refused_by_the_kit(planted), tried((kind, planted.component), **planted.run.also)
    if isinstance(planted.run, Warned):
        found = [text for text in run.warned if "is ignored" in text]
        assert found
        assert planted.component.__name__ in found[0]
        return
    assert run.error is not None, f"the run finished, and the kit says {kit}"
    assert names(kind, planted.component, run.error), run.error
    if planted.run.says:
        assert planted.run.says in str(kit)
        assert planted.run.says in str(run.error)
    else:
        assert mistake(kit) == mistake(run.error), f"{kit}\n\n{run.error}"


def together(tried: Iterable[Tried]) -> list[list[Tried]]:
    """As many at a time as a recipe can have."""
    rounds: list[list[Tried]] = []
    for kind, component in sorted(tried, key=lambda one: one[0] not in ALONE):
        for found in rounds:
            taken = kind in ALONE and any(kind == other for other, _ in found)
            known = component.__name__ in {c.__name__ for _, c in found}
            if len(found) < MOST and not (taken or known or _apart(found, kind, component)):
                found.append((kind, component))
                break
        else:
            rounds.append([(kind, component)])
    return rounds


def _apart(found: list[Tried], kind: str, component: type[Component]) -> bool:
    """Whether one of them is for a critic and another does without."""
    both = [*found, (kind, component)]
    free = any(
        issubclass(c, AdvantageEstimator) and not c.needs(c.Config()).critic for _, c in both
    )
    return free and any(k == "value_losses" for k, _ in both)


def _rounds(tried: Iterable[Tried]) -> Any:
    found = together(tried)
    names = ["-".join(c.__name__ for _, c in one) for one in found]
    return pytest.mark.parametrize("components", found, ids=names)


@_rounds((kind, p.component) for kind, p in ALL if isinstance(p.run, Unseen))
def test_a_run_finishes_with_what_it_cannot_see(components, tried):
    assert tried(*components).error is None


def test_every_reason_is_one_that_something_has():
    assert {p.run for _, p in ALL if isinstance(p.run, Unseen)} == set(Unseen)


def in_the_box() -> list[Tried]:
    """The built-ins, but for a reward that needs a stage and a generator that has no prompts."""
    registry, others = Registry(), ("reward_model", "product_reviews")
    return [
        (kind, registry.load(kind, offer.name))
        for kind in KINDS
        for offer in registry.offers(kind)
        if offer.distribution == CORE and offer.name not in others
    ]


def plugins() -> list[Tried]:
    """Those in plugins/ that need no library of their own."""
    found: list[Tried] = []
    for name, component in (("pid", "PID"), ("reward_cache", "RewardCache")):
        folder = Path(__file__).parents[2] / "plugins" / f"rlframe-{name.replace('_', '-')}" / "src"
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            loaded = getattr(import_module(f"rlframe_{name}"), component)
        found.append((kind_of(loaded), loaded))
    return found


@_rounds([*in_the_box(), *plugins(), *((kind_of(component), component) for component in RIGHT)])
def test_a_run_takes_what_the_kit_accepts(components, tried):
    assert tried(*components).error is None

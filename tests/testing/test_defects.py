"""The kit notices: every check fails for a component that breaks its promise, and for no right one."""

import random
from functools import cache

import pytest
import torch

from rlframe.testing import Subject, check_component
from rlframe.testing.checks import CHECKS, checks_of
from rlframe.testing.checks.common import COMMON
from tests.testing import defects, hook_defects, transform_defects
from tests.testing.defects import PLANTED, RIGHT, Controller, Sleeps
from tests.testing.generator_defects import TakesItsTime

ALL = [(component, check) for planted in PLANTED.values() for component, check, _ in planted]


@pytest.fixture(autouse=True)
def default_type():
    """One of the defects sets it for the whole process."""
    yield
    torch.set_default_dtype(torch.float32)


@cache
def results(component):
    settings = {}
    if issubclass(component, Controller):
        settings["target"] = Controller.target
    if component in (Sleeps, TakesItsTime):
        settings["seconds_per_thousand"] = 1e-9
    return {result.check: result for result in check_component(Subject(component, **settings))}


@pytest.mark.parametrize(
    ("component", "check"), ALL, ids=[f"{c.__name__}-{check}" for c, check in ALL]
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_a_planted_defect_is_caught_and_told_in_words(component, check):
    result = results(component)[check]
    assert result.outcome == "failed"
    first, *expected = result.message.splitlines()
    assert first == f"{component.__name__} breaks {check!r}"
    assert [line.split(":")[0].strip() for line in expected] == [
        "expected",
        "found",
        "likely",
        "do",
    ]
    assert all(line.partition(":")[2].strip() for line in expected)


@pytest.mark.parametrize("kind", ["data_generators", "hooks"])
def test_a_planted_defect_is_caught_by_no_other_check(kind):
    for component, check, _ in PLANTED[kind]:
        failed = [name for name, r in results(component).items() if r.outcome == "failed"]
        assert failed == [check], component


@pytest.mark.parametrize("kind", CHECKS)
def test_there_is_no_check_that_nothing_fails(kind):
    caught = {check for _, check, _ in PLANTED[kind]}
    names = {check.name for check in CHECKS[kind]}
    common = {check.name for check in COMMON}  # planted once, in a reward
    assert caught | (common & names) == names


@pytest.mark.parametrize("component", RIGHT, ids=lambda c: c.__name__)
def test_what_the_defects_were_made_of_is_right(component):
    failed = [
        result.message for result in results(component).values() if result.outcome == "failed"
    ]
    assert not failed


def test_a_component_that_can_not_be_built_fails_once_and_not_at_every_check():
    from tests.testing.defects import NeedsMore

    outcomes = [result.outcome for result in results(NeedsMore).values()]
    assert outcomes[0] == "failed"
    assert set(outcomes[1:]) == {"skipped"}


def test_the_error_of_a_component_is_told_with_its_place():
    found = results(defects.AsciiOnly)["unicode_and_very_long_text"].message
    assert "UnicodeEncodeError" in found
    assert f"{defects.__file__}:" in found


def test_checking_leaves_the_global_random_states_alone():
    from tests.testing.defects import Reseeds, Tosses

    torch.manual_seed(7)
    random.seed(7)
    subject = Subject(Tosses)
    check = {c.name: c for c in checks_of(Tosses)}["global_rng_untouched"]
    before = random.getstate(), torch.get_rng_state()
    for component in (subject, Subject(Reseeds)):
        with pytest.raises(AssertionError):
            check.verify(component)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


HINTS = [
    (defects.Later, "one_value_a_response", "`async def`", "asyncio.run"),
    (defects.GatesLater, "gate_from_0_to_1", "`async def`", "asyncio.run"),
    (defects.WaitsToUpdate, "direction", "`async def`", "write `def`"),
    (defects.LossLater, "a_sum_and_its_count", "`async def`", "write `def`"),
    (defects.PolicyLossLater, "shapes", "`async def`", "write `def`"),
    (defects.NeverMoves, "direction", "returns the state that it was given", "replace(state"),
    (defects.Misnamed, "one_value_a_response", "the method is missing", "spelt as here"),
    (defects.HasNoUpdate, "direction", "the method is missing", "spelt as here"),
    (defects.ForgetsToReturn, "one_value_a_response", "a `return` is missing", "`return ...`"),
    (hook_defects.ForgetsToReturn, "answers_keep_the_contract", "a `return` is missing", "return"),
    (defects.CleansInPlace, "no_mutation", "changed in place", "a copy"),
    (defects.WritesColumns, "no_mutation", "changed in place", "a copy"),
    (defects.CountsInTheState, "state_round_trip", "changed in place", "dict(state)"),
    (defects.InPlace, "inputs_untouched", "changed in place", "masked_fill"),
    (defects.ClampsInPlace, "inputs_untouched", "changed in place", "clamp"),
    (defects.MasksInPlace, "inputs_untouched", "changed in place", "a copy"),
    (transform_defects.ChangesItsState, "pure", "changed in place", "dict(state)"),
    (hook_defects.LowersTexts, "answers_keep_the_contract", "changed in place", "a copy"),
    (defects.Tosses, "global_rng_untouched", "`random`, `numpy.random`", "batch.generator"),
    (defects.ReseedsEstimator, "global_rng_untouched", "`manual_seed`", "a generator"),
    (defects.SetsTheDefaultType, "surroundings_untouched", "set_default_dtype", "to the tensor"),
    (defects.SwitchesGradientsOn, "no_gradient", "set_grad_enabled", "torch.no_grad"),
]
"""Component, the check that fails, what it says that is likely, and what to do."""


@pytest.mark.parametrize(
    ("component", "check", "likely", "do"), HINTS, ids=[one[0].__name__ for one in HINTS]
)
def test_a_hint_names_the_mistake(component, check, likely, do):
    lines = results(component)[check].message.splitlines()
    assert likely in lines[3]
    assert do in lines[4]


def test_a_missing_method_is_named():
    message = results(defects.Misnamed)["one_value_a_response"].message
    assert "NotImplementedError: Misnamed has no `score`" in message

"""Test classes to inherit: one test a check, named after it.

class TestLength(RewardProviderSuite):
    component, config = LengthReward, {"target_tokens": 20}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import pytest

from rlframe.api.component import Component, Context
from rlframe.registry.discovery import KINDS
from rlframe.testing.check import Check, DoesNotApply
from rlframe.testing.checks import CHECKS
from rlframe.testing.run import refuse_bad_skips
from rlframe.testing.subject import Subject


def _add_tests(suite: type[Suite], checks: Iterable[Check]) -> None:
    for check in checks:
        setattr(suite, f"test_{check.name}", _test_of(check))


def _test_of(check: Check) -> Callable[[Suite], None]:
    def test(self: Suite) -> None:
        __tracebackhide__ = True
        if check.name in self.skip:
            pytest.skip(self.skip[check.name])
        try:
            check.verify(self.subject())
        except DoesNotApply as reason:
            pytest.skip(str(reason))

    test.__name__ = f"test_{check.name}"
    test.__doc__ = f"Expected: {check.expected}."
    return test


def _refuse_mistakes(suite: type[Suite]) -> None:
    """Say while the file is read what would make its tests say nothing."""
    base, noun = KINDS[suite.kind]
    component = getattr(suite, "component", None)
    if component is not None and not (isinstance(component, type) and issubclass(component, base)):
        raise TypeError(
            f"{suite.__name__}: {component!r} is no {noun}; `component` must be a subclass of "
            f"{base.__name__}, or the test class inherit from another suite"
        )
    checks = CHECKS[suite.kind]
    try:
        refuse_bad_skips(suite.skip, checks)
    except ValueError as error:
        raise ValueError(f"{suite.__name__}.{error}") from None
    for check in checks:
        if f"test_{check.name}" in suite.__dict__:
            raise TypeError(
                f"{suite.__name__} replaces test_{check.name}, which is the kit's: to leave the check "
                f'out write `skip = {{"{check.name}": "why"}}`; call your own test something else'
            )


class Suite:
    """What the suites of all kinds share.

    `component` and `config` are the whole of a test class; the rest is for components that need more.
    """

    kind: ClassVar[str]

    component: ClassVar[type[Component[Any]]]
    config: ClassVar[Mapping[str, Any]] = {}
    """Keys of a recipe."""
    data: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Column of the data set -> values; `prompt` is what the policy is asked."""
    skip: ClassVar[Mapping[str, str]] = {}
    """Check -> why this component does not have to keep it."""
    _settings: ClassVar[tuple[str, ...]] = ("config", "data")

    @classmethod
    def context(cls) -> Context | None:
        """What the component is built with; a tiny one on a CPU if None."""
        return None

    @classmethod
    @cache
    def subject(cls) -> Subject[Any]:
        """The component under test, built once for all tests of the class."""
        settings = {name: getattr(cls, name) for name in cls._settings}
        return Subject(cls.component, given_context=cls.context(), **settings)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            _add_tests(cls, CHECKS[cls.kind])
            return
        _refuse_mistakes(cls)


class DataGeneratorSuite(Suite):
    """Tests that a data generator keeps its contract."""

    kind = "data_generators"
    _settings = ("config", "seconds_per_thousand")

    seconds_per_thousand: ClassVar[float] = 10.0
    """Most seconds that a thousand rows may take."""


class RewardProviderSuite(Suite):
    """Tests that a reward keeps its contract."""

    kind = "reward_providers"
    _settings = ("config", "data", "responses", "seconds_per_thousand", "chat")

    responses: ClassVar[Sequence[str]] = ()
    """What is judged, dealt to the prompts in turn; reviews of all sorts if empty."""
    chat: ClassVar[bool | None] = None
    """Whether prompts are chats and have messages; as the component says if None, else plain text."""
    seconds_per_thousand: ClassVar[float] = 10.0
    """Most seconds that a thousand responses may take."""


class KLControllerSuite(Suite):
    """Tests that a KL controller keeps its contract."""

    kind = "kl_controllers"
    _settings = ("config", "data", "target")

    target: ClassVar[float | None] = None
    """KL at which it rests, in its unit; the config's `target` if None."""


class AuxiliaryLossSuite(Suite):
    """Tests that an auxiliary loss keeps its contract."""

    kind = "auxiliary_losses"


class RewardTransformSuite(Suite):
    """Tests that a reward transform keeps its contract."""

    kind = "reward_transforms"


class AdvantageEstimatorSuite(Suite):
    """Tests that an advantage estimator keeps its contract."""

    kind = "advantage_estimators"


class PolicyLossSuite(Suite):
    """Tests that a policy loss keeps its contract."""

    kind = "policy_losses"


class ValueLossSuite(Suite):
    """Tests that a value loss keeps its contract."""

    kind = "value_losses"


class SamplerSuite(Suite):
    """Tests that a sampler keeps its contract."""

    kind = "samplers"


class HookPluginSuite(Suite):
    """Tests that a hook plugin keeps its contract."""

    kind = "hooks"

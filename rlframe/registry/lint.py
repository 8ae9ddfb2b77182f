"""What would be accepted in silence from a plugin, and then never be called as its author thinks.

Looked for when the class is loaded, so that `rlframe validate` tells it and no stage has trained yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from rlframe.api.algorithm import AdvantageEstimator
from rlframe.api.component import API_VERSION, Component, HookPlugin, RewardProvider
from rlframe.api.spec import Specification
from rlframe.errors import did_you_mean, listed

HOOKS = tuple(name for name in vars(Specification) if name.startswith("rlframe_"))
"""Every hook, component calls first."""


def unfit(component: type[Component[Any]], *, distribution: str = "the plugin") -> list[str]:
    """Why no recipe can use a component, a sentence each; the hooks of a plugin are `misfits`' part.

    Args:
      component: its class.
      distribution: what it comes with.
    """
    api = component.rlframe_api
    if not (isinstance(api, tuple) and len(api) == 2 and all(isinstance(x, int) for x in api)):
        return [f"rlframe_api is {api!r}, but it must be (major, minor)"]
    if api[0] != API_VERSION[0] or api[1] > API_VERSION[1]:
        return [
            f"it is written for plugin API {api[0]}.{api[1]}, this rlframe speaks {API_VERSION[0]}."
            f"{API_VERSION[1]}. Upgrade {distribution if api < API_VERSION else 'rlframe'}."
        ]
    taken = component.reserved & set(component.Config.model_fields)
    if taken:
        return [f"its config declares {listed(taken)}, which belongs to the recipe"]
    return outdated(component)


def outdated(component: type[Component[Any]]) -> list[str]:
    """What a component has from an earlier contract, which nothing would call, or call otherwise."""
    found = []
    if issubclass(component, RewardProvider) and hasattr(component, "combine"):
        found.append(
            "it has `combine`, which nothing calls any more: a reward that acts on others returns what "
            "they are multiplied with from `gate`"
        )
    if issubclass(component, AdvantageEstimator):
        given = list(inspect.signature(component.estimate).parameters)[1:]
        if len(given) > 1:
            found.append(
                f"its `estimate` takes {', '.join(given)}, but is given one CreditBatch, which has "
                "them, and returns a Credit"
            )
    return found


def misfits(plugin: type[HookPlugin[Any]]) -> list[str]:
    """What is wrong with the hooks of a plugin, a sentence each; empty if it keeps the rules."""
    functions = dict(inspect.getmembers(plugin, inspect.isfunction))
    marked = {name: f for name, f in functions.items() if hasattr(f, "rlframe_impl")}
    found = [
        f"{name} is not decorated with @hookimpl, so it would not be called"
        for name in functions
        if name.startswith("rlframe_") and name not in marked
    ]
    for name, function in marked.items():
        if name in HOOKS:
            found += _of_hook(name, function)
        else:
            guess = did_you_mean(name, HOOKS)
            found.append(f"there is no hook {name}.{guess} Known: {listed(HOOKS)}")
    return found if marked else [*found, "it implements no hook; decorate a method with @hookimpl"]


def _of_hook(name: str, function: Callable[..., Any]) -> Iterator[str]:
    options = function.rlframe_impl  # type: ignore[attr-defined]
    specification = getattr(Specification, name)
    known = list(inspect.signature(specification).parameters)[1:]
    calls_a_component = specification.rlframe_spec["firstresult"]
    yields = inspect.isgeneratorfunction(function)
    if options["hookwrapper"]:
        yield f"{name} is an old-style wrapper; write @hookimpl(wrapper=True)"
    elif options["wrapper"] and not calls_a_component:
        yield f"{name} is notified of an event, which nothing can wrap; write @hookimpl and no yield"
    elif options["wrapper"] and not yields:
        yield f"{name} is a wrapper that never yields, so what it wraps would not be called"
    elif yields and not options["wrapper"]:
        yield f"{name} yields but is no wrapper, so its body would not run"
    if options["tryfirst"] or options["trylast"]:
        yield f"{name} asks for an order; the order is that of the recipe's `hooks:`"
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.default is not inspect.Parameter.empty:
            yield f"{name}: argument {parameter.name!r} has a default, so pluggy would never fill it"
        if parameter.name not in known:
            guess = did_you_mean(parameter.name, known)
            yield f"{name} has no argument {parameter.name!r}.{guess} It may take: {listed(known)}"

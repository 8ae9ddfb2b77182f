"""Calling hooks: who takes part, in which order, and whose fault it was.

One relay a run; there is no global one. Component calls go through pluggy, so that wrappers apply.
Observers are called one by one, so that one that raises does not silence those after it.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pluggy

from rlframe.errors import PluginError, RlframeError, RunError, did_you_mean, listed
from rlframe.hooks.component import HookPlugin, Instance
from rlframe.hooks.spec import Specification, plugin_manager

TRACE = "RLFRAME_TRACE_HOOKS"
"""Environment variable: anything but empty or 0 writes every hook call to stderr."""

HOOKS = tuple(name for name in vars(Specification) if name.startswith("rlframe_"))
"""Every hook, component calls first."""


class ObserverWarning(UserWarning):
    """An observer raised; the run goes on without what it would have done."""


class Relay:
    """pluggy's plugin manager of one run.

    Args:
      plugins: in the recipe's order: the first is the outermost wrapper and the first observer.

    Raises:
      PluginError: a plugin implements a hook that does not exist, forgot `@hookimpl`, or asks for an
        order or arguments of its own.
    """

    def __init__(self, plugins: Sequence[Instance[HookPlugin[Any]]] = ()) -> None:
        self._plugins = tuple(plugins)
        self._manager = plugin_manager()
        for instance in reversed(self._plugins):  # pluggy calls the one registered last first
            _lint(instance)
            try:
                self._manager.register(instance.component, name=f"hooks.{instance.name}")
                self._manager.check_pending()
            except pluggy.PluginValidationError as error:
                raise PluginError(f"hooks.{instance.name}: {instance}: {error}") from error
        if os.environ.get(TRACE, "0") not in ("", "0"):
            self._manager.trace.root.setwriter(_write)
            self._manager.enable_tracing()
        self.errors = 0
        """How often an observer raised."""

    @property
    def hook(self) -> Any:
        """Where components are called: `relay.hook.rlframe_score(provider=..., batch=...)`."""
        return self._manager.hook

    def tell(self, name: str, event: object) -> None:
        """Call every observer of a hook; one that raises is warned about and counted.

        Args:
          name: of the hook, without "rlframe_".
          event: its frozen event.
        """
        caller = getattr(self._manager.hook, f"rlframe_{name}")
        for implementation in reversed(caller.get_hookimpls()):
            try:
                implementation.function(*[event for _ in implementation.argnames])
            except Exception as error:
                self.errors += 1
                warnings.warn(
                    f"{implementation.plugin_name}: {self._named(implementation.plugin)} raised in "
                    f"rlframe_{name} and is ignored: {type(error).__name__}: {error}",
                    ObserverWarning,
                    stacklevel=2,
                )

    @contextmanager
    def named(self, noun: str, instance: Instance[Any]) -> Iterator[None]:
        """Turn what a component or a wrapper around it raises into an error that names it.

        Args:
          noun: of the component, as people call it.
          instance: the component.

        Raises:
          RunError: something was raised; an error for people and a lack of memory pass as they are.
        """
        import torch  # only a run comes here; reading a recipe must not cost its import

        try:
            yield
        except (RlframeError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            culprit = self.blame(error)
            whose = f"{culprit}, around {noun}" if culprit else noun
            raise RunError(f"{whose} {instance} raised {type(error).__name__}: {error}") from error

    def blame(self, error: BaseException) -> str | None:
        """The hook plugin in whose code an error arose, or None: then it was the component's own."""
        trace, culprit = error.__traceback__, None
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            found = next((p for p in self._plugins if p.component is owner), None)
            if found is not None:
                culprit = found
            elif owner is not None and hasattr(owner, "rlframe_api"):
                culprit = None  # deeper than the wrapper, a component was at work
            trace = trace.tb_next
        return None if culprit is None else f"hook plugin {culprit}"

    def _named(self, plugin: object) -> str:
        return next((str(p) for p in self._plugins if p.component is plugin), "rlframe")


def _lint(instance: Instance[HookPlugin[Any]]) -> None:
    """Find what pluggy would accept in silence and never call, or call in an order of its own."""
    plugin, problems = instance.component, []
    for name, function in inspect.getmembers(type(plugin), inspect.isfunction):
        marker = getattr(function, "rlframe_impl", None)
        if marker is None:
            if name.startswith("rlframe_"):
                problems.append(
                    f"{name} is not decorated with @hookimpl, so it would not be called"
                )
            continue
        if name not in HOOKS:
            problems.append(
                f"there is no hook {name}.{did_you_mean(name, HOOKS)} Known: {listed(HOOKS)}"
            )
        if marker.get("hookwrapper"):
            problems.append(f"{name} is an old-style wrapper; write @hookimpl(wrapper=True)")
        if marker.get("tryfirst") or marker.get("trylast"):
            problems.append(f"{name} asks for an order; the order is that of the recipe's `hooks:`")
        problems += [
            f"{name}: argument {parameter.name!r} has a default, so pluggy would never fill it"
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is not inspect.Parameter.empty
        ]
    if not any(hasattr(function, "rlframe_impl") for function in _functions(plugin)):
        problems.append("it implements no hook; decorate a method with @hookimpl")
    if problems:
        raise PluginError(f"hooks.{instance.name}: {instance}: {'; '.join(problems)}")


def _functions(plugin: object) -> Iterable[Any]:
    return (function for _, function in inspect.getmembers(type(plugin), inspect.isfunction))


def _write(text: str) -> None:
    sys.stderr.write(text)

"""Calling hooks: who takes part, in which order, and whose fault it was.

One relay a run; there is no global one. Component calls go through pluggy, so that wrappers apply.
Observers are called one by one, so that one that raises does not silence those after it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pluggy

from rlframe.errors import PluginError, RunError
from rlframe.hooks.component import HookPlugin, Instance
from rlframe.hooks.spec import plugin_manager

TRACE = "RLFRAME_TRACE_HOOKS"
"""Environment variable: anything but empty or 0 writes every hook call to stderr."""


class ObserverWarning(UserWarning):
    """An observer raised; the run goes on without what it would have done."""


class Relay:
    """pluggy's plugin manager of one run.

    Args:
      plugins: in the recipe's order: the first is the outermost wrapper and the first observer.

    Raises:
      PluginError: pluggy refuses a plugin. What it would let pass, `hooks.lint` has found on loading.
    """

    def __init__(self, plugins: Sequence[Instance[HookPlugin[Any]]] = ()) -> None:
        self._plugins = tuple(plugins)
        self._manager = plugin_manager()
        for instance in reversed(self._plugins):  # pluggy calls the one registered last first
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
    def named(
        self, noun: str, instance: Instance[Any], *, detail: Callable[[], str] = str
    ) -> Iterator[None]:
        """Turn what a component or a wrapper around it raises into an error that names it.

        Args:
          noun: of the component, as people call it.
          instance: the component.
          detail: makes the lines after the first, on what it was working on.

        Raises:
          RunError: something was raised.
        """
        try:
            yield
        except Exception as error:
            culprit = self._blame(error)
            whose = f"{culprit}, around {noun}" if culprit else noun
            told = f"{whose} {instance} raised {type(error).__name__}: {error}\n{detail()}"
            raise RunError(told.rstrip()) from error

    def _blame(self, error: BaseException) -> str | None:
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


def _write(text: str) -> None:
    sys.stderr.write(text)

"""Calling hooks: who takes part, in which order, and which plugin raised.

One relay a run; there is no global one. Component calls go through pluggy, so that wrappers apply.
Observers are called one by one, so that one that raises does not silence those after it.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any

import pluggy

from rlframe.api.component import HookPlugin, Instance
from rlframe.api.owners import Stamp, take_stamp
from rlframe.api.spec import plugin_manager
from rlframe.errors import PluginError, RunError, StopTraining
from rlframe.registry.owners import in_words, raised
from rlframe.registry.stamping import StampingPlugin
from rlframe.text import say
from rlframe.types import KLMeasurement, KLState

TRACE = "RLFRAME_TRACE_HOOKS"
"""Environment variable: anything but empty or 0 writes every hook call to stderr."""


class ObserverWarning(UserWarning):
    """An observer raised; the run goes on without what it would have done."""


class Relay:
    """pluggy's plugin manager of one run.

    Args:
      plugins: in the recipe's order: the first is the outermost wrapper and the first observer.

    Raises:
      PluginError: pluggy refuses a plugin. `registry.lint` has found what it would let pass.
    """

    def __init__(self, plugins: Sequence[Instance[HookPlugin[Any]]] = ()) -> None:
        self._plugins = tuple(plugins)
        self._manager = plugin_manager()
        for instance in reversed(self._plugins):  # pluggy calls the one registered last first
            try:
                plugin = StampingPlugin(instance.component)
                self._manager.register(plugin, name=f"hooks.{instance.name}")
                self._manager.check_pending()
            except pluggy.PluginValidationError as error:
                raise PluginError(f"hooks.{instance.name}: {instance}: {error}") from error
        self._tracing = os.environ.get(TRACE, "0") not in ("", "0")
        if self._tracing:
            self._trace_component_calls()
        self.errors = 0
        """How often an observer raised."""
        self.stop: str | None = None
        """Why an observer of this rank wants PPO to end, and which one; None if none does."""

    def state_dict(self) -> dict[str, int]:
        """How often an observer raised."""
        return {"errors": self.errors}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take back what `state_dict` gave."""
        self.errors = state["errors"]

    @property
    def hook(self) -> Any:
        """Where components are called: `relay.hook.rlframe_score(provider=..., batch=...)`."""
        return self._manager.hook

    def around(self, name: str) -> str:
        """Which plugins take part in a hook, in brackets; nothing if none does.

        What comes out of the hook may be theirs, and not the component's.
        """
        taking_part = {one.plugin_name for one in getattr(self._manager.hook, name).get_hookimpls()}
        found = [
            repr(plugin.name) for plugin in self._plugins if f"hooks.{plugin.name}" in taking_part
        ]
        return f" (with the hook plugin {' and '.join(found)} around it)" if found else ""

    def tell(self, name: str, event: object) -> None:
        """Call every observer of a hook; one that raises is warned about and counted.

        Args:
          name: of the hook, without "rlframe_".
          event: its frozen event.
        """
        caller = getattr(self._manager.hook, f"rlframe_{name}")
        for implementation in reversed(caller.get_hookimpls()):
            start = time.perf_counter()
            call = partial(implementation.function, *[event for _ in implementation.argnames])
            outcome: pluggy.Result[Any] = pluggy.Result.from_call(call)
            error = outcome.exception
            if self._tracing:
                given = {"event": event}
                _trace(f"rlframe_{name}", [implementation.plugin_name], given, start, outcome)
            if error is not None:
                self._raised(error, implementation, f"rlframe_{name}")

    def _raised(self, error: BaseException, by: pluggy.HookImpl, hook: str) -> None:
        """What becomes of an observer's exception: a stop, a warning, or the end of the run."""
        take_stamp(error)  # the observer is reported, whatever it has called
        assert isinstance(by.plugin, StampingPlugin)
        plugin = by.plugin.plugin
        who = f"{by.plugin_name}: {self._plugin(plugin)}"
        if isinstance(error, StopTraining):
            self.stop = self.stop or f"{by.plugin_name}: {error}"
        elif isinstance(error, Exception):
            self.errors += 1
            message = raised(error, who, plugin, hook)
            warnings.warn(f"{message}. This is ignored", ObserverWarning, stacklevel=3)
        elif isinstance(error, SystemExit):
            raise RunError(raised(error, who, plugin, hook)) from error
        else:  # Ctrl-C is nobody's mistake
            raise error

    def _trace_component_calls(self) -> None:
        begun: list[float] = []  # a component may call another through its hook

        def before(*_: Any) -> None:
            begun.append(time.perf_counter())

        def after(
            outcome: pluggy.Result[Any],
            name: str,
            implementations: Sequence[pluggy.HookImpl],
            given: Mapping[str, Any],
        ) -> None:
            by = [one.plugin_name for one in reversed(implementations)]
            _trace(name, by, given, begun.pop(), outcome)

        self._manager.add_hookcall_monitoring(before, after)

    @contextmanager
    def named(
        self, noun: str, instance: Instance[Any], method: str, *, detail: Callable[[], str] = str
    ) -> Iterator[None]:
        """Turn what is raised in a call of a component through its hook into an error that names whose
        mistake it is: the component's, a hook plugin's, or that of another component inside of it.

        Args:
          noun: of the component, as people call it.
          instance: the component.
          method: of the component, which is called inside.
          detail: makes the lines after the first, on what it was working on.

        Raises:
          RunError: something was raised.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            more = "" if isinstance(error, SystemExit) else detail()
            found = take_stamp(error) or Stamp(instance.component, method)
            who = self._owner(found.owner, f"{noun} {instance}", instance)
            message = raised(error, who, found.owner, found.method, place=found.place)
            raise RunError(f"{message}\n{more}".rstrip()) from error

    def _owner(self, owner: object, called: str, instance: Instance[Any]) -> str:
        """The owner of an exception in words, and the component that was called if it is another."""
        if owner is instance.component:
            return called
        plugin = self._plugin(owner)
        if plugin is not None:
            return f"hook plugin {plugin}, around {called},"
        return f"{in_words(owner)} inside {called}"

    def _plugin(self, owner: object) -> Instance[HookPlugin[Any]] | None:
        return next((plugin for plugin in self._plugins if plugin.component is owner), None)


def _trace(
    name: str,
    by: Sequence[str],
    given: Mapping[str, Any],
    begun: float,
    outcome: pluggy.Result[Any],
) -> None:
    """One line on stderr: which hook, with what, who took part, its result and the time it took."""
    seconds = time.perf_counter() - begun
    error = outcome.exception
    came = f"raised {error!r}" if error is not None else f"-> {_shown(outcome.get_result())}"
    arguments = ", ".join(f"{key}={_shown(value)}" for key, value in given.items())
    say(f"{name}({arguments}) by {', '.join(by)} {came} in {1e3 * seconds:.2f} ms", err=True)


def _shown(value: object) -> str:
    """A value in a word: a rollout would fill the screen at every call."""
    if value is None or isinstance(value, bool | int | float | str | KLState | KLMeasurement):
        return repr(value)
    kind = type(value).__name__
    if hasattr(value, "shape"):
        return f"{kind}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"{kind}[{len(value)}]" if isinstance(value, Sized) else kind

"""Calling hooks: who takes part, in which order, and which plugin raised.

One relay a run; there is no global one. Component calls go through pluggy, so that wrappers apply.
Observers are called one by one, so that one that raises does not silence those after it.
"""

from __future__ import annotations

import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any

import pluggy

from rlframe.api.component import HookPlugin, Instance
from rlframe.api.spec import plugin_manager
from rlframe.errors import PluginError, RunError, StopTraining
from rlframe.registry.blame import exit_told
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
                self._manager.register(instance.component, name=f"hooks.{instance.name}")
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
        callers = getattr(self._manager.hook, name).get_hookimpls()
        theirs = {id(one.plugin) for one in callers}
        found = [repr(plugin.name) for plugin in self._plugins if id(plugin.component) in theirs]
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
        who = f"{by.plugin_name}: {self._named(by.plugin)}"
        if isinstance(error, StopTraining):
            self.stop = self.stop or f"{by.plugin_name}: {error}"
        elif isinstance(error, Exception):
            self.errors += 1
            warnings.warn(
                f"{who} raised in {hook} and is ignored: {type(error).__name__}: {error} "
                f"[{_place(error, by.plugin)}]",
                ObserverWarning,
                stacklevel=3,
            )
        elif isinstance(error, SystemExit):
            raise RunError(exit_told(error, f"{who} in {hook}")) from error
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
        except (Exception, SystemExit) as error:
            culprit = self._blame(error)
            whose = f"hook plugin {culprit}, around {noun}" if culprit else noun
            if isinstance(error, SystemExit):
                raise RunError(exit_told(error, f"{whose} {instance}")) from error
            place = _place(error, (culprit or instance).component)
            told = (
                f"{whose} {instance} raised {type(error).__name__}: {error} [{place}]\n{detail()}"
            )
            raise RunError(told.rstrip()) from error

    def _blame(self, error: BaseException) -> Instance[HookPlugin[Any]] | None:
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
        return culprit

    def _named(self, plugin: object) -> str:
        return next((str(p) for p in self._plugins if p.component is plugin), "rlframe")


def _place(error: BaseException, component: object) -> str:
    """FILE:LINE of the last call in the component's own package, or else of the last one."""
    package = type(component).__module__.partition(".")[0]
    calls = list(traceback.walk_tb(error.__traceback__))
    own = [c for c in calls if c[0].f_globals.get("__name__", "").partition(".")[0] == package]
    frame, line = (own or calls)[-1]
    return f"{frame.f_code.co_filename}:{line}"


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

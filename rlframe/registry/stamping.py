"""What pluggy is given for a hook plugin: its implementations, which stamp what they raise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import wraps
from typing import Any

from rlframe.api.component import HookPlugin
from rlframe.api.owners import Stamp, Stamped, stamp, take_stamp

Wrapper = Generator[None, Any, Any]


class StampingPlugin:
    """Has the hook implementations of a plugin, and nothing else of it.

    Args:
      plugin: whose methods are called.
    """

    def __init__(self, plugin: HookPlugin[Any]) -> None:
        self.plugin = plugin
        for name, function in inspect.getmembers(type(plugin), inspect.isfunction):
            if hasattr(function, "rlframe_impl"):
                method = _Method(plugin, name, getattr(plugin, name))
                is_wrapper = function.rlframe_impl["wrapper"]
                setattr(self, name, method.wrapper() if is_wrapper else method.implementation())


@dataclass(frozen=True)
class _Method:
    """A method of a plugin that implements the hook of that name."""

    plugin: HookPlugin[Any]
    name: str
    call: Callable[..., Any]

    def implementation(self) -> Callable[..., Any]:
        """A function that does the same."""

        @wraps(self.call)
        def called(*given: Any) -> Any:
            with Stamped(self.plugin, self.name):
                return self.call(*given)

        return called

    def wrapper(self) -> Callable[..., Wrapper]:
        """The same for a wrapper, whose parts before and after its `yield` run apart."""

        @wraps(self.call)
        def called(*given: Any) -> Wrapper:
            with Stamped(self.plugin, self.name):
                running = self.call(*given)
                try:
                    next(running)
                except StopIteration:
                    raise self._miscounted("did not yield") from None
            try:
                result = yield
            except BaseException as error:
                return self._resumed_with(error, running)
            with Stamped(self.plugin, self.name):
                return self._returned(lambda: running.send(result))

        return called

    def _resumed_with(self, error: BaseException, running: Wrapper) -> Any:
        """What a wrapper returns for an exception of what it is around; raises what it raises.

        An exception that it lets through stays that of whoever raised it.
        """
        try:
            answer = self._returned(lambda: running.throw(error))
        except BaseException as other:
            # A StopIteration leaves a generator as the cause of a RuntimeError; pluggy undoes that.
            same = other is error or (isinstance(error, StopIteration) and other.__cause__ is error)
            if not same and isinstance(other, Exception | SystemExit):
                stamp(other, Stamp(self.plugin, self.name))
                take_stamp(error)
            raise
        take_stamp(error)  # nobody will report it, and the same object may be raised again
        return answer

    def _returned(self, resume: Callable[[], object]) -> Any:
        """What a wrapper returns once it is resumed."""
        try:
            resume()
        except StopIteration as end:
            return end.value
        raise self._miscounted("yielded a second time")

    def _miscounted(self, what: str) -> RuntimeError:
        """The error of a wrapper that does not yield once: none of its own lines raises it."""
        code = inspect.unwrap(self.call).__code__
        error = RuntimeError(f"a wrapper yields once, and this one {what}")
        stamp(error, Stamp(self.plugin, self.name, f"{code.co_filename}:{code.co_firstlineno}"))
        return error

"""A plain function as a reward provider, with the signature that TRL's GRPOTrainer calls.

    def f(prompts, completions, completion_ids, COLUMN, KEY=default, **kwargs) -> list[float | None]

The class that is made of a function is a reward provider like any other: same recipe keys, same
contract, same conformance checks.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

from pydantic import create_model
from pydantic.errors import PydanticUserError

from rlframe.api.component import Context, Needs, PluginConfig, RewardProvider
from rlframe.errors import PluginError, RecipeError
from rlframe.types import RewardBatch

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Parameters that the run fills; every other one is a column of the data, or a key of the recipe."""

NOT_PASSED = frozenset({"prompt", "completion", "completion_ids"})
"""Columns that `**kwargs` is not given, as in TRL."""


@dataclass(frozen=True)
class TrainerState:
    """Where the run stands, for a function that asks for `trainer_state`."""

    global_step: int
    """The number of the PPO update, from 0."""
    max_steps: int
    """How many updates there will be."""


@dataclass(frozen=True)
class Parameters:
    """What a function wants, beside `GIVEN`."""

    given: frozenset[str]
    """Those of `GIVEN` that it takes."""
    columns: tuple[str, ...]
    """Parameters without a default: columns that the data must have."""
    keys: Mapping[str, tuple[Any, Any]]
    """Parameters with a default: name -> (type, default). A column of that name takes its place."""
    everything: bool
    """Whether `**kwargs` takes all other columns."""


class FunctionConfig(PluginConfig):
    """Base of the configs of functions, whose classes no module has."""

    made_of: ClassVar[tuple[Any, str]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (*self.made_of, self.model_dump(exclude_unset=True))


def _unpickled(function: Any, name: str, keys: dict[str, Any]) -> Any:
    return reward_from_function(function, name=name).Config.model_validate(keys)


class FunctionReward(RewardProvider[PluginConfig]):
    """Base of the classes that `reward_from_function` makes."""

    function: ClassVar[Callable[..., Any]]
    parameters: ClassVar[Parameters]

    @classmethod
    def needs(cls, config: PluginConfig) -> Needs:
        return Needs(columns=frozenset(cls.parameters.columns))

    @classmethod
    def check(cls, config: PluginConfig, context: Context) -> None:
        inert = sorted(config.model_fields_set & context.columns)
        if inert:
            raise RecipeError(
                f"nothing reads {inert[0]!r}: the prompts' data has a column of that name, which the "
                "function is given. Remove the key, or call the parameter by another name"
            )

    def score(self, batch: RewardBatch) -> Any:
        answer = type(self).function(**dict(self._arguments(batch)))
        return _awaited(answer) if inspect.isawaitable(answer) else answer

    def _arguments(self, batch: RewardBatch) -> Iterator[tuple[str, Any]]:
        wants, columns = self.parameters, self.context.columns
        known = {
            "prompts": lambda: [_prompt(prompt) for prompt in batch.prompts],
            "completions": lambda: [
                text if prompt.messages is None else [{"role": "assistant", "content": text}]
                for prompt, text in zip(batch.prompts, batch.response_texts, strict=True)
            ],
            "completion_ids": lambda: [list(ids) for ids in batch.response_ids],
            "trainer_state": lambda: TrainerState(batch.update, batch.updates),
            "log_extra": lambda: batch.log,
            "log_metric": lambda: batch.log,
        }
        for name in GIVEN:
            if name in wants.given or wants.everything:
                yield name, known[name]()
        for name in wants.keys:
            yield name, batch.column(name) if name in columns else getattr(self.config, name)
        others = columns - NOT_PASSED if wants.everything else frozenset()
        for name in sorted(others.union(wants.columns) - wants.keys.keys() - {*GIVEN}):
            yield name, batch.column(name)


def reward_from_function(
    function: Callable[..., Any], *, name: str | None = None
) -> type[RewardProvider[Any]]:
    """The reward provider class that calls a function.

    Args:
      function: sync or async; called with keyword arguments once per rollout on every rank, with that
        rank's responses. It returns what `RewardProvider.score` may return. Prompts and completions are
        lists of messages where the prompt is a chat, and text where it is not. Its attributes
        `cheap_to_repeat`, `example` and what else begins so are those of the class.
      name: of the class; the function's own if left out.

    Raises:
      PluginError: its parameters cannot be filled.
    """
    called = name or str(getattr(function, "__name__", type(function).__name__))
    try:
        return _made(function, called)
    except TypeError:  # an object without a hash: its class is made again each time
        return _made.__wrapped__(function, called)


@cache  # so that a config that was pickled is of the class that it was
def _made(function: Callable[..., Any], called: str) -> type[RewardProvider[Any]]:
    parameters, home = _parameters(function, called), _inside(function).__module__
    try:
        config = create_model(
            f"{called}_config",
            __base__=FunctionConfig,
            __module__=home,
            **typing.cast(dict[str, Any], parameters.keys),
        )
    except (PydanticUserError, TypeError, NameError) as error:
        raise PluginError(
            f"function {called!r}: its parameters with defaults make no keys of a recipe: {error}"
        ) from error
    config.made_of = (function, called)
    shared = ("cheap_to_repeat", "example", "example_data", "example_responses", "example_chat")
    members: dict[str, Any] = {
        "__doc__": inspect.getdoc(function) or f"The function `{called}`.",
        "__module__": home,
        "Config": config,
        "function": staticmethod(function),
        "parameters": parameters,
        **{key: getattr(function, key) for key in shared if hasattr(function, key)},
    }
    return type(called, (FunctionReward,), members)


def _parameters(function: Callable[..., Any], called: str) -> Parameters:
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise PluginError(f"function {called!r} does not say its parameters: {error}") from error
    by_position = [one for one in found if one.kind in (one.VAR_POSITIONAL, one.POSITIONAL_ONLY)]
    if by_position:
        raise PluginError(
            f"function {called!r} takes {by_position[0].name!r} by position, but everything is given "
            "by name: prompts, completions, columns of the data"
        )
    named = [one for one in found if one.kind is not one.VAR_KEYWORD]
    others = [one for one in named if one.name not in GIVEN]
    keys = [one for one in others if one.default is not one.empty]
    for one in keys:
        _refuse_as_key(one.name, called)
    hints = _hints(function) if keys else {}
    return Parameters(
        given=frozenset(one.name for one in named if one.name in GIVEN),
        columns=tuple(one.name for one in others if one.default is one.empty),
        keys={x.name: (hints.get(x.name, _type_of(x.default)), x.default) for x in keys},
        everything=len(named) < len(found),
    )


def _refuse_as_key(name: str, called: str) -> None:
    if name.startswith("_") or name in RewardProvider.reserved or hasattr(PluginConfig, name):
        why = (
            "begins with an underscore"
            if name.startswith("_")
            else "is a key of every reward in a recipe, or a name that pydantic needs"
        )
        raise PluginError(
            f"function {called!r}: its parameter {name!r} {why}, so that it cannot be a key of the "
            "recipe. Give it another name, or no default"
        )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations, resolved; those of `__call__` for an object that can be called."""
    plain = _inside(inspect.unwrap(function))
    source = plain if inspect.isroutine(plain) else type(plain).__call__
    try:
        return typing.get_type_hints(source, include_extras=True)
    except Exception as error:
        raise PluginError(
            f"function {getattr(function, '__name__', function)!r}: its annotations cannot be read: "
            f"{type(error).__name__}: {error}. Import at run time what they name"
        ) from error


def _inside(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a `functools.partial` calls in the end; any other function is itself."""
    while isinstance(function, partial):
        function = function.func
    return function


def _type_of(default: object) -> Any:
    """The type of a key without annotation: that of its default, and any number for a number."""
    if default is None:
        return Any
    return float if type(default) is int else type(default)


def _prompt(prompt: Any) -> str | list[dict[str, str]]:
    if prompt.messages is None:
        return str(prompt.text)
    return [dict(message) for message in prompt.messages]


def _awaited(answer: Awaitable[Any]) -> Any:
    """The result of a coroutine, also where a loop is running already, as in a notebook."""

    async def wait() -> Any:
        return await answer

    def alone() -> Any:
        import torch  # grad mode belongs to a thread

        with torch.no_grad():
            return asyncio.run(wait())

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(alone).result()

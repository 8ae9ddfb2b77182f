"""The component under test, with all that a check needs to use it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from rlframe.api.component import Component, Context, PluginConfig
from rlframe.errors import RecipeError
from rlframe.testing.examples import (
    example_chat,
    example_config,
    example_data,
    example_responses,
)
from rlframe.testing.world import tiny_context

K = TypeVar("K", bound=Component[Any])


@dataclass(frozen=True)
class Subject(Generic[K]):
    """A component, its config, and the data that it is fed.

    Args:
      component: the class.
      config: the keys of a recipe, laid over the `example` that the class may carry.
      data: column -> values, one a prompt; the shorter ones are repeated. `prompt` is what the policy
        is asked; the rest are columns of the data set. Laid over the kit's own.
      responses: what the policy answers, dealt to the prompts in turn; the kit's own if empty.
      given_context: what the component is built with; a tiny one if left out.
      seconds_per_thousand: most time that a reward may take for a thousand responses, or a generator
        for a thousand rows.
      target: KL at which a controller rests, in its unit; that of its config if left out.
      chat: whether a reward is given chats, whose prompts have messages, and not plain text; as the
        class says in `example_chat` if left out.
    """

    component: type[K]
    config: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    responses: Sequence[str] = ()
    given_context: Context | None = None
    seconds_per_thousand: float = 10.0
    target: float | None = None
    chat: bool | None = None

    @cached_property
    def context(self) -> Context:
        """What the component is built with."""
        return self.new_context()

    def new_context(self) -> Context:
        """The same that no component has been built with yet, unless the caller has given one."""
        chat = example_chat(self.component) if self.chat is None else self.chat
        return self.given_context or tiny_context(data=self.columns, chat=chat)

    @cached_property
    def columns(self) -> dict[str, Sequence[Any]]:
        """The data that the component is fed: its own, laid over what its class carries."""
        return {**example_data(self.component), **self.data}

    @cached_property
    def texts(self) -> Sequence[str]:
        """The responses that a reward is fed; empty for the kit's own."""
        return self.responses or example_responses(self.component)

    @cached_property
    def options(self) -> dict[str, Any]:
        """The keys of the config as a recipe would have them."""
        return {**example_config(self.component), **self.config}

    @cached_property
    def instance(self) -> K:
        """The component, built once; checks that need another build their own."""
        return self.build()

    @cached_property
    def initial_state(self) -> dict[str, Any]:
        """The component's own state as it was built."""
        return copy.deepcopy(dict(self.instance.state_dict()))

    def validated(self, **changes: Any) -> PluginConfig:
        """The config as a recipe would give it, with some keys changed.

        Raises:
          RecipeError: it is incomplete or wrong; says where the kit takes it from.
        """
        options = {**self.options, **changes}
        try:
            return self.component.Config.model_validate(options)
        except ValidationError as error:
            raise RecipeError(_incomplete(self.component, options, error)) from error

    def build(self, **changes: Any) -> K:
        """Build the component as the engine would, with some keys of its config changed.

        Raises:
          RecipeError: the config is incomplete or wrong, or the component's own check refuses it.
        """
        config = self.validated(**changes)
        self.component.check(config, self.context)
        return self.component(config, self.context)


def _incomplete(component: type[Any], options: dict[str, Any], error: ValidationError) -> str:
    wrong = "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()
    )
    given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no keys"
    return (
        f"the config of {component.__name__} is not valid ({wrong}); the kit has {given}. Give "
        "values on the command line (`--config key=value`), in the test class (`config = {...}`), or "
        "for everybody on the component itself (`example = {...}`)"
    )

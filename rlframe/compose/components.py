"""What the components of a PPO run say of themselves, checked before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rlframe.api.answers import ContractError
from rlframe.api.component import AuxiliaryLoss, Component, Instance
from rlframe.api.contract import (
    refuse_bad_coefficient,
    refuse_bad_examples,
    refuse_bad_examples_per_step,
)
from rlframe.api.description import sentences
from rlframe.api.streams import ExampleStream
from rlframe.compose.project import Project
from rlframe.data.fitting import Fitter
from rlframe.engine.auxiliary import AuxiliaryData
from rlframe.engine.kl_control import KLControl
from rlframe.engine.stream_reader import (
    TRIED,
    EmptyStreamError,
    StreamReader,
    refuse_lost_cursor,
)
from rlframe.engine.streams import Shuffled, digest
from rlframe.errors import PluginError, RecipeError, RlframeError, RunError
from rlframe.registry.owners import component_errors, in_words
from rlframe.registry.relay import Relay
from rlframe.types import TokenExample

Loss = Instance[AuxiliaryLoss[Any]]

PLANNED = 256
"""Examples of a stream that a plan reads, to know how long they are."""


def check_controller(project: Project) -> None:
    """Ask the KL controller where it starts, before any stage trains. Collective: call on all ranks.

    Raises:
      PluginError: it raised, or broke its contract.
      RecipeError: its coefficient is not within the recipe's bounds.
    """
    section = project.recipe.kl
    if project.recipe.ppo is None or section is None:
        return
    controller = project.instance("kl", "controller")
    control = KLControl(
        controller, Relay(), section.minimum, section.maximum, project.runtime.gather
    )
    try:
        control.initial()
    except RunError as error:
        raise PluginError(f"kl.controller: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"kl.controller: {error}") from error


def coefficient_of(loss: Loss) -> float:
    """What an auxiliary loss is multiplied with.

    Raises:
      PluginError: it is not a finite number.
    """
    with _named(loss, "coefficient"):
        coefficient: Any = loss.component.coefficient
        refuse_bad_coefficient(coefficient)
        return float(coefficient)


def auxiliary_data(loss: Loss, project: Project) -> AuxiliaryData:
    """The examples of an auxiliary loss, checked, in their endless order; None for the rollout's.

    Collective: call on all ranks.

    Raises:
      PluginError: they are not what the contract wants.
      RecipeError: there are none.
      RunError: the state of a stream cannot be saved, or is not taken back.
      SetupError: ranks have others.
    """
    with _named(loss, "examples"):
        examples: Any = loss.component.examples()
        if examples is None:
            return AuxiliaryData(loss, None)
        if not isinstance(examples, ExampleStream):
            refuse_bad_examples(examples, vocabulary=_vocabulary(project))
            if not examples:
                raise RecipeError(f"the loss {loss} has no examples to train on")
        per_step: Any = loss.component.examples_per_step
        refuse_bad_examples_per_step(per_step)
    if isinstance(examples, ExampleStream):
        return AuxiliaryData(loss, _streamed(loss, examples, project))
    project.runtime.agree(f"the sha256 of the examples of loss {loss}", digest(examples))
    key = (project.recipe.seed, "losses", loss.name)
    return AuxiliaryData(loss, Shuffled([*map(_fit(project), examples)], key=key))


def _streamed(loss: Loss, stream: ExampleStream, project: Project) -> StreamReader:
    """A stream of which the first examples were read, and which then was put back."""
    reader = _reader(loss, stream, project)
    try:
        refuse_lost_cursor(reader, reader, tried=TRIED, after=2)
    except EmptyStreamError as error:
        raise RecipeError(
            f"losses.{loss.name}: the loss {loss} has no examples to train on: {error}"
        ) from error
    except ContractError as error:
        raise PluginError(f"losses.{loss.name}: auxiliary loss {loss}: {error}") from error
    return reader


def _reader(loss: Loss, stream: ExampleStream, project: Project) -> StreamReader:
    return StreamReader(
        stream,
        path=f"losses.{loss.name}",
        vocabulary=_vocabulary(project),
        fit=_fit(project),
    )


def longest_example(loss: Loss, project: Project) -> int | None:
    """Tokens of a loss's longest example, or of those with which its stream begins; None if it works
    on the rollout.
    """
    with _named(loss, "examples"):
        examples: Any = loss.component.examples()
        if isinstance(examples, ExampleStream):
            examples = _reader(loss, examples, project).read(PLANNED)
    if not examples:
        return None
    longest = max(len(example.ids) for example in examples)
    return min(longest, project.context_tokens or longest)


def _vocabulary(project: Project) -> int:
    return max(project.tokenizer.get_vocab().values()) + 1


def _fit(project: Project) -> Callable[[TokenExample], TokenExample]:
    """Cuts an example to what the models read."""
    if project.context_tokens is None:
        return lambda example: example
    return Fitter(project.context_tokens, project.tokenizer.bos_token_id).example


def notes_of(path: str, component: Component[Any]) -> list[str]:
    """What a component that has just been built has to say.

    Args:
      path: of the component in the recipe.
      component: it.

    Raises:
      PluginError: it raised, or returned something else than sentences.
    """
    who = f"{path}: {in_words(component)}"
    with component_errors(who, component, "notes", raises=PluginError):
        found = component.notes()
    try:
        return sentences(found)
    except ContractError as error:
        raise PluginError(f"{who} {error}") from error


@contextmanager
def _named(loss: Loss, method: str) -> Iterator[None]:
    """Say whose mistake it is, and where the loss stands in the recipe."""
    who = f"auxiliary loss {loss}"
    try:
        with component_errors(who, loss.component, method, raises=PluginError):
            try:
                yield
            except ContractError as error:
                raise PluginError(f"{who} {error}") from error
    except RlframeError as error:
        raise type(error)(f"losses.{loss.name}: {error}") from error

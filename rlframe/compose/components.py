"""What the components of a PPO run say of themselves, checked before it is used."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
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
from rlframe.compose.project import Project
from rlframe.data.fitting import Fitter
from rlframe.engine.kl_control import KLControl
from rlframe.engine.streams import Shuffled
from rlframe.engine.updater import AuxiliaryData
from rlframe.errors import PluginError, RecipeError, RlframeError, RunError
from rlframe.registry.owners import component_errors, in_words
from rlframe.registry.relay import Relay

Loss = Instance[AuxiliaryLoss[Any]]


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
      SetupError: ranks have others.
    """
    with _named(loss, "examples"):
        examples: Any = loss.component.examples()
        if examples is None:
            return AuxiliaryData(loss, None)
        vocabulary = max(project.tokenizer.get_vocab().values()) + 1
        refuse_bad_examples(examples, vocabulary=vocabulary)
        if not examples:
            raise RecipeError(f"the loss {loss} has no examples to train on")
        per_step: Any = loss.component.examples_per_step
        refuse_bad_examples_per_step(per_step)
    digest = hashlib.sha256()
    for example in examples:
        spans = [place for span in example.spans for place in span]
        digest.update(array("q", [len(example.ids), *example.ids, len(spans), *spans]))
    project.runtime.agree(f"the sha256 of the examples of loss {loss}", digest.hexdigest())
    if project.context_tokens is not None:
        fitter = Fitter(project.context_tokens, project.tokenizer.bos_token_id)
        examples = [fitter.example(example) for example in examples]
    key = (project.recipe.seed, "losses", loss.name)
    return AuxiliaryData(loss, Shuffled(examples, key=key))


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

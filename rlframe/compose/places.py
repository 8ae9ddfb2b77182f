"""Errors of what is built from a recipe, with the recipe's path in front."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlframe.api.answers import ContractError
from rlframe.errors import PluginError, RecipeError, RlframeError, place_of
from rlframe.recipe import Chosen
from rlframe.registry.discovery import KINDS


@contextmanager
def at(path: str) -> Iterator[None]:
    """Put the recipe's path in front of an error."""
    try:
        yield
    except RlframeError as error:
        raise type(error)(f"{path}: {error}") from error
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from error


@contextmanager
def asking(chosen: Chosen, what: str) -> Iterator[None]:
    """Name a component in what it raises, and in what it answers against its contract.

    Args:
      chosen: the component.
      what: it is asked for, as in "`check`".

    Raises:
      PluginError: it raised something that is not written for a user.
    """
    component, offer = chosen.component, chosen.offer
    who = f"{KINDS[offer.kind][1]} {offer}"
    try:
        yield
    except RlframeError:
        raise
    except ContractError as error:
        raise PluginError(f"{who} {error}") from error
    except Exception as error:
        place = place_of(error, component.__module__)
        raise PluginError(
            f"{who} raised {type(error).__name__} in {what}: {error} [{place}]"
        ) from error


@contextmanager
def opening(path: str, what: str, name: str) -> Iterator[None]:
    """Say whose file could not be opened: transformers raises OSError and ValueError alike."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: the {what} of {name!r} cannot be opened: {error}") from error

"""Errors of what is built from a recipe, with the recipe's path in front."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlframe.errors import RecipeError, RlframeError


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
def opening(path: str, what: str, name: str) -> Iterator[None]:
    """Say whose file could not be opened: transformers raises OSError and ValueError alike."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: the {what} of {name!r} cannot be opened: {error}") from error

"""What distributions offer, and which of it may be imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any

from rlframe.api.component import Component

CORE = "rlframe"
BLOCK = "RLFRAME_BLOCK_PLUGINS"
ALLOW = "RLFRAME_ALLOW_PLUGINS"
"""Environment variables: distributions or distribution/name, separated by commas."""


@dataclass(frozen=True)
class Offer:
    """A component that some distribution offers; not imported yet."""

    kind: str
    name: str
    distribution: str
    version: str
    target: str
    source: EntryPoint | type[Component[Any]]
    blocked: str | None = None
    """What keeps it from being imported, in words; None if nothing does."""

    @property
    def qualified(self) -> str:
        return f"{self.distribution}/{self.name}"

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Rules:
    """What may be imported."""

    blocked: dict[str, str]
    """Normalised name -> who blocks it."""
    allowed: frozenset[str] | None

    @classmethod
    def of_environment(cls, block: Iterable[str]) -> Rules:
        rules = {_normalised_any(name): f"blocked by ${BLOCK}" for name in _listed_in(BLOCK)}
        rules |= {_normalised_any(name): blocked_by_option(name) for name in block}
        allowed = (
            frozenset(map(_normalised_any, _listed_in(ALLOW))) if os.environ.get(ALLOW) else None
        )
        return cls(rules, allowed)

    def applied(self, offer: Offer) -> Offer:
        names = {_normalised_any(offer.distribution), normalised(offer.qualified)}
        if offer.distribution == CORE:
            names.discard(CORE)
        why = next((self.blocked[name] for name in sorted(names & set(self.blocked))), None)
        if why is None and self.allowed is not None and offer.distribution != CORE:
            why = None if names & self.allowed else f"not among those that ${ALLOW} lists"
        return offer if why is None else replace(offer, blocked=why)


def blocked_by_option(name: str) -> str:
    return f"blocked by --no-plugin {name}"


def _listed_in(variable: str) -> list[str]:
    return [name for part in os.environ.get(variable, "").split(",") if (name := part.strip())]


def _normalised_any(name: str) -> str:
    """A distribution's name, or distribution/name, as the packaging specification normalises it."""
    return normalised(name) if "/" in name else normalised(f"{name}/").removesuffix("/")


def normalised(name: str) -> str:
    """A qualified name with its distribution spelt as the packaging specification normalises it."""
    distribution, slash, component = name.rpartition("/")
    return re.sub(r"[-_.]+", "-", distribution).lower() + slash + component

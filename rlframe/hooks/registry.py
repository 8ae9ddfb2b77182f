"""Which components are installed, read from metadata; importing is left to the run that needs one.

Built-ins are entry points of rlframe itself, in the same groups as everybody's. A bare name works
while it is unique; `distribution/name` always works; a built-in name can not be shadowed.
"""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from rlframe.errors import PluginError, did_you_mean, listed
from rlframe.hooks.component import (
    API_VERSION,
    AdvantageEstimator,
    AuxiliaryLoss,
    Component,
    DataGenerator,
    HookPlugin,
    KLController,
    RewardProvider,
)

KINDS: dict[str, tuple[type[Component[Any]], str]] = {
    "data_generators": (DataGenerator, "data generator"),
    "reward_providers": (RewardProvider, "reward"),
    "kl_controllers": (KLController, "KL controller"),
    "auxiliary_losses": (AuxiliaryLoss, "auxiliary loss"),
    "advantage_estimators": (AdvantageEstimator, "advantage estimator"),
    "hooks": (HookPlugin, "hook plugin"),
}
"""Kind, the last part of its entry-point group -> (base class, what people call it)."""

CORE = "rlframe"


@dataclass(frozen=True)
class Offer:
    """A component that some distribution offers; not imported yet."""

    kind: str
    name: str
    distribution: str
    version: str
    target: str
    source: EntryPoint | type[Component[Any]]

    @property
    def qualified(self) -> str:
        return f"{self.distribution}/{self.name}"

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


class Registry:
    """The installed components, and those that a program added by hand."""

    def __init__(self) -> None:
        self._offers = [offer for kind in KINDS for offer in _installed(kind)]

    def add(self, kind: str, name: str, component: type[Component[Any]]) -> None:
        """Offer a class of the running program, as distribution "local"."""
        target = f"{component.__module__}:{component.__qualname__}"
        self._offers.append(Offer(kind, name, "local", "0", target, component))

    def offers(self, kind: str) -> list[Offer]:
        """All offers of a kind, built-ins first, then by distribution and name."""
        found = [offer for offer in self._offers if offer.kind == kind]
        return sorted(found, key=lambda o: (o.distribution != CORE, o.distribution, o.name))

    def find(self, kind: str, name: str) -> Offer:
        """The offer that a recipe's `type:` means.

        Raises:
          PluginError: nobody offers the name, or several distributions do.
        """
        offers, noun = self.offers(kind), KINDS[kind][1]
        wanted = _normalised(name)
        matching = [o for o in offers if name == o.name or wanted == _normalised(o.qualified)]
        core = [o for o in matching if o.distribution == CORE]
        if len(matching) == 1 or core:
            return (core or matching)[0]
        if matching:
            raise PluginError(
                f"{noun} {name!r} is offered by {listed(str(o) for o in matching)}; "
                f"write one of: {listed(o.qualified for o in matching)}"
            )
        known = [o.qualified if "/" in name else o.name for o in offers]
        raise PluginError(
            f"there is no {noun} called {name!r}.{did_you_mean(name, known)} "
            f"Installed: {listed(map(str, offers))}. A plugin that is missing here is not installed "
            "in this environment: see `rlframe plugins list`"
        )

    def load(self, kind: str, name: str) -> type[Component[Any]]:
        """Import the component that a recipe names and check that it keeps the contract.

        Raises:
          PluginError: it is not installed, can not be imported, or is not a component of this kind.
        """
        offer = self.find(kind, name)
        if isinstance(offer.source, type):
            return _checked(offer, offer.source)
        try:
            component = offer.source.load()
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{KINDS[kind][1]} {offer} could not be imported from {offer.target}: "
                f"{type(error).__name__}: {error} [{_place(offer, error)}]"
            ) from error
        return _checked(offer, component)


def _installed(kind: str) -> list[Offer]:
    """What the metadata of the environment declares; a distribution found twice counts once."""
    found: dict[tuple[str, str], Offer] = {}
    for point in entry_points(group=f"rlframe.{kind}"):
        dist = point.dist
        name, version = (dist.name, dist.version) if dist else ("unknown", "0")
        found.setdefault(
            (name, point.name), Offer(kind, point.name, name, version, point.value, point)
        )
    return list(found.values())


def _normalised(name: str) -> str:
    """A qualified name with its distribution spelt as the packaging specification normalises it."""
    distribution, slash, component = name.rpartition("/")
    return re.sub(r"[-_.]+", "-", distribution).lower() + slash + component


def _place(offer: Offer, error: BaseException) -> str:
    """Where in the plugin an import failed: its own last line, not one of a library it called."""
    frames = traceback.extract_tb(error.__traceback__)
    package = offer.target.partition(":")[0].partition(".")[0]
    own = [f for f in frames if package in (Path(f.filename).stem, *Path(f.filename).parts)]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def _checked(offer: Offer, component: object) -> type[Component[Any]]:
    base, noun = KINDS[offer.kind]
    if not (isinstance(component, type) and issubclass(component, base)):
        raise PluginError(f"{noun} {offer}: {offer.target} is not a subclass of {base.__name__}")
    api = component.rlframe_api
    if not (isinstance(api, tuple) and len(api) == 2 and all(isinstance(x, int) for x in api)):
        raise PluginError(f"{noun} {offer}: rlframe_api is {api!r}, but it must be (major, minor)")
    major, minor = api
    if major != API_VERSION[0] or minor > API_VERSION[1]:
        older = (major, minor) < API_VERSION
        raise PluginError(
            f"{noun} {offer} is written for plugin API {major}.{minor}, this rlframe speaks "
            f"{API_VERSION[0]}.{API_VERSION[1]}. Upgrade {offer.distribution if older else CORE}."
        )
    taken = component.reserved & set(component.Config.model_fields)
    if taken:
        raise PluginError(
            f"{noun} {offer}: its config declares {listed(taken)}, which belongs to the recipe"
        )
    return component

"""Which components are installed, read from metadata; importing is left to the run that needs one.

Built-ins are entry points of rlframe itself, in the same groups as everybody's. A bare name works
while it is unique; `distribution/name` always works; a built-in name cannot be shadowed.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import (
    EntryPoint,
    PackageNotFoundError,
    entry_points,
    requires,
    version,
)
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from rlframe.api.algorithm import AdvantageEstimator, PolicyLoss, RewardTransform, ValueLoss
from rlframe.api.component import (
    AuxiliaryLoss,
    Component,
    DataGenerator,
    HookPlugin,
    KLController,
    RewardProvider,
)
from rlframe.api.functions import reward_from_function
from rlframe.api.sampling import Sampler
from rlframe.errors import PluginError, RecipeError, did_you_mean, listed
from rlframe.registry.lint import misfits, unfit
from rlframe.registry.local import is_local, local_component, why
from rlframe.registry.offers import CORE, Offer, Rules, blocked_by_option, normalised
from rlframe.text import lines

KINDS: dict[str, tuple[type[Component[Any]], str]] = {
    "data_generators": (DataGenerator, "data generator"),
    "reward_providers": (RewardProvider, "reward"),
    "kl_controllers": (KLController, "KL controller"),
    "auxiliary_losses": (AuxiliaryLoss, "auxiliary loss"),
    "reward_transforms": (RewardTransform, "reward transform"),
    "advantage_estimators": (AdvantageEstimator, "advantage estimator"),
    "policy_losses": (PolicyLoss, "policy loss"),
    "value_losses": (ValueLoss, "value loss"),
    "samplers": (Sampler, "sampler"),
    "hooks": (HookPlugin, "hook plugin"),
}
"""Kind, the last part of its entry-point group -> (base class, what people call it)."""

FUNCTIONS = "rlframe.reward_functions"
"""Entry-point group of plain functions, which are rewards as well."""


class Registry:
    """The installed components, and those that a program added by hand.

    Args:
      block: distributions or distribution/name never to import, besides those that the environment
        variable RLFRAME_BLOCK_PLUGINS lists. What ships with rlframe can be blocked by name alone.
      local_code: whether a recipe may name a component in a Python file, `./file.py:Class`.

    If RLFRAME_ALLOW_PLUGINS is set, nothing but rlframe's own and what it lists is imported.
    """

    def __init__(self, *, block: Iterable[str] = (), local_code: bool = False) -> None:
        rules = Rules.of_environment(block)
        declared = (
            entry_points()
        )  # of all groups at once: each look reads all the metadata there is
        self._offers = [
            rules.applied(offer) for kind in KINDS for offer in _installed(kind, declared)
        ]
        self._local_code = local_code
        self._local: dict[str, tuple[type[Component[Any]], str]] = {}

    def add(
        self, kind: str, name: str, component: type[Component[Any]] | Callable[..., Any]
    ) -> None:
        """Offer a class, or a function as a reward, of the running program, as distribution "local"."""
        if not isinstance(component, type):
            component = reward_from_function(component, name=name)
        target = f"{component.__module__}:{component.__qualname__}"
        self._offers.append(Offer(kind, name, "local", "0", target, component))

    def offers(self, kind: str) -> list[Offer]:
        """All offers of a kind, built-ins first, then by distribution and name."""
        found = [offer for offer in self._offers if offer.kind == kind]
        return sorted(found, key=lambda o: (o.distribution != CORE, o.distribution, o.name))

    def blocks(self, name: str) -> bool:
        """Whether `name`, given as `block`, keeps anything from being imported."""
        reason = blocked_by_option(name)
        return any(offer.blocked == reason for offer in self._offers)

    def state(self, offer: Offer) -> str:
        """What metadata alone tells of an offer: "ok", or what keeps its bare name from working."""
        if offer.blocked:
            return offer.blocked
        if offer.distribution != CORE and (lacking := unmet(_requirements(offer.distribution))):
            return "; ".join(message for _, message, _ in lacking)
        rivals = [
            other
            for other in self.offers(offer.kind)
            if other.name == offer.name and other.distribution != offer.distribution
        ]
        if offer.distribution != CORE and rivals:
            return f"ok as {offer.qualified}; {listed(map(str, rivals))} has the name too"
        return "ok"

    def find(self, kind: str, name: str) -> Offer:
        """The offer that a recipe's `type:` means.

        Raises:
          PluginError: nobody offers the name, or several distributions do.
        """
        if is_local(name):
            return self._in_file(kind, name)
        offers, noun = self.offers(kind), KINDS[kind][1]
        wanted = normalised(name)
        matching = [o for o in offers if name == o.name or wanted == normalised(o.qualified)]
        matching = [o for o in matching if not o.blocked] or matching
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
          PluginError: it is not installed, cannot be imported, or is not a component of this kind.
        """
        offer = self.find(kind, name)
        if offer.blocked:
            raise PluginError(f"{KINDS[kind][1]} {offer} is {offer.blocked}")
        if isinstance(offer.source, type):
            return _checked(offer, offer.source)
        try:
            component = offer.source.load()
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{KINDS[kind][1]} {offer} could not be imported from {offer.target}: "
                f"{why(error, offer.target.partition(':')[0])}"
            ) from error
        return _checked(offer, component)

    def kind_in_file(self, name: str) -> str:
        """The kind of the component that `./file.py:Class` names.

        Raises:
          PluginError: as `find` does.
        """
        component, _ = self._local_component(name)
        for kind, (base, _) in KINDS.items():
            if issubclass(component, base):
                return kind
        bases = listed(base.__name__ for base, _ in KINDS.values())
        raise PluginError(f"{name!r} is of no kind: derive it from one of {bases}")

    def _in_file(self, kind: str, name: str) -> Offer:
        """A component of a Python file of the user's own, imported at once: it has no metadata."""
        component, digest = self._local_component(name)
        return Offer(kind, name, "local file", digest[:12], name, component)

    def _local_component(self, name: str) -> tuple[type[Component[Any]], str]:
        if not self._local_code:
            raise PluginError(
                f"{name!r} is code in a file, which runs only if you allow it: add --allow-local-code"
            )
        if name not in self._local:
            self._local[name] = local_component(name)
        return self._local[name]


def fingerprint(offer: Offer, component: type[Component[Any]], config: Any) -> dict[str, Any]:
    """What exactly a run uses: equal fingerprints mean equal code and equal settings.

    Args:
      offer: who offers the component.
      component: its class.
      config: its validated config.

    Returns:
      Plain data; `sha256` is of the package that the class is in, or of its file where that is no
      package or ships with rlframe, whose version says the rest. None without a file (a notebook).
    """
    return {
        "name": offer.name,
        "distribution": offer.distribution,
        "version": offer.version,
        "target": offer.target,
        "sha256": _digest_of_source(component),
        "config": config.model_dump(mode="json"),
    }


def _digest_of_source(component: type[Component[Any]]) -> str | None:
    try:
        file = inspect.getsourcefile(component)
        return None if file is None else _digest(_sources(component.__module__, Path(file)))
    except (TypeError, OSError):  # what inspect raises for a class of no file
        return None


def _sources(module: str, file: Path) -> dict[str, Path]:
    """What a component's code is made of: place in its package -> file."""
    top = module.partition(".")[0]
    init = getattr(sys.modules.get(top), "__file__", None)
    if top == CORE or init is None or Path(init).name != "__init__.py":
        return {"": file}
    package = Path(init).parent
    return {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*.py"))}


def _digest(sources: dict[str, Path]) -> str:
    """sha256 of one file as it is, or of the names and hashes of several."""
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sources.items()}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()


def unmet(requirements: Iterable[str]) -> list[tuple[int, str, type[RecipeError | PluginError]]]:
    """Which requirements of a recipe the environment does not meet.

    Args:
      requirements: as pip takes them, e.g. "rlframe-pid>=0.2".

    Returns:
      (position, what is wrong and the command that fixes it, the error it is) of each.
    """
    found: list[tuple[int, str, type[RecipeError | PluginError]]] = []
    for number, text in enumerate(requirements):
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            reason = lines(str(error))[0]
            found.append(
                (number, f"{text!r} is not a requirement as pip takes it: {reason}", RecipeError)
            )
            continue
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            have = version(wanted.name)
        except PackageNotFoundError:
            found.append(
                (number, f"{wanted.name} is not installed: pip install {text!r}", PluginError)
            )
            continue
        if not wanted.specifier.contains(have, prereleases=True):
            problem = f"{wanted.name} {have} is installed, but this recipe needs {text!r}"
            found.append((number, f"{problem}: pip install --upgrade {text!r}", PluginError))
    return found


def _requirements(distribution: str) -> list[str]:
    """What a distribution says it needs, extras left out."""
    try:
        return [text for text in requires(distribution) or [] if "extra ==" not in text]
    except PackageNotFoundError:
        return []


def _installed(kind: str, declared: Any) -> list[Offer]:
    """What the metadata of the environment declares; a distribution found twice counts once."""
    found: dict[tuple[str, str, str], Offer] = {}
    groups = [f"rlframe.{kind}"] + [FUNCTIONS] * (kind == "reward_providers")
    for point in (point for group in groups for point in declared.select(group=group)):
        dist = point.dist
        name, version = (dist.name, dist.version) if dist else ("unknown", "0")
        offer = Offer(kind, point.name, name, version, point.value, point)
        found.setdefault((name, point.name, point.group), offer)
    return list(found.values())


def _checked(offer: Offer, component: object) -> type[Component[Any]]:
    base, noun = KINDS[offer.kind]
    if isinstance(offer.source, EntryPoint) and offer.source.group == FUNCTIONS:
        if isinstance(component, type) or not callable(component):
            raise PluginError(
                f"{noun} {offer}: {offer.target} is no function. A class is offered through the "
                "entry-point group rlframe.reward_providers"
            )
        component = reward_from_function(component, name=offer.name)
    elif offer.kind == "reward_providers" and inspect.isroutine(component):
        raise PluginError(
            f"{noun} {offer}: {offer.target} is a function, which is offered through the entry-point "
            f"group {FUNCTIONS}"
        )
    if not (isinstance(component, type) and issubclass(component, base)):
        raise PluginError(f"{noun} {offer}: {offer.target} is not a subclass of {base.__name__}")
    if problems := unfit(component, distribution=offer.distribution):
        raise PluginError(f"{noun} {offer}: {'; '.join(problems)}")
    if issubclass(component, HookPlugin) and (wrong := misfits(component)):
        raise PluginError(f"{noun} {offer}: {'; '.join(wrong)}")
    return component

"""From a file to a validated recipe: compose, check every key, choose the components.

All mistakes are reported at once, sorted by line, each with the place, a guess and the alternatives.
Only the plugins that the recipe names are imported, and torch is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr, TypeAdapter, ValidationError

from rlframe.api.algorithm import AdvantageEstimator, EstimatorNeeds
from rlframe.api.answers import ContractError
from rlframe.api.component import Component, ComponentSpec, Needs, PluginConfig
from rlframe.api.description import refuse_bad_needs
from rlframe.errors import PluginError, RecipeError, RlframeError, listed
from rlframe.recipe import wording
from rlframe.recipe.compose import compose
from rlframe.recipe.conflicts import conflicts, has_critic
from rlframe.recipe.document import Document, Path_, Problem, dotted, leaves
from rlframe.recipe.references import (
    PPO_ONLY,
    broken_lookups,
    broken_names,
    broken_references,
)
from rlframe.recipe.schema import Recipe
from rlframe.recipe.yaml12 import read_text
from rlframe.redaction import digest_of_secret, lacks_credentials, without_credentials
from rlframe.registry.discovery import KINDS, Registry, unmet
from rlframe.registry.offers import Offer
from rlframe.registry.owners import offered, raised


@dataclass(frozen=True)
class Chosen:
    """A component that the recipe names: who offers it, its class and its validated config."""

    offer: Offer
    component: type[Component[Any]]
    config: PluginConfig


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that can be run, as far as is known without opening a model."""

    recipe: Recipe
    chosen: dict[Path_, Chosen]
    """The component at each path, e.g. ("rewards", "brevity")."""
    source: str
    """The text of the file, unchanged."""
    document: Document
    """What the recipe was made from, with the place of every value."""

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled in: plain data that loads to the same digest.

        Values of variables are left as `${env:NAME}`, and credentials of URLs are taken out.
        """
        shown: dict[str, Any] = self.document.shown(self._plain())
        return shown

    def _plain(self) -> dict[str, Any]:
        """The recipe with every default, secrets included.

        Without what nothing reads: a recipe may not name what belongs to PPO alone and have no PPO.
        """
        plain = self.recipe.model_dump(mode="json")
        for path, chosen in self.chosen.items():
            node: Any = plain
            for key in path:
                node = node[key]
            for name, value in chosen.config.model_dump(mode="json").items():
                # A nested component's own defaults are filled in by its own entry of `chosen`. A
                # default that is a secret would come as asterisks.
                if not isinstance(getattr(chosen.config, name), _SECRET) or name in node:
                    node[name] = value
        unread = PPO_ONLY if self.recipe.ppo is None else ()
        return {section: value for section, value in plain.items() if section not in unread}

    def variables(self) -> dict[str, dict[str, Any]]:
        """Key -> by what its value is known again, for each that the environment or a URL hides."""
        return {
            dotted(path): {"value": digest_of_secret(json.dumps(value, default=str))}
            for path, value in self.document.secrets(self._plain())
        }

    @property
    def digest(self) -> str:
        """sha256 of the resolved recipe: equal digests describe the same run.

        In place of a secret a hash of it is digested, whatever the variable is called.
        """
        plain = _with_hashes(self._plain(), self.variables(), "")
        # The order of keys means nothing but where each joins or wraps those beside it.
        for ordered in {"rewards", "hooks"} & plain.keys():
            plain[ordered] = list(plain[ordered].items())
        canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


_SECRET = SecretStr | SecretBytes


def _with_hashes(node: Any, hashes: Mapping[str, Mapping[str, Any]], path: str) -> Any:
    if path in hashes:
        return hashes[path]
    if isinstance(node, dict):
        return {
            key: _with_hashes(value, hashes, f"{path}.{key}" if path else str(key))
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_with_hashes(value, hashes, f"{path}.{i}") for i, value in enumerate(node)]
    return node


Look = Callable[[Recipe, Mapping[Path_, Chosen]], Iterable[tuple[Path_, str]]]
"""(path, message) of each mistake that is found outside of the recipe: in data and folders of models.

Sections of the recipe that are not valid are None, and components that are not valid are left out.
"""


def load_recipe(
    path: Path,
    overrides: Iterable[str] = (),
    *,
    registry: Registry | None = None,
    look: Look | None = None,
) -> LoadedRecipe:
    """Read a recipe and check its keys, names, components and that its files are there.

    Args:
      path: a YAML file.
      overrides: `key.path=value` or `~key.path`, applied in order.
      registry: the installed components; a fresh look at the environment if left out.
      look: what else to look at, so that its mistakes come in one message with those of the recipe.

    Raises:
      RecipeError: any number of mistakes, each on a line of its own.
      PluginError: nothing is wrong but components that are missing or broken.
    """
    document = compose(path, overrides)
    problems: list[tuple[Path_, str, type[RlframeError]]] = []
    registry = registry or Registry()
    recipe = None
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        # Components are looked at all the same, so that one round shows every mistake.
        mistakes = wording.explain(error, Recipe, document.data, beside=frozenset({"extends"}))
        hints = _hints(document.data, registry)
        mistakes += broken_lookups(_valid_sections(document.data))
        problems = [(at, message + hints.get(at, ""), RecipeError) for at, message in mistakes]
        if document.incomplete:
            problems = [found for found in problems if not found[1].startswith(wording.REQUIRED)]
        specs = list(_specs_in_data(document.data))
    else:
        problems = [(at, message, RecipeError) for at, message in broken_references(recipe)]
        specs = list(_specs(recipe, ()))
    problems += _unmet(document.data.get("requires"))
    chosen: dict[Path_, Chosen] = {}
    for where, spec in specs:
        if len(problems) > wording.MOST:
            break
        problems += _choose(where, spec, registry, chosen)
    valid = _valid_sections(document.data)
    problems += _broken_names(valid, chosen)
    problems += _unusable(document, chosen)
    if recipe is not None:
        problems += [(at, message, RecipeError) for at, message in conflicts(recipe, chosen)]
    if look is not None:
        problems += [(at, message, RecipeError) for at, message in look(valid, chosen)]
    document.check(Problem(document.place(at), at, message, kind) for at, message, kind in problems)
    assert recipe is not None  # or a problem was found
    recipe = _as_the_estimator_says(recipe, chosen)
    return LoadedRecipe(recipe, chosen, without_credentials(read_text(path)), document)


def _as_the_estimator_says(recipe: Recipe, chosen: dict[Path_, Chosen]) -> Recipe:
    """The recipe with what its advantage estimator decides: is there a critic, is there whitening."""
    critic, found = has_critic(chosen), chosen.get(("algorithm", "advantages"))
    algorithm, changed = recipe.algorithm, {}
    if algorithm.whiten_advantages is None and found is not None:
        whitens = getattr(found.component, "whiten", True)
        algorithm = algorithm.model_copy(update={"whiten_advantages": whitens})
    if critic is False:
        algorithm = algorithm.model_copy(update={"value_loss": None})
        changed["model"] = recipe.model.model_copy(update={"critic": None})
        chosen.pop(("algorithm", "value_loss"), None)
    return recipe.model_copy(update={"algorithm": algorithm, **changed})


def _unusable(
    document: Document, chosen: Mapping[Path_, Chosen]
) -> Iterator[tuple[Path_, str, type[RlframeError]]]:
    """Secrets that stand in the recipe itself, or have been taken out of it."""
    advice = "Write ${env:NAME}, and put it in that environment variable"
    for path, value in leaves(document.data):
        if isinstance(value, str) and lacks_credentials(value):
            message = (
                f"the credentials of this URL were not kept. {advice}, or give it as an override"
            )
            yield path, message, RecipeError
    for where, component in chosen.items():
        for name in component.config.model_fields_set:
            path = (*where, name)
            literal = "${env:" not in document.concealed.get(path, "")
            if isinstance(getattr(component.config, name), _SECRET) and literal:
                yield path, f"a secret has no place in a recipe. {advice}", RecipeError


def _broken_names(
    recipe: Recipe, chosen: dict[Path_, Chosen]
) -> list[tuple[Path_, str, type[RlframeError]]]:
    """What the components name or need that the recipe does not have."""
    found: list[tuple[Path_, str, type[RlframeError]]] = []
    for where, choice in chosen.items():
        try:
            needs = choice.component.needs(choice.config)
        except (Exception, SystemExit) as error:
            problem = raised(error, offered(choice.offer), choice.component, "needs")
            found.append((where, problem, PluginError))
            continue
        wanted = EstimatorNeeds if issubclass(choice.component, AdvantageEstimator) else Needs
        try:
            refuse_bad_needs(needs, wanted)
        except ContractError as error:
            found.append((where, f"{choice.offer} {error}", PluginError))
            continue
        broken = broken_names(recipe, where, choice.config, needs)
        found += [(at, message, RecipeError) for at, message in broken]
    return found


def _unmet(requires: Any) -> list[tuple[Path_, str, type[RlframeError]]]:
    """What `requires:` asks for and the environment lacks; only text is looked at."""
    texts = requires if isinstance(requires, list) else []
    if not all(isinstance(text, str) for text in texts):
        return []  # reported with the rest of the recipe
    return [(("requires", number), message, kind) for number, message, kind in unmet(texts)]


def _valid_sections(data: dict[str, Any]) -> Recipe:
    """What is valid of a recipe that is not, so that names in it can be looked up all the same."""
    sections: dict[str, Any] = {}
    for name, field in Recipe.model_fields.items():
        annotation: Any = field.annotation
        lacking = name in data or field.is_required()
        sections[name] = None if lacking else field.get_default(call_default_factory=True)
        if name in data:
            with suppress(ValidationError):  # reported with the rest of the recipe
                sections[name] = TypeAdapter(annotation).validate_python(data[name])
    return Recipe.model_construct(**sections)


def _specs(node: Any, path: Path_) -> Iterator[tuple[Path_, ComponentSpec]]:
    """Every component named below a validated model, with its path.

    A component's own keys are not validated yet, but a reward's transforms stand beside them.
    """
    if isinstance(node, ComponentSpec):
        yield path, node
    for key, value in _children(node):
        yield from _specs(value, (*path, key))


def _children(node: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(node, BaseModel):
        return [(name, getattr(node, name)) for name in type(node).model_fields]
    if isinstance(node, dict):
        return list(node.items())
    return enumerate(node) if isinstance(node, list | tuple) else ()


def _specs_in_data(data: dict[str, Any]) -> Iterator[tuple[Path_, ComponentSpec]]:
    """The same for a recipe that does not validate: whatever can be read as a component."""
    for path, kind in wording.component_slots(data):
        node: Any = data
        for key in path:
            node = node[key]
        try:
            yield path, kind.model_validate(node)
        except ValidationError:
            continue  # reported with the rest of the recipe


def _hints(data: dict[str, Any], registry: Registry) -> dict[Path_, str]:
    """What to say beside a mistake in the shape of a component."""
    hints: dict[Path_, str] = {}
    rewards = data.get("rewards")
    for name, entry in rewards.items() if isinstance(rewards, dict) else ():
        chain = entry.get("transforms") if isinstance(entry, dict) else None
        if isinstance(chain, str | dict):
            named = f"{{type: {chain}}}" if isinstance(chain, str) else "{type: ...}"
            hints["rewards", name, "transforms"] = f". Write [{named}]: several apply in turn"
    for path, spec in wording.component_slots(data):
        noun = KINDS[spec.kind][1]
        node: Any = data
        for key in path:
            node = node[key]
        names = listed(offer.name for offer in registry.offers(spec.kind))
        hints[*path, "type"] = f"; it names a {noun}: {names}"
        if isinstance(node, str):
            hints[path] = f". Write {{type: {node}}}"
        elif node is None:
            hints[path] = f". To remove what was inherited write `~{path[-1]}:`"
    return hints


def _choose(
    path: Path_, spec: ComponentSpec, registry: Registry, chosen: dict[Path_, Chosen]
) -> list[tuple[Path_, str, type[RlframeError]]]:
    """Find the component, validate its keys, and do the same for components inside it."""
    try:
        component = registry.load(spec.kind, spec.type)
    except PluginError as error:
        message = f"{error}{_other_kind(spec, registry)}"
        return [((*path, "type"), message, PluginError)]
    try:
        config = component.Config.model_validate(spec.options)
    except ValidationError as error:
        return [
            ((*path, *inner), message, RecipeError)
            for inner, message in wording.explain(
                error,
                component.Config,
                spec.options,
                at=path,
                beside=frozenset(type(spec).model_fields),
            )
        ]
    except (Exception, SystemExit) as error:  # of a validator, which pydantic lets through
        who = offered(registry.find(spec.kind, spec.type))
        message = raised(error, who, component.Config, component.Config.__name__)
        return [(path, message, PluginError)]
    chosen[path] = Chosen(registry.find(spec.kind, spec.type), component, config)
    return [
        problem
        for inner, nested in _specs(config, ())
        for problem in _choose((*path, *inner), nested, registry, chosen)
    ]


def _other_kind(spec: ComponentSpec, registry: Registry) -> str:
    """A component of that name which stands in the wrong part of the recipe."""
    kinds = [
        noun
        for kind, (_, noun) in KINDS.items()
        if kind != spec.kind and any(o.name == spec.type for o in registry.offers(kind))
    ]
    return f". That is the name of another kind of component: {kinds[0]}" if kinds else ""

"""What `rlframe validate` looks at outside of a recipe: its data, and the folders of its models.

Everything here answers without torch and without opening a model. What needs a tokenizer or the network
is left to `check`, which a run starts with; generators, which are code, do not run here either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

from rlframe.api.lengths import context_tokens
from rlframe.api.references import references
from rlframe.compose.datasets import DataSets
from rlframe.data import contents
from rlframe.data.prompts import filled, longest_prompt, template_columns
from rlframe.data.rows import Mapped
from rlframe.data.stage_rows import make_all
from rlframe.errors import RecipeError, RlframeError, did_you_mean
from rlframe.models import files
from rlframe.recipe import Chosen
from rlframe.recipe.data import DataNames, Dataset
from rlframe.recipe.document import Path_, dotted
from rlframe.recipe.references import initials, is_there
from rlframe.recipe.schema import NewModel, NewTokenizer, Recipe
from rlframe.recipe.section import RecipeSection
from rlframe.stage_table import REFERENCE, imported, running
from rlframe.types import Row

Found = tuple[Path_, str]
"""(path in the recipe, what is wrong with what it names)."""


def look(recipe: Recipe, chosen: Mapping[Path_, Chosen]) -> list[Found]:
    """Every mistake of the data and the folders of models that a recipe names.

    Args:
      recipe: sections that are not valid are None.
      chosen: the components at each path; without those that are not valid.
    """
    data = _Data(recipe, chosen)
    return [*data.faults(), *_Folders(recipe, chosen).faults()]


def columns_of(chosen: Chosen) -> set[str]:
    """The columns of the prompts' data that a component reads."""
    named = {r.name for r in references(chosen.config) if r.to == "column"}
    return named | chosen.component.needs(chosen.config).columns


def left_out(recipe: Recipe, chosen: Mapping[Path_, Chosen]) -> list[str]:
    """What a valid recipe names that takes the network, or running code, to look at."""
    found = [
        f"data.{name} (a generator)"
        if spec.hub is None
        else f"data.{name} ({spec.hub.id!r} of the hub)"
        for name, spec in recipe.data.items()
        if spec.path is None
    ]
    for path, name in _Folders(recipe, chosen).named():
        if files.on_this_machine(name) is None:
            found.append(f"{dotted(path)} ({name!r} of the hub)")
    return found


class _Collected:
    """Mistakes, each with its path."""

    def __init__(self) -> None:
        self.found: list[Found] = []

    @contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        try:
            yield
        except (RlframeError, ValueError) as error:
            self.found.append(_deeper(path, str(error)))


def _deeper(path: Path_, message: str) -> Found:
    """An error whose words may begin with a key of what it is about: `columns.text: ...`."""
    key, colon, rest = message.partition(": ")
    known: Collection[str] = () if path else Recipe.model_fields
    if path and path[0] == "data":
        known = Dataset.model_fields
    elif len(path) == 1 and path[0] in Recipe.model_fields:
        known = _keys_of(str(path[0]))
    if colon and re.fullmatch(r"[\w.]+", key) and key.partition(".")[0] in known:
        return (*path, *key.split(".")), rest
    return path, message


def _keys_of(section: str) -> Collection[str]:
    """The keys of a section of the recipe; none where it is a mapping of names."""
    annotation: Any = Recipe.model_fields[section].annotation
    kinds = (annotation, *get_args(annotation))  # it may be left out
    sections = [
        kind for kind in kinds if isinstance(kind, type) and issubclass(kind, RecipeSection)
    ]
    return sections[0].model_fields if sections else ()


class _Data:
    """The data sets that can be read here, and who reads them."""

    def __init__(self, recipe: Recipe, chosen: Mapping[Path_, Chosen]) -> None:
        self._recipe, self._chosen = recipe, chosen
        stored = {
            name: spec
            for name, spec in (recipe.data or {}).items()
            if spec.path is not None
            and all(map(is_there, (spec.path,) if isinstance(spec.path, str) else spec.path))
        }
        self._sets = DataSets(stored, chosen, [])
        self._problems = _Collected()
        self._readable: set[str] = set()
        for name in stored:
            with self._problems.at("data", name):
                self._sets.read(name)
                self._readable.add(name)

    def faults(self) -> list[Found]:
        """All of them."""
        recipe = self._recipe
        for stage in running(recipe):
            if stage.check is not None:
                self._check_stage(stage.name, imported(stage.check))
        if recipe.prompts is not None:  # which a recipe without PPO may not have
            self._check_prompts(recipe.prompts)
        for path, chosen in self._chosen.items():
            self._check_component(path, chosen)
        return self._problems.found

    def _readers(self, data: DataNames) -> list[str] | None:
        """The names of data sets that are all readable; None if one is not."""
        names = [data] if isinstance(data, str) else list(data)
        return names if self._readable.issuperset(names) else None

    def _check_stage(self, stage: str, check: Callable[..., None]) -> None:
        section, at = getattr(self._recipe, stage), partial(self._problems.at, stage)
        names = self._readers(section.data)
        if names is None:
            return  # reported with the data sets
        check(section, {name: self._sets.split(name) for name in names}, at)
        with at("data"):
            self._require_both(section.data)

    def _require_rows(self, data: DataNames, check: Callable[[Row], object]) -> None:
        """Each row of each data set passes a check; the first that does not is named."""
        for name in self._readers(data) or ():
            split = self._sets.split(name)
            for part in (split.train, split.heldout):
                make_all(Mapped(part, check, within=f"data.{name}, "))

    def _require_both(self, data: DataNames) -> None:
        names = self._readers(data)
        if names is not None:
            splits = [self._sets.split(name) for name in names]
            counts = {
                "to train on": sum(len(split.train) for split in splits),
                "held out to measure it": sum(len(split.heldout) for split in splits),
            }
            self._sets.require_both(counts, data)

    def _check_prompts(self, section: Any) -> None:
        if section.template is None:
            check: Callable[[Row], Any] = partial(
                contents.check_prompt, first_words=section.first_words is not None
            )
            with self._problems.at("prompts", "data"):
                self._require_rows(section.data, check)
                self._require_both(section.data)
            return
        with self._problems.at("prompts", "template"):
            template_columns(section.template)
            self._require_rows(section.data, partial(filled, section.template))
        with self._problems.at("prompts", "data"):
            self._require_both(section.data)

    def _check_component(self, path: Path_, chosen: Chosen) -> None:
        try:
            needs = chosen.component.needs(chosen.config)
            columns = columns_of(chosen)
        except (Exception, SystemExit):
            return  # reported with the recipe
        section = self._recipe.prompts
        if columns and section is not None and self._readers(section.data) is not None:
            with self._problems.at(*path):
                self._sets.require_columns(columns, section.data)
        for wanted, check in (
            (needs.texts, contents.check_example),
            (needs.demonstrations, contents.check_demonstration),
        ):
            for name in sorted(wanted & self._readable):
                with self._problems.at(*path):
                    self._require_rows(name, check)


class _Folders:
    """The folders that a recipe names as models or tokenizers; ids of the hub are not looked up."""

    def __init__(self, recipe: Recipe, chosen: Mapping[Path_, Chosen]) -> None:
        self._recipe, self._chosen = recipe, chosen
        self._problems = _Collected()

    def faults(self) -> list[Found]:
        """All of them."""
        for path, name in self.named():
            with self._problems.at(*path):
                self._check_model(path, name)
        policy = getattr(self._recipe.model, "policy", None)
        if isinstance(policy, NewModel):
            self._check_new(policy)
        self._check_room()
        self._check_system()
        return self._problems.found

    def named(self) -> Iterator[tuple[Path_, str]]:
        """(path, name) of each saved model."""
        model = self._recipe.model
        named: list[tuple[Path_, Any]] = []
        if model is not None:
            named.append((("model", "policy"), model.policy))
        if model is not None and (self._recipe.ppo or self._recipe.kl):  # or one that is not valid
            named += [
                (("model", "reference"), model.reference),
                (("model", "critic", "initial"), getattr(model.critic, "initial", None)),
            ]
        named += initials(self._recipe).items()
        for path, chosen in self._chosen.items():
            named += [
                ((*path, *r.path), r.name) for r in references(chosen.config) if r.to == "model"
            ]
        for path, name in named:
            copied = name == "policy" and path[-1] == "initial"
            if isinstance(name, str) and not copied and not name.startswith(REFERENCE):
                yield path, name

    def _check_model(self, path: Path_, name: str) -> None:
        folder = files.on_this_machine(name)
        if folder is None:
            return
        folder.check_model()
        folder.check_config(_model_types())
        folder.check_weights()
        if path == ("model", "policy"):
            folder.check_tokenizer()

    def _check_new(self, policy: NewModel) -> None:
        with self._problems.at("model", "policy", "architecture"):
            kind, known = policy.architecture.get("model_type"), _model_types()
            if kind is None:
                raise RecipeError("`model_type` is required, as in `llama`")
            if known is not None and kind not in known:
                guess = did_you_mean(str(kind), known)
                raise RecipeError(f"transformers has no model type {kind!r}.{guess}")
        if isinstance(policy.tokenizer, NewTokenizer):
            return
        with self._problems.at("model", "policy", "tokenizer"):
            folder = files.on_this_machine(policy.tokenizer)
            if folder is not None:
                folder.check_tokenizer()

    def _check_room(self) -> None:
        """A prompt and its response fit into what the policy reads."""
        recipe, context = self._recipe, self._context()
        if recipe.ppo is None or recipe.rollout is None or context is None:
            return
        wanted = recipe.prompts.max_tokens if recipe.prompts is not None else None
        response = recipe.rollout.max_new_tokens
        with self._problems.at():
            longest_prompt(context, response=response, wanted=wanted, model="the model")

    def _check_system(self) -> None:
        """A system's message needs a chat template, which a new tokenizer never has."""
        policy, section = getattr(self._recipe.model, "policy", None), self._recipe.prompts
        name = policy.tokenizer if isinstance(policy, NewModel) else policy
        if name is None or section is None or section.system is None:
            return
        try:
            folder = files.on_this_machine(name) if isinstance(name, str) else None
            lacks = folder is not None and not folder.has_template()
        except RecipeError:
            return  # reported with the folder
        if lacks or isinstance(name, NewTokenizer):
            with self._problems.at("prompts", "system"):
                raise RecipeError("the tokenizer has no chat template, so nothing can hold it")

    def _context(self) -> int | None:
        """Most tokens that the policy reads, if its config says so itself."""
        policy = getattr(self._recipe.model, "policy", None)
        written: Mapping[str, Any] = {}
        if isinstance(policy, NewModel):
            written = policy.architecture
        elif isinstance(policy, str):
            try:
                folder = files.on_this_machine(policy)
                written = {} if folder is None else folder.json(files.CONFIG)
            except RecipeError:
                return None  # reported with the folder
        # Beware: a key that is not written has a default, which only transformers knows.
        inner = written.get("text_config")
        text = SimpleNamespace(**{**written, **(inner if isinstance(inner, dict) else {})})
        text.get_text_config = lambda **_: text
        return context_tokens(text)


_TYPE = re.compile(r'^ +\(?"([^"]+)"[,:] "\w+Config"', re.MULTILINE)


def _model_types() -> frozenset[str] | None:
    """The model types of transformers, read from the two files that list them; None if it moved them.

    Importing transformers to ask it takes seconds, since it imports torch.
    """
    spec = find_spec("transformers")
    places = (spec.submodule_search_locations or ()) if spec is not None else ()
    found: set[str] = set()
    for place in places:
        for name in ("auto_mappings.py", "configuration_auto.py"):
            file = Path(place) / "models" / "auto" / name
            if file.is_file():
                found.update(_TYPE.findall(file.read_text(encoding="utf-8")))
                found.update(re.findall(r'\{"([^"]+)": "\w+Config"\}', file.read_text("utf-8")))
    return frozenset(found) if len(found) > 100 else None

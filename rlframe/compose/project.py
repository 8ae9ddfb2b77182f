"""What can be known before anything trains: data, tokenizer, prompts, and every component's own check.

All mistakes that can be found without training are found here, before hours are spent.
"""

from __future__ import annotations

import copy
from collections.abc import MutableSequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from rlframe.api.answers import ContractError
from rlframe.api.component import Context, Instance, RewardSpec
from rlframe.api.unchanged import Surroundings
from rlframe.compose.datasets import DataSets
from rlframe.compose.encoded import EncodedData
from rlframe.compose.lengths import Lengths
from rlframe.compose.machine import runtime_of
from rlframe.compose.models import Models
from rlframe.compose.places import at
from rlframe.compose.profiles import Profiles
from rlframe.compose.prompts import Parts, PromptSource
from rlframe.compose.stage_context import ProjectStage
from rlframe.data.encode import RowEncoder
from rlframe.data.split import Split, texts_of
from rlframe.data.tokenizer import check_special_tokens, train_tokenizer
from rlframe.distributed.runtime import DTYPES
from rlframe.errors import PluginError, RecipeError
from rlframe.models.pretrained import Pretrained
from rlframe.recipe import Chosen, LoadedRecipe
from rlframe.recipe.references import broken_stage
from rlframe.recipe.schema import NewModel, NewTokenizer
from rlframe.registry.discovery import Registry
from rlframe.registry.nested import NestedReward
from rlframe.registry.owners import component_errors, offered
from rlframe.registry.relay import Relay
from rlframe.stage_table import REFERENCE, imported, referred, running
from rlframe.stages.stage import StageRun

T = TypeVar("T")


class Project:
    """A recipe with its data and tokenizer, checked.

    Args:
      loaded: a validated recipe.
      directory: where the stages' results will lie.
      registry: the installed components.
    """

    def __init__(self, loaded: LoadedRecipe, directory: Path, registry: Registry) -> None:
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.directory = directory
        self._registry = registry
        self.runtime = runtime_of(self.recipe.runtime)
        self.dtype = DTYPES[self.recipe.runtime.precision]
        self.added_tokens: frozenset[str] = frozenset()
        """Tokens that `model.pad_token` adds to those of the policy's tokenizer."""
        self.notes: list[str] = []
        """What was found that is no mistake, and that should be said."""
        self.relay: Relay | None = None
        """That of PPO, once it is being put together: nested rewards are called through it."""

    # Data

    @cached_property
    def datasets(self) -> DataSets:
        return DataSets(self.recipe.data, self.loaded.chosen, self.notes)

    def split(self, name: str) -> Split:
        """A data set of the recipe in its two parts."""
        return self.datasets.split(name)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's, trained first if the recipe says so."""
        policy, pad = self.recipe.model.policy, self.recipe.model.pad_token
        wanted = policy.tokenizer if isinstance(policy, NewModel) else policy
        if isinstance(wanted, NewTokenizer):
            rows = self.split(wanted.data).train  # an error there has its place already
            with at(f"data.{wanted.data}"):
                tokenizer: Any = train_tokenizer(
                    texts_of(rows),
                    vocab_size=wanted.vocab_size,
                    lowercase=wanted.lowercase,
                )
        else:
            where = "model.policy" if wanted == policy else "model.policy.tokenizer"
            saved = self.models.pretrained(where, wanted)
            _ = saved.config if wanted == policy else None  # what is no model lacks a tokenizer too
            tokenizer = saved.tokenizer
        name = "a new tokenizer" if isinstance(wanted, NewTokenizer) else wanted
        self.added_tokens = check_special_tokens(tokenizer, name=name, pad_token=pad)
        return tokenizer

    @cached_property
    def models(self) -> Models:
        """Those that the recipe names."""
        return Models(self)

    @cached_property
    def encoder(self) -> RowEncoder:
        return RowEncoder(self.tokenizer)

    @cached_property
    def data(self) -> EncodedData:
        """The data sets as tokens."""
        return EncodedData(self)

    @cached_property
    def stages(self) -> dict[str, StageRun]:
        """What runs each stage of the recipe, by its name and in order."""
        return {
            stage.name: imported(stage.run)(
                getattr(self.recipe, stage.name), ProjectStage(self, stage)
            )
            for stage in running(self.recipe)
        }

    @cached_property
    def prompts(self) -> Parts:
        """(train, held-out) prompts of PPO, each short enough for its response."""
        return PromptSource(self, self.data).prompts()

    @cached_property
    def lengths(self) -> Lengths:
        """The configs of the models, and how many tokens these read."""
        return Lengths(self)

    @cached_property
    def context_tokens(self) -> int | None:
        """Most tokens that the policy reads; None if nothing limits them."""
        return self.lengths.tokens("model.policy")

    @cached_property
    def profiles(self) -> Profiles:
        """How the policy and the reference are run, and over which ids."""
        return Profiles(self)

    # Components

    @cached_property
    def context(self) -> Context:
        """What rewards are built with."""
        return Context(
            device=self.runtime.device,
            dtype=self.dtype,
            tokenizer=self.tokenizer,
            seed=self.recipe.seed,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            samples_per_prompt=self.recipe.rollout.samples_per_prompt,
            columns=self._prompt_columns(),
            rewards=frozenset(self.recipe.rewards),
            prepare=self.runtime.frozen,
            model_path=self.model_path,
            pretrained=lambda name: Pretrained(self.model_path(name)),
            training_rows=lambda name: self.data.rows(name)[0],
            tokenize=self.encoder.example,
            build_reward=lambda spec: self._nested(spec, self.context, []),
            tokenizer_of=self.tokenizer_of,
            prompts=lambda: [prompt for part in self.prompts for prompt in part],
            max_new_tokens=self.recipe.rollout.max_new_tokens,
        )

    @cached_property
    def _context_of_others(self) -> Context:
        """What is no reward may ask its models at any time, so that they do not wait elsewhere."""
        return replace(self.context, prepare=self.runtime.replicated)

    def _prompt_columns(self) -> frozenset[str]:
        if self.recipe.prompts is None:
            return frozenset()
        return self.datasets.columns(self.recipe.prompts.data)

    def model_path(self, name: str) -> str:
        """A path or hub id as it is; `stage:NAME` is where that stage of this run leaves its model.

        Raises:
          RecipeError: the recipe has no such stage.
        """
        if not name.startswith(REFERENCE):
            return name
        broken = broken_stage(name, self.recipe)
        if broken is not None:
            raise RecipeError(broken)
        return str(self.directory / name.removeprefix(REFERENCE))

    def tokenizer_of(self, name: str) -> PreTrainedTokenizerBase:
        """The tokenizer that goes with a model of the recipe, to keep and to change."""
        stage = referred(name)
        if stage is not None:
            return copy.deepcopy(self.models.tokenizer_of(stage))
        return Pretrained(name).tokenizer

    def instance(self, *path: str | int) -> Instance[Any]:
        """Build the component that stands at a path of the recipe."""
        chosen = self.loaded.chosen[path]
        with at(".".join(map(str, path))):
            context = self.context if path[0] == "rewards" else self._context_of_others
            component = _built(chosen, self._inside(context, path))
        # One of a list has no name of its own.
        last = path[-1] if isinstance(path[-1], str) else ".".join(map(str, path[1:]))
        component.name = last
        return Instance(last, str(chosen.offer), component)

    def _inside(self, context: Context, path: tuple[str | int, ...]) -> Context:
        """A context of the component at `path`, whose nested rewards are named after their places."""
        left = [place for place in self.loaded.chosen if place[: len(path)] == path != place]
        return replace(context, build_reward=lambda spec: self._nested(spec, context, left))

    def _nested(
        self, spec: RewardSpec, context: Context, places: MutableSequence[tuple[str | int, ...]]
    ) -> NestedReward:
        """A reward for another component, which takes the first of `places` that names it."""
        component: Any = self._registry.load(spec.kind, spec.type)
        config = component.Config.model_validate(spec.options)
        chosen = self.loaded.chosen
        same = (p for p in places if (chosen[p].component, chosen[p].config) == (component, config))
        place = next(same, None)
        if place is not None:
            places.remove(place)
        offer = self._registry.find(spec.kind, spec.type)
        inner = context if place is None else self._inside(context, place)
        built = _built(Chosen(offer, component, config), inner)
        built.name = spec.type if place is None else ".".join(map(str, place[1:]))
        return NestedReward(built, lambda: self.relay)


def _built(chosen: Chosen, context: Context) -> Any:
    """A component, which must not have changed what it shares with the policy."""
    who, surroundings = offered(chosen.offer), Surroundings(context.tokenizer)
    with component_errors(who, chosen.component, "__init__", raises=PluginError):
        component = chosen.component(chosen.config, context)
    try:
        surroundings.refuse_change()
    except ContractError as error:
        raise PluginError(f"{who} {error}") from error
    return component

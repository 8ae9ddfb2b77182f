"""What can be known before anything trains: data, tokenizer, prompts, and every component's own check.

All mistakes that can be found without training are found here, before hours are spent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig, PreTrainedTokenizerBase

from rlframe.build.encoded import EncodedData
from rlframe.build.machine import runtime_of
from rlframe.build.models import Models
from rlframe.data import sources
from rlframe.data.encode import RowEncoder
from rlframe.data.examples import Prepared
from rlframe.data.fitting import Pair
from rlframe.data.tokenizer import check_special_tokens, train_tokenizer
from rlframe.distributed.runtime import DTYPES
from rlframe.errors import RecipeError, RlframeError, did_you_mean, listed
from rlframe.hooks.component import Component, Context, DataGenerator, Instance, RewardSpec
from rlframe.hooks.registry import Registry
from rlframe.models.pretrained import Pretrained
from rlframe.recipe import Chosen, LoadedRecipe
from rlframe.recipe.schema import Dataset, NewModel, NewTokenizer
from rlframe.types import Prompt, Row, TokenExample

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
        self._splits: dict[str, sources.Split] = {}

    # Data

    def split(self, name: str) -> sources.Split:
        """A data set of the recipe in its two parts.

        Raises:
          RecipeError: it is not in the recipe, or empty.
        """
        if name not in self.recipe.data:
            raise RecipeError(
                f"there is no data set {name!r}.{did_you_mean(name, self.recipe.data)} `data:` holds "
                f"{listed(self.recipe.data)}"
            )
        if name not in self._splits:
            with at(f"data.{name}"):
                generator = self.loaded.chosen.get(("data", name, "generator"))
                self._splits[name] = _read(self.recipe.data[name], generator)
        return self._splits[name]

    def place(self, name: str, row: Row) -> str:
        """Where a row of a data set stands. Looked up where an error needs it."""
        spec = self.recipe.data[name]
        if spec.generator is not None:
            return "a generated row"
        rows = sources.with_roles(_stored(spec), spec.columns.model_dump())
        for number, raw in enumerate(rows, 1):
            if all(row.get(key) == value for key, value in raw.items()):
                return f"row {number}" + (f" of {spec.path}" if spec.path else "")
        return "a row"

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's, trained first if the recipe says so."""
        policy, pad = self.recipe.model.policy, self.recipe.model.pad_token
        wanted = policy.tokenizer if isinstance(policy, NewModel) else policy
        if isinstance(wanted, NewTokenizer):
            with at(f"data.{wanted.data}"):
                tokenizer: Any = train_tokenizer(
                    sources.texts_of(self.split(wanted.data).train),
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
    def sft_examples(self) -> Prepared[TokenExample]:
        """Examples of the sft stage."""
        with at("sft"):
            return self.data.demonstrations()

    @cached_property
    def pairs(self) -> Prepared[Pair]:
        """Pairs of the reward_model stage."""
        with at("reward_model"):
            return self.data.preferences()

    @cached_property
    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """(train, held-out) prompts of PPO, each short enough for its response."""
        section = self.recipe.prompts
        assert section is not None
        split = self.split(section.data)
        with at("prompts"):
            read = self.data.located(
                section.data, partial(self.encoder.prompt, first_words=section.first_words)
            )
            train, heldout = (
                self._fitting([read(row) for row in rows], drop=section.too_long == "drop")
                for rows in self.data.rows(section.data)
            )
        if section.first_words is not None:
            share = self.recipe.data[section.data].heldout
            train, heldout = _openings_apart(train, heldout, share=share)
        for part, prompts in (("training", train), ("held-out", heldout)):
            if not prompts:
                raise RecipeError(
                    f"prompts.data: data set {section.data!r} leaves no {part} prompts "
                    f"({len(split.train)} rows to train on, {len(split.heldout)} held out; "
                    f"data.{section.data}.heldout is {self.recipe.data[section.data].heldout})"
                )
        return train, heldout

    def _fitting(self, prompts: list[Prompt], *, drop: bool) -> list[Prompt]:
        response, context = self.recipe.rollout.max_new_tokens, self.context_tokens
        if context is None:
            return prompts
        long = [p for p in prompts if len(p.ids) + response > context]
        if long and not drop:
            worst = max(long, key=lambda p: len(p.ids))
            raise RecipeError(
                f"{len(long)} of {len(prompts)} prompts are longer than the context allows: the model "
                f"reads {context} tokens, rollout.max_new_tokens is {response}, and the longest prompt "
                f"has {len(worst.ids)} tokens: {worst.text[:120]!r}. Set `prompts.too_long: drop`, or "
                "shorten the responses"
            )
        return [p for p in prompts if len(p.ids) + response <= context]

    @cached_property
    def context_tokens(self) -> int | None:
        """Most tokens that the policy reads; None if its config does not say."""
        policy = self.recipe.model.policy
        if isinstance(policy, NewModel):
            found = policy.architecture.get("max_position_embeddings")
            found = found or policy.architecture.get("n_positions")
            if found is None:
                with at("model.policy.architecture"):
                    shape = AutoConfig.for_model(str(policy.architecture.get("model_type")))
                    found = getattr(shape, "max_position_embeddings", None)
            return found
        shape = self.models.pretrained("model.policy", policy).config.get_text_config()
        return getattr(shape, "max_position_embeddings", None)

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
            build_reward=lambda spec: self._nested(spec, self.context),
            tokenizer_of=self.tokenizer_of,
            prompts=lambda: [prompt for part in self.prompts for prompt in part],
            max_new_tokens=self.recipe.rollout.max_new_tokens,
        )

    @cached_property
    def _context_of_others(self) -> Context:
        """What is no reward may ask its models at any time, so that they do not wait elsewhere."""
        return replace(
            self.context,
            prepare=self.runtime.replicated,
            build_reward=lambda spec: self._nested(spec, self._context_of_others),
        )

    def _prompt_columns(self) -> frozenset[str]:
        if self.recipe.prompts is None:
            return frozenset()
        split = self.split(self.recipe.prompts.data)
        rows = [frozenset(row) for row in (*split.train, *split.heldout)]
        return frozenset.intersection(*rows) if rows else frozenset()

    def model_path(self, name: str) -> str:
        """A path or hub id as it is; `stage:NAME` is where that stage of this run leaves its model.

        Raises:
          RecipeError: the recipe has no such stage.
        """
        stage = name.removeprefix("stage:")
        if stage == name:
            return name
        if stage not in ("sft", "reward_model") or getattr(self.recipe, stage) is None:
            raise RecipeError(f"{name!r} is the result of a stage that this recipe does not run")
        return str(self.directory / stage)

    def tokenizer_of(self, name: str) -> PreTrainedTokenizerBase:
        """The tokenizer that goes with a model of the recipe, to keep and to change."""
        if name.startswith("stage:"):
            own = self.models.reward_tokenizer if name == "stage:reward_model" else self.tokenizer
            return copy.deepcopy(own)
        return Pretrained(name).tokenizer

    def instance(self, *path: str | int) -> Instance[Any]:
        """Build the component that stands at a path of the recipe."""
        chosen = self.loaded.chosen[path]
        with at(".".join(map(str, path))):
            context = self.context if path[0] == "rewards" else self._context_of_others
            component = chosen.component(chosen.config, context)
        component.name = str(path[-1])
        return Instance(str(path[-1]), str(chosen.offer), component)

    def _nested(self, spec: RewardSpec, context: Context) -> Any:
        component = self._registry.load(spec.kind, spec.type)
        built: Component[Any] = component(component.Config.model_validate(spec.options), context)
        return built


def _openings_apart(
    train: list[Prompt], heldout: list[Prompt], *, share: float
) -> tuple[list[Prompt], list[Prompt]]:
    """Hold out openings as well as rows: two texts may begin alike and fall on different sides."""
    held = {
        row["prompt"]
        for row in sources.split_rows(
            [{"prompt": text} for text in {p.text: None for p in (*train, *heldout)}],
            heldout=share,
        ).heldout
    }
    return [p for p in train if p.text not in held], [p for p in heldout if p.text in held]


def _read(spec: Dataset, generator: Chosen | None) -> sources.Split:
    """A data set, split: by a hash, or as its generator says."""
    made, kept = (_stored(spec), []) if generator is None else _generated(generator)
    if not made:
        raise RecipeError(f"the data set is empty ({spec.path or 'no rows came'})")
    roles = spec.columns.model_dump()
    rows, heldout = (sources.with_roles(part, roles) for part in (made[: spec.limit], kept))
    if not heldout:
        return sources.split_rows(rows, heldout=spec.heldout)
    if spec.heldout != Dataset.model_fields["heldout"].default:  # a resolved recipe has it too
        raise RecipeError(
            "heldout: the generator brings held-out rows of its own, so that nothing would read this "
            "share; leave it out"
        )
    return sources.split_apart(rows, heldout)


def _stored(spec: Dataset) -> list[Row]:
    """The rows of a file or of the hub."""
    if spec.path is not None:
        return sources.read_rows(Path(spec.path))
    assert spec.hub is not None
    hub = spec.hub
    return sources.hub_rows(hub.id, config=hub.config, split=hub.split, revision=hub.revision)


def _generated(chosen: Chosen) -> tuple[list[Row], list[Row]]:
    """The rows of a data generator: (to train on, held out)."""
    generator, config = chosen.component, chosen.config
    assert issubclass(generator, DataGenerator)
    try:
        return list(generator.rows(config)), list(generator.heldout_rows(config))
    except RlframeError:
        raise
    except Exception as error:
        raise RecipeError(
            f"data generator {chosen.offer} raised {type(error).__name__}: {error}"
        ) from error


@contextmanager
def at(path: str) -> Iterator[None]:
    """Put the recipe's path in front of an error."""
    try:
        yield
    except RlframeError as error:
        raise type(error)(f"{path}: {error}") from error
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from error

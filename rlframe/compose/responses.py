"""Responses of a saved model, and of the one that its stage started from, as the run sampled them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerBase

from rlframe.api.component import Context, Instance, PluginConfig
from rlframe.api.lengths import context_tokens
from rlframe.api.sampling import SampleRequest
from rlframe.compose.encoded import names_in
from rlframe.compose.inputs import local_path
from rlframe.compose.probe import profile_by, profile_of
from rlframe.compose.rendering import PromptWriter
from rlframe.compose.sampling import sampling_params
from rlframe.data.encode import RowEncoder
from rlframe.distributed.runtime import DTYPES
from rlframe.engine.sampling import ResponseSampler
from rlframe.errors import RecipeError
from rlframe.models import loading
from rlframe.models.policy import GreedyPolicy, Policy
from rlframe.models.pretrained import Pretrained
from rlframe.models.vocabulary import vocabulary_of
from rlframe.recipe.data import Dataset, Prompts
from rlframe.recipe.document import Document
from rlframe.recipe.interpolation import interpolate
from rlframe.recipe.schema import NewModel, Recipe, RolloutSection
from rlframe.registry.relay import Relay
from rlframe.rollout.builtin import Builtin
from rlframe.rollout.packing import response_text
from rlframe.rollout.seeds import seed_of
from rlframe.runs.directory import RunDirectory
from rlframe.runs.results import SavedModel, find_model, language_stages
from rlframe.types import Prompt

_AT_A_TIME = 32
"""Responses that are sampled together where the recipe does not say how many."""
_CHUNK = 1024  # positions whose logits exist at a time; sampling needs those of the last alone
_COMPUTED = {**DTYPES, "bfloat16": torch.bfloat16}
"""Precision of a recipe -> dtype of weights that are not trained any more."""


@dataclass(frozen=True)
class Changes:
    """What a person wants other than the run had it; None for what stays.

    Args:
      max_new_tokens: the longest response, in tokens.
      temperature: what logits are divided by, above 0.
      top_k: as of the recipe's `rollout`.
      top_p: the same.
      min_p: the same.
      greedy: always take the likeliest token; none of the above but the length then means anything.
      seed: of everything that is drawn at random.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    greedy: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class Asked:
    """A prompt to respond to.

    Equal seeds, numbers and samples give equal random numbers, whatever else is asked.
    """

    prompt: Prompt
    number: int
    """Of the prompt, from 0."""
    sample: int = 0
    """Of the response among those to this prompt, from 0."""


@dataclass(frozen=True)
class Response:
    """What a model wrote."""

    text: str
    """Without special tokens and without what follows a stop string."""
    stop_reason: str
    """eos, stop_string or length."""
    tokens: int
    """Sampled tokens, a final EOS included."""


@dataclass(frozen=True)
class Responder:
    """A model that is loaded and responds, and the model that its stage started from, if asked for."""

    writer: PromptWriter
    """Writes prompts as the run did."""
    rollout: RolloutSection
    """How responses are sampled."""
    seed: int
    """Of everything that is drawn at random."""
    models: dict[str, ResponseSampler]
    """`policy` and, if it was asked for, `initial`."""

    @property
    def at_a_time(self) -> int:
        """How many responses are sampled together. Another number gives the same responses."""
        return self.rollout.generation_batch or _AT_A_TIME

    def respond(self, asked: Sequence[Asked], *, model: str = "policy") -> list[Response]:
        """One response to each prompt.

        Args:
          asked: at least one.
          model: a name of `models`.

        Raises:
          RunError: the model's logits are not finite, or no memory is left for a single response.
        """
        sampler = self.models[model]
        requests = [
            SampleRequest(a.prompt.ids, seed_of(self.seed, "generate", a.number, a.sample))
            for a in asked
        ]
        found = sampler.answer(requests, seed_of(self.seed, "generate"), version=0)
        stops, words = self.rollout.stop_strings, self.writer.tokenizer
        return [
            Response(
                response_text(words, list(ids), stop_strings=stops), reason.value, tokens=len(ids)
            )
            for ids, reason in zip(found.ids, found.stop_reasons, strict=True)
        ]


def load_responder(saved: SavedModel, changes: Changes, *, initial: bool = False) -> Responder:
    """Load a model as its run sampled from it; one of no run is sampled by a recipe's defaults.

    Args:
      saved: where it lies.
      changes: to how the run sampled.
      initial: load the model that the stage started from too. PPO started from the result of the
        stage before it, or else from `model.policy`.

    Raises:
      RecipeError: a model cannot be loaded, or leaves no room for a prompt.
      SetupError: the model that the stage started from is not there any more.
    """
    recipe = _recipe_of(saved)
    rollout = _changed(recipe.rollout, changes)
    if recipe.runtime.threads is not None:
        torch.set_num_threads(recipe.runtime.threads)
    opened = Pretrained(str(saved.folder))
    words = opened.tokenizer
    dtype = _COMPUTED[recipe.runtime.precision] if saved.run else _own_dtype(opened.config)
    loaded = {"policy": loading.load_language_model(opened.name, words, dtype=dtype, at="")}
    if initial:
        loaded["initial"] = _initial(saved, recipe, words, dtype)
    contexts = [n for m in loaded.values() if (n := context_tokens(m.config)) is not None]
    seed = recipe.seed if changes.seed is None else changes.seed
    made = _Samplers(recipe, rollout, words, seed, greedy=changes.greedy)
    return Responder(
        _writer(saved, recipe, words, _limit(min(contexts, default=None), rollout, recipe.prompts)),
        rollout,
        seed,
        {name: made.of(name, model) for name, model in loaded.items()},
    )


def _recipe_of(saved: SavedModel) -> Recipe:
    """What the recipe of a run says of models, prompts and sampling; the rest of it is not looked at.

    So neither plugins nor variables are needed that only rewards and losses read.
    """
    given = saved.manifest.get("recipe", {})
    stages = language_stages(saved.manifest)
    names = ("seed", "data", "model", "prompts", "rollout", "runtime", *stages)
    document = Document({name: copy.deepcopy(given[name]) for name in names if name in given})
    interpolate(document)
    document.check()
    found: dict[str, Any] = {}
    for name, about in Recipe.model_fields.items():
        found[name] = None if about.is_required() else about.get_default(call_default_factory=True)
        if name not in document.data:
            continue
        annotation: Any = about.annotation
        try:
            found[name] = TypeAdapter(annotation).validate_python(document.data[name])
        except ValidationError as error:
            raise RecipeError(
                f"{saved.run}: `{name}` of the recipe in its manifest.json cannot be read: {error}"
            ) from error
    return Recipe.model_construct(**found)


def _changed(rollout: RolloutSection, changes: Changes) -> RolloutSection:
    """How responses are sampled, with what a person wants otherwise."""
    wanted = {
        name: value
        for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p")
        if (value := getattr(changes, name)) is not None
    }
    if changes.greedy:
        wanted |= {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
    return rollout.model_copy(update=wanted)


def _own_dtype(config: Any) -> torch.dtype:
    """That in which a model was saved."""
    found = getattr(config, "dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _initial(
    saved: SavedModel, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> Any:
    """The model that a stage started from."""
    assert saved.run is not None
    assert saved.stage is not None
    stages = language_stages(saved.manifest)
    before = stages[: stages.index(saved.stage)]
    policy = recipe.model.policy
    if before:
        name = str(find_model(saved.run, stage=before[-1]).folder)
        return loading.load_language_model(name, tokenizer, dtype=dtype, at=f"stage:{before[-1]}")
    if isinstance(policy, NewModel):  # drawn again, as the run drew it
        trained = DTYPES[recipe.runtime.precision]
        return loading.new_language_model(
            policy.architecture, tokenizer, dtype=trained, seed=recipe.seed
        ).to(dtype)
    path = local_path(policy)
    if path is None:
        raise RecipeError(
            f"model.policy: {policy!r}, the model that {saved.run} started from, is not on this "
            f"machine (looked for from {Path.cwd()}). Put it back, or fetch one of the hub "
            f"with: hf download {policy}; or leave --initial out"
        )
    return loading.load_language_model(str(path), tokenizer, dtype=dtype, at="model.policy")


def _limit(context: int | None, rollout: RolloutSection, prompts: Prompts | None) -> int | None:
    """Most tokens of a prompt; None for no limit.

    Raises:
      RecipeError: responses leave no room for any.
    """
    wanted = None if prompts is None else prompts.max_tokens
    if context is None:
        return wanted
    if context <= rollout.max_new_tokens:
        raise RecipeError(
            f"responses of {rollout.max_new_tokens} tokens leave no room for a prompt: the model reads "
            f"{context} tokens, prompt and response together. Give a smaller --max-new-tokens"
        )
    room = context - rollout.max_new_tokens
    return room if wanted is None else min(room, wanted)


def _writer(
    saved: SavedModel, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> PromptWriter:
    """What writes prompts as the run did; a run without PPO has those of the stage's data."""
    section = recipe.prompts
    names = () if section is None else names_in(section.data)
    if section is None:
        stage = getattr(recipe, saved.stage or "", None)
        names = () if stage is None else names_in(stage.data)
        section = Prompts(data="none")
    datasets = [recipe.data[name] for name in names if name in recipe.data]
    return PromptWriter(tokenizer, section, datasets, _was_chat(saved, datasets, tokenizer), limit)


def _was_chat(
    saved: SavedModel, datasets: Sequence[Dataset], tokenizer: PreTrainedTokenizerBase
) -> bool | None:
    """Whether the prompts of a run were turns of a chat; None if nothing says so.

    The recipe may have left that to the data. Responses to held-out prompts show the outcome.
    """
    if not tokenizer.chat_template:
        return False
    asked = {dataset.format for dataset in datasets}
    if len(asked) == 1 and asked <= {"chat", "plain"}:
        return asked == {"chat"}
    if saved.run is None:
        return None
    files = RunDirectory(saved.run, main=False, manifest=saved.manifest)
    rows = files.read_samples("before")
    return any("question" in row for row in rows) if rows else None


class _Samplers:
    """Makes what samples from a model, with the sampler in the box.

    Args:
      recipe: says on which device.
      rollout: how.
      tokenizer: of the models.
      seed: of everything that is drawn.
      greedy: whether the likeliest token is taken.
    """

    def __init__(
        self,
        recipe: Recipe,
        rollout: RolloutSection,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        *,
        greedy: bool,
    ) -> None:
        gpu = recipe.runtime.device != "cpu" and torch.cuda.is_available()
        self._device = torch.device("cuda" if gpu else "cpu")
        self._rollout, self._tokenizer, self._seed = rollout, tokenizer, seed
        self._policy = GreedyPolicy if greedy else Policy

    def of(self, name: str, model: Any) -> ResponseSampler:
        """What samples from this model, which moves to the device."""
        found = profile_of(model.config, length=None, name=name, samples=True)
        policy = self._policy(
            model.to(self._device),
            temperature=self._rollout.temperature,
            chunk=_CHUNK,
            profile=found or profile_by(model, name=name, samples=True),
            vocabulary=vocabulary_of(self._tokenizer),
        )
        context = self._context(model.dtype)
        return ResponseSampler(
            Instance(name, "builtin (rlframe)", Builtin(PluginConfig(), context)),
            Relay(),
            policy,
            context=context,
            params=sampling_params(self._rollout, policy, self._tokenizer),
        )

    def _context(self, dtype: torch.dtype) -> Context:
        """What the sampler is built with: a run of one process, without data, rewards and stages."""
        return Context(
            device=self._device,
            dtype=dtype,
            tokenizer=self._tokenizer,
            seed=self._seed,
            rank=0,
            world_size=1,
            samples_per_prompt=1,
            columns=frozenset(),
            rewards=frozenset(),
            prepare=lambda module: module,
            model_path=str,
            pretrained=Pretrained,
            training_rows=lambda name: [],
            tokenize=RowEncoder(self._tokenizer).example,
            build_reward=_no_rewards,
            tokenizer_of=lambda name: Pretrained(name).tokenizer,
            prompts=list,
            max_new_tokens=self._rollout.max_new_tokens,
        )


def _no_rewards(spec: Any) -> Any:
    raise RecipeError(f"{spec.type!r}: there are no rewards where responses are only sampled")

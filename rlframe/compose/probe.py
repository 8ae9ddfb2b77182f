"""Does the sampler draw from the distribution that is trained? Asked of each architecture at start.

A response is sampled step by step, with a cache, with padding on the left, in a batch from which rows
disappear. It is learned from in one pass, without any of these. Both must be the distribution that a
plain forward pass over the text alone gives: otherwise the importance ratio, the KL and the gradient
belong to something that nobody sampled, and no metric shows it.

Differences are between log-probabilities over the whole vocabulary, at every token, in nats.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from rlframe.api.lengths import context_tokens
from rlframe.distributed.runtime import out_of_memory
from rlframe.errors import RecipeError
from rlframe.models.loading import scalar_model_from
from rlframe.models.policy import Policy
from rlframe.models.profile import Profile
from rlframe.models.reduced import reduced_model
from rlframe.rollout.packing import pack
from rlframe.rollout.writing import Writing
from rlframe.types import StopReason

TOLERANCE = 1e-3
"""Nats, in float32. Sound architectures differ by at most 2e-5 (docs/architectures.md), which is the
rounding of sums in another order. Wrong positions, masks or caches show at 1e-2 and more."""

OWN_TOLERANCE = 1e-2
"""Nats. Some activations of published weights are a thousand times the others, and so is rounding."""

_OWN_TEXTS = 4

_LENGTHS = ((1, 9), (3, 12), (7, 5), (2, 12), (7, 12), (5, 1), (1, 3), (3, 4), (2, 7))
"""(prompt, response) tokens: several rows of one length, and rows that end long before others."""


@dataclass(frozen=True)
class Text:
    """Tokens of a prompt and a response, and what the whole model says about them, read alone."""

    prompt: list[int]
    response: list[int]
    expected: Tensor
    """[n, V] log-probabilities after each token."""


def profile_of(
    config: Any, *, length: int | None, name: str, samples: bool, scalar: bool = False
) -> Profile | None:
    """How models of this config are run right.

    The model that is run is a small one of the same architecture with random weights; `models.reduced`
    says what that can show.

    Args:
      config: of a causal language model.
      length: most tokens of a prompt and its response in the run; None if it is not known.
      name: of the model, in front of an error.
      samples: whether the run samples from it.
      scalar: whether a critic or a reward model is made from it.

    Returns:
      None if no small model can be made of the config, so that the model itself has to be asked.

    Raises:
      RecipeError: its log-probabilities, or its samples, are not those of a plain forward pass in any
        way that rlframe has, or no critic can be made from it.
    """
    with torch.random.fork_rng(devices=[]), in_silence():
        torch.default_generator.manual_seed(0)
        model, _ = reduced_model(config, length=length)
        if model is None:
            return None
        found = profile_by(model, name=name, samples=samples)
        if scalar:
            scalar_model_from(model, head="zero", seed=0)
        return found


@contextmanager
def in_silence() -> Iterator[None]:
    """What an architecture remarks about a model that nobody trains is nobody's concern."""
    loudness = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(loudness)


@torch.no_grad()
def profile_by(model: Any, *, name: str, samples: bool) -> Profile:
    """How models are run right, found by running this one, which is in float32.

    Raises:
      RecipeError: as of `profile_of`.
    """
    who = f"{name} ({type(model).__name__}, model_type {model.config.model_type!r})"
    try:
        texts = texts_for(_policy(model, Profile(whole=True)))
    except Exception as error:  # an architecture may raise anything
        raise RecipeError(
            f"{who} cannot read a text alone, as a causal language model does: "
            f"{type(error).__name__}: {error}"
        ) from error
    _check_causal(model, texts, who)
    profile = Profile()
    if not learning_difference(_policy(model, profile), texts).small:
        profile = replace(profile, whole=True)
        together = learning_difference(_policy(model, profile), texts)
        if not together.small:
            raise RecipeError(
                f"{who} cannot be trained: log-probabilities of texts in one right-padded batch differ "
                f"from those of each text alone (nats: {together})"
            )
    if samples:
        profile = _sampled(model, profile, texts, who)
    return replace(profile, packs=packing_difference(_policy(model, profile), texts).small)


def _sampled(model: Any, profile: Profile, texts: list[Text], who: str) -> Profile:
    tried = []
    for way, how in _WAYS.items():
        candidate = replace(profile, **how)
        found = sampling_difference(_policy(model, candidate), texts)
        if found.small:
            return candidate
        tried.append(f"{way} {found}")
    raise RecipeError(
        f"{who} cannot be sampled from: tokens would come from another distribution than the one that "
        f"is trained. Difference from a plain forward pass, in nats: {'; '.join(tried)}"
    )


_WAYS: dict[str, dict[str, Any]] = {
    "with rlframe's cache": {"cache": "growing"},
    "with its own cache": {"cache": "own"},
    "with its own cache and no padding": {"cache": "own", "padded": False},
    "with its own cache, no padding, all rows": {"cache": "own", "padded": False, "drops": False},
    "without a cache": {"cache": "none", "padded": False},
}
"""The fastest first."""


def _policy(model: Any, profile: Profile) -> Policy:
    return Policy(model, temperature=1.0, chunk=64, profile=profile)


@dataclass(frozen=True)
class Difference:
    """The largest difference in nats, or why there is none."""

    nats: float
    failure: str | None = None

    @property
    def small(self) -> bool:
        return self.failure is None and self.nats <= TOLERANCE

    def __str__(self) -> str:
        return self.failure or f"{self.nats:.2g}"


def texts_for(policy: Policy, *, count: int = len(_LENGTHS)) -> list[Text]:
    """Texts of random tokens, no longer than the model reads, and what it says about them.

    Args:
      policy: at temperature 1.
      count: of the texts.
    """
    generator = torch.Generator().manual_seed(0)
    model, vocabulary = policy.model, policy.vocabulary
    most = context_tokens(model.config) or sum(max(_LENGTHS, key=sum))
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    rows = min(len(read.weight), len(written.weight))
    held = range(rows) if vocabulary is None else vocabulary.ids(rows)
    ids = torch.tensor(held[min(3, len(held) - 1) :])  # the first are often special
    texts = []
    for prompt, response in _LENGTHS[:count]:
        prompt = min(prompt, most - 1)
        response = min(response, most - prompt)
        drawn = torch.randint(len(ids), (prompt + response,), generator=generator)
        tokens = ids[drawn].tolist()
        texts.append(Text(tokens[:prompt], tokens[prompt:], plain_logprobs(policy, tokens)))
    return texts


def plain_logprobs(policy: Policy, tokens: Sequence[int]) -> Tensor:
    """[n, V] log-probabilities after each token: the whole model, one text, no cache, no padding."""
    device = next(policy.parameters()).device
    read = torch.tensor([list(tokens)], device=device)
    logits = policy.model(input_ids=read, use_cache=False).logits
    if logits.shape[:2] != (1, len(tokens)):
        raise ValueError(f"logits of shape {list(logits.shape)} for {len(tokens)} tokens")
    if policy.vocabulary is not None:
        logits = policy.vocabulary.restrict(logits)
    found: Tensor = logits[0].double().log_softmax(-1)
    if not bool(found.isfinite().all()):
        raise ValueError("the logits are not finite")
    return found


def _check_causal(model: Any, texts: list[Text], who: str) -> None:
    """Neither other tokens nor fewer tokens later on change what is said before."""
    text = max(texts, key=lambda t: len(t.expected))
    tokens = [*text.prompt, *text.response]
    half, quarter = len(tokens) // 2, len(tokens) // 4
    other = [*tokens[:half], *reversed(tokens[half:])]
    for change, changed, kept in (
        ("changing", other, half),
        ("removing", tokens[:quarter], quarter),  # so much that a limit of the rotation is undercut
    ):
        nats = _largest(
            plain_logprobs(_policy(model, Profile()), changed)[:kept], text.expected[:kept]
        )
        if nats > TOLERANCE:
            raise RecipeError(
                f"{who} is not causal: {change} later tokens changes the log-probabilities of "
                f"earlier ones by up to {nats:.2g} nats, so no token can be sampled after another"
            )


def _largest(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def learning_difference(policy: Policy, texts: list[Text]) -> Difference:
    """Of the log-probabilities that are trained, in one right-padded batch."""
    device = next(policy.parameters()).device
    batch = pack([t.prompt for t in texts], [t.response for t in texts], device=device)
    try:
        found, _ = policy.response_logprobs(batch, policy.trunk(batch))
    except Exception as error:
        return _failed(error)
    return Difference(
        max(
            _largest(row[: len(t.response)], _picked(t, len(t.prompt)))
            for row, t in zip(found, texts, strict=True)
        )
    )


def _picked(text: Text, start: int) -> Tensor:
    """[n - start] log-probabilities of the tokens from `start` on, each after those before it."""
    tokens = torch.tensor([*text.prompt, *text.response], device=text.expected.device)
    return text.expected[start - 1 : -1].gather(-1, tokens[start:, None]).squeeze(-1)


def sampling_difference(policy: Policy, texts: list[Text]) -> Difference:
    """Of the distributions that the sampler would draw each response token from."""
    groups: dict[int, list[Text]] = {}
    for text in texts:
        groups.setdefault(0 if policy.padded else len(text.prompt), []).append(text)
    try:
        return Difference(max(_written_in_parts(policy, group) for group in groups.values()))
    except Exception as error:
        return _failed(error)


def _written_in_parts(policy: Policy, texts: list[Text]) -> float:
    """Fewer at a time if memory runs out, as the sampler does, which says so itself in its turn."""
    try:
        return _written(policy, texts)
    except Exception as error:
        if not out_of_memory(error):
            raise
        if len(texts) == 1:
            return 0.0
    half = len(texts) // 2  # outside of `except`: the traceback holds memory
    return max(_written_in_parts(policy, part) for part in (texts[:half], texts[half:]))


def _written(policy: Policy, texts: list[Text]) -> float:
    """The sampler's own steps, in which each response is already known."""
    device = next(policy.parameters()).device
    most = max(len(t.response) for t in texts)
    writing = Writing(
        [t.prompt for t in texts], torch.zeros(len(texts), most, device=device), policy
    )
    largest = 0.0
    for step in range(most):
        logprobs = writing.next_logits().double().log_softmax(-1)
        chosen = []
        for slot, row in enumerate(writing.rows.tolist()):
            text = texts[row]
            if step < len(text.response):
                expected = text.expected[len(text.prompt) + step - 1]
                largest = max(largest, _largest(logprobs[slot], expected))
            chosen.append(text.response[min(step, len(text.response) - 1)])
            if step + 1 >= len(text.response):
                writing.finish(slot, StopReason.EOS)
        if not writing.advance(torch.tensor(chosen, device=device)):
            break
    return largest


def packing_difference(policy: Policy, texts: list[Text]) -> Difference:
    """Of texts that stand one after another in one row, positions starting again with each."""
    device = next(policy.parameters()).device
    rows = [[*t.prompt, *t.response] for t in texts[:3]]
    tokens = torch.tensor([[token for row in rows for token in row]], device=device)
    positions = torch.cat([torch.arange(len(row), device=device) for row in rows])[None]
    try:
        found = policy.logprobs(tokens, positions=positions[:, :-1])[0]
    except Exception as error:
        return _failed(error)
    starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).tolist()
    return Difference(
        max(
            _largest(found[start : start + len(row) - 1], _picked(text, 1))
            for start, row, text in zip(starts, rows, texts, strict=False)
        )
    )


def _failed(error: Exception) -> Difference:
    said = " ".join(str(error).split())[:160]
    return Difference(float("inf"), f"{type(error).__name__}: {said}")


@torch.no_grad()
def check_policy(policy: Policy, *, name: str) -> None:
    """The same questions of a model as it is now, with its own weights and its restricted vocabulary.

    Raises:
      RecipeError: it is not run right.
    """
    asked = Policy(
        policy.model,
        temperature=1.0,
        chunk=policy.chunk,
        profile=policy.profile,
        vocabulary=policy.vocabulary,
    )
    texts = texts_for(asked, count=_OWN_TEXTS)
    for what, found in (
        ("log-probabilities that are trained", learning_difference(asked, texts)),
        ("distributions that are sampled from", sampling_difference(asked, texts)),
    ):
        if found.failure is not None or found.nats > OWN_TOLERANCE:
            raise RecipeError(
                f"{name} ({type(policy.model).__name__}): the {what} are not those of the whole model "
                f"(difference in nats: {found}), so that nothing would be learned from what was "
                "sampled; please report the architecture"
            )

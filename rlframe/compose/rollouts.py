"""What is sampled in a PPO run: responses to train on, to held-out prompts, and of the reference."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlframe.compose.project import Project
from rlframe.data.chat import end_ids
from rlframe.distributed.runtime import out_of_memory
from rlframe.engine.learner import MemoryWarning
from rlframe.engine.streams import Shuffled
from rlframe.errors import RunError
from rlframe.models.policy import Policy
from rlframe.rollout.sampler import Request, Sampler, SamplingParams
from rlframe.types import Prompt, Rollout


class Rollouts:
    """The share of one rank of each rollout, groups complete.

    Args:
      project: its recipe, prompts and processes.
      policy: the one in training.
      reference: the frozen one.
    """

    def __init__(self, project: Project, policy: Policy, reference: Policy) -> None:
        self._project = project
        self._sampler = self._sampler_of(policy)
        self._reference_sampler = self._sampler_of(reference)
        train, heldout = project.prompts
        self._prompts = Shuffled(train, key=(project.recipe.seed, "prompts"))
        self._heldout = heldout[: project.recipe.evaluation.prompts]

    def _sampler_of(self, policy: Policy) -> Sampler:
        section, tokenizer = self._project.recipe.rollout, self._project.tokenizer
        return Sampler(
            policy,
            tokenizer,
            eos_ids=frozenset(ends_of(policy.model, tokenizer)),
            params=SamplingParams(
                max_new_tokens=section.max_new_tokens,
                top_k=section.top_k,
                top_p=section.top_p,
                min_p=section.min_p,
                stop_strings=section.stop_strings,
                batch=section.generation_batch,
            ),
            seed=self._project.recipe.seed,
        )

    def act(self, update: int) -> Rollout:
        """Responses to the prompts of an update."""
        runtime, count = self._project.runtime, self._project.recipe.rollout.prompts_per_update
        prompts = self._prompts.take(update * count, count)
        share = range(len(prompts))[runtime.rank :: runtime.world_size]
        requests = self._requests(prompts, share)
        return self._sampled(self._sampler, requests, update=update, purpose="rollout")

    def _sampled(self, sampler: Sampler, requests: list[Request], **which: Any) -> Rollout:
        """Responses, fewer at a time if memory runs out: they are the same."""
        while True:
            try:
                return sampler.sample(requests, device=self._project.runtime.device, **which)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                at_a_time = min(sampler.batch or len(requests), len(requests))
                if at_a_time == 1:
                    raise RunError(
                        f"no memory was left to sample a single response: {error}. Make "
                        "rollout.max_new_tokens smaller, or choose another runtime.strategy or "
                        "runtime.frozen: `rlframe plan RECIPE` says what fits"
                    ) from error
            sampler.batch = at_a_time // 2  # outside of `except`: the traceback holds memory
            warnings.warn(
                f"no memory was left to sample {at_a_time} responses at a time: from here on it is "
                f"{sampler.batch} (rollout.generation_batch)",
                MemoryWarning,
                stacklevel=2,
            )

    def _requests(self, prompts: Sequence[Prompt], share: range) -> list[Request]:
        """Every sample of the prompts numbered in `share`, one group a prompt."""
        samples = self._project.recipe.rollout.samples_per_prompt
        return [
            Request(prompts[group], group * samples + sample, group)
            for group in share
            for sample in range(samples)
        ]

    def heldout(self) -> Rollout | None:
        """Responses to held-out prompts, always with the same random numbers.

        As many a prompt as in training, so that a reward that compares them can. None without a share.
        """
        runtime = self._project.runtime
        share = range(len(self._heldout))[runtime.rank :: runtime.world_size]
        if not share:
            return None
        requests = self._requests(self._heldout, share)
        return self._sampled(self._sampler, requests, update=0, purpose="heldout")

    def as_reference(self, rollout: Rollout) -> Rollout:
        """A response of the reference to the prompt of each response."""
        requests = [
            Request(prompt, sample, group)
            for prompt, sample, group in zip(
                rollout.prompts, rollout.samples, rollout.group_ids, strict=True
            )
        ]
        return self._sampled(
            self._reference_sampler, requests, update=rollout.update, purpose="reference"
        )


def list_ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write every end into the generation config, which is saved with the model.

    `generate` then stops elsewhere where the sampler stops here.
    """
    ends = ends_of(model, tokenizer)
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def ends_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a response, none twice.

    The tokenizer's EOS, what its template writes after an answer, and the generation config's.
    """
    more = getattr(model.generation_config, "eos_token_id", None)
    listed = more if isinstance(more, list) else [more] if more is not None else []
    return list(dict.fromkeys([*end_ids(tokenizer), *listed]))

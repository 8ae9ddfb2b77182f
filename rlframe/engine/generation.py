"""What a PPO run samples: responses to train on, to held-out prompts, and of the reference."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlframe.data.chat import end_ids
from rlframe.distributed.runtime import Runtime, out_of_memory
from rlframe.engine.streams import Shuffled
from rlframe.engine.updater import MemoryWarning
from rlframe.errors import RunError
from rlframe.rollout.sampler import Request, Sampler
from rlframe.types import Prompt, Rollout


@dataclass(frozen=True)
class RolloutGenerator:
    """One rank's shard of each rollout, groups complete.

    Args:
      sampler: of the policy in training.
      reference_sampler: of the frozen one.
      prompts: what is trained on, in an endless order.
      heldout: prompts that are never trained on.
      prompts_per_update: over all ranks.
      samples_per_prompt: responses per prompt, in training and on held-out prompts.
      runtime: the processes, and where their tensors lie.
    """

    sampler: Sampler
    reference_sampler: Sampler
    prompts: Shuffled[Prompt]
    heldout_prompts: Sequence[Prompt]
    prompts_per_update: int
    samples_per_prompt: int
    runtime: Runtime

    def generate(self, update: int) -> Rollout:
        """Responses to the prompts of an update."""
        prompts = self.prompts.take(update * self.prompts_per_update, self.prompts_per_update)
        requests = self._requests(prompts)
        return self._sampled(self.sampler, requests, update=update, purpose="rollout")

    def heldout(self) -> Rollout | None:
        """Responses to held-out prompts, always with the same random numbers.

        As many per prompt as in training, so that a reward that compares them can. None where there are
        fewer prompts than ranks, and none for this one.
        """
        requests = self._requests(self.heldout_prompts)
        if not requests:
            return None
        return self._sampled(self.sampler, requests, update=0, purpose="heldout")

    def of_reference(self, rollout: Rollout) -> Rollout:
        """A response of the reference to the prompt of each response."""
        requests = [
            Request(prompt, sample, group)
            for prompt, sample, group in zip(
                rollout.prompts, rollout.samples, rollout.group_ids, strict=True
            )
        ]
        return self._sampled(
            self.reference_sampler, requests, update=rollout.update, purpose="reference"
        )

    def _requests(self, prompts: Sequence[Prompt]) -> list[Request]:
        """Every sample of this rank's prompts, one group per prompt."""
        shard = range(len(prompts))[self.runtime.rank :: self.runtime.world_size]
        samples = self.samples_per_prompt
        return [
            Request(prompts[group], group * samples + sample, group)
            for group in shard
            for sample in range(samples)
        ]

    def _sampled(self, sampler: Sampler, requests: list[Request], **which: Any) -> Rollout:
        """Responses, fewer at a time if memory runs out: they are the same."""
        while True:
            try:
                return sampler.sample(requests, device=self.runtime.device, **which)
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

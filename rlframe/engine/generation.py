"""What a PPO run samples: responses to train on, to held-out prompts, and of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlframe.data.chat import end_ids
from rlframe.distributed.runtime import Runtime
from rlframe.engine.sampling import Request, ResponseSampler
from rlframe.engine.streams import Shuffled
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

    sampler: ResponseSampler
    reference_sampler: ResponseSampler
    prompts: Shuffled[Prompt]
    heldout_prompts: Sequence[Prompt]
    prompts_per_update: int
    samples_per_prompt: int
    runtime: Runtime

    def generate(self, update: int) -> Rollout:
        """Responses to the prompts of an update."""
        prompts = self.prompts.take(update * self.prompts_per_update, self.prompts_per_update)
        requests = self._requests(prompts)
        return self.sampler.sample(requests, update=update, purpose="rollout", version=update)

    def heldout(self, updates: int) -> Rollout | None:
        """Responses to held-out prompts, always with the same random numbers.

        As many per prompt as in training, so that a reward that compares them can. None where there are
        fewer prompts than ranks, and none for this one.

        Args:
          updates: done so far.
        """
        requests = self._requests(self.heldout_prompts)
        if not requests:
            return None
        return self.sampler.sample(requests, update=0, purpose="heldout", version=updates)

    def of_reference(self, rollout: Rollout) -> Rollout:
        """A response of the reference to the prompt of each response."""
        requests = [
            Request(prompt, sample, group)
            for prompt, sample, group in zip(
                rollout.prompts, rollout.samples, rollout.group_ids, strict=True
            )
        ]
        return self.reference_sampler.sample(
            requests, update=rollout.update, purpose="reference", version=0
        )

    def close(self) -> None:
        """PPO is over: let the sampler release what it holds."""
        self.sampler.close()

    def _requests(self, prompts: Sequence[Prompt]) -> list[Request]:
        """Every sample of this rank's prompts, one group per prompt."""
        shard = range(len(prompts))[self.runtime.rank :: self.runtime.world_size]
        samples = self.samples_per_prompt
        return [
            Request(prompts[group], group * samples + sample, group)
            for group in shard
            for sample in range(samples)
        ]


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

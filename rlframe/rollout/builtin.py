"""The sampler in the box: exact, reproducible for each response, with nothing to install."""

from __future__ import annotations

from collections.abc import Sequence

from rlframe.api.component import PluginConfig
from rlframe.api.sampling import (
    Sampler,
    SamplerCapabilities,
    SampleRequest,
    Samples,
    SamplingParams,
)


class Builtin(Sampler[PluginConfig]):
    """Decodes with the policy itself, on the rank that trains it.

    Equal seeds give equal responses whatever the batch, the number of processes and the memory. A
    rollout costs one forward pass per token over the rows that are not finished.
    """

    @classmethod
    def capabilities(cls, config: PluginConfig) -> SamplerCapabilities:
        """Everything there is."""
        return SamplerCapabilities(
            per_sample_seeds=True,
            stop_strings=True,
            filters=frozenset({"top_k", "top_p", "min_p"}),
            logprobs="filtered",
            shares_weights=True,
            exact=True,
            smaller_batches=True,
        )

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, seed: int
    ) -> Samples:
        """One response to each request, by the seeds of the requests."""
        from rlframe.rollout.decoding import decode  # torch: only when training

        return decode(
            self.policy,
            self.context.tokenizer,
            requests,
            params,
            device=self.context.device,
            version=self.version,
        )

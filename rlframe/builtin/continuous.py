"""The sampler on transformers' continuous batching: many responses in a paged cache of bounded size.

Rows of unequal length share each forward pass without padding, and a finished row makes room for the
next request at once. What the library (5.23) cannot do is declared, so that a recipe that needs it is
refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from rlframe.api.component import Context, PluginConfig
from rlframe.api.sampling import (
    SampledPolicy,
    Sampler,
    SamplerCapabilities,
    SampleRequest,
    Samples,
    SamplingParams,
)
from rlframe.errors import RecipeError
from rlframe.types import StopReason

_ATTEMPTS = 5
_LOGGER = "ContinuousBatchingLogger"


class ContinuousConfig(PluginConfig):
    """How much the sampler keeps, and how much it computes at a time."""

    cache_tokens: PositiveInt = Field(
        65_536,
        description="most tokens of prompts and responses whose keys and values are kept at a time; "
        "requests wait for room. The longest prompt and response must fit",
    )
    page_tokens: PositiveInt = Field(
        64, ge=4, description="tokens per page of the cache; each request wastes half a page"
    )
    batch_tokens: PositiveInt = Field(
        2048,
        description="most tokens of one forward pass: one for each response being written, the "
        "rest for prompts",
    )


class Continuous(Sampler[ContinuousConfig]):
    """Samples with transformers' continuous batching from the policy's own module: nothing is copied.

    One random state is shared by all responses: a response depends on its neighbours, and on the number
    of processes. Requests that the library drops, as it does where memory runs out, are continued from
    their own tokens.
    """

    example: ClassVar[dict[str, Any]] = {"page_tokens": 16}

    @classmethod
    def capabilities(cls, config: ContinuousConfig) -> SamplerCapabilities:
        """No stop strings, no min-p, no seeds per sample; another forward pass than the trainer's."""
        return SamplerCapabilities(
            filters=frozenset({"top_k", "top_p"}),
            logprobs="filtered",
            shares_weights=True,
            cache_tokens=config.cache_tokens,
        )

    @classmethod
    def check(cls, config: ContinuousConfig, context: Context) -> None:
        """The longest prompt and response fit into the cache."""
        cls._refuse_longer(config, (p.ids for p in context.prompts()), context.max_new_tokens)

    @staticmethod
    def _refuse_longer(
        config: ContinuousConfig, prompts: Iterable[Sequence[int]], new_tokens: int
    ) -> None:
        longest = max(map(len, prompts), default=0) + new_tokens
        if longest > config.cache_tokens:
            raise RecipeError(
                f"a prompt and its response can have {longest} tokens, and cache_tokens is "
                f"{config.cache_tokens}; make it larger"
            )

    def connect(self, policy: SampledPolicy) -> None:
        """Keep the policy, if the library can run it."""
        if not hasattr(policy.model, "continuous_batching_context_manager"):
            raise TypeError(
                f"{type(policy.model).__name__} has no continuous batching in transformers; choose "
                "rollout.sampler.type=builtin"
            )
        super().connect(policy)

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, seed: int
    ) -> Samples:
        """One response to each request, by the seed of the call."""
        self._refuse_longer(self.config, (r.prompt_ids for r in requests), params.max_new_tokens)
        found = [_Writing(list(r.prompt_ids)) for r in requests]
        retried = 0
        with _quiet(), _random_state_kept(self.context.device):
            for attempt in range(_ATTEMPTS):
                left = [one for one in found if not one.finished(params)]
                if not left:
                    break
                retried += len(left) if attempt else 0
                if self._write(left, params, seed + attempt):
                    # What the lost ones held is not known, and to sample them alone favours short ones.
                    found = [_Writing(list(r.prompt_ids)) for r in requests]
        left = [one for one in found if not one.finished(params)]
        if left:
            raise RuntimeError(
                f"continuous batching left {len(left)} of {len(requests)} responses unfinished in "
                f"{_ATTEMPTS} attempts: {left[0].error or 'it reported none of them'}. Make "
                "cache_tokens or batch_tokens smaller, or choose rollout.sampler.type=builtin"
            )
        return Samples(
            ids=[one.ids for one in found],
            stop_reasons=[one.reason(params) for one in found],
            weight_version=self.version,
            logprobs=[one.logprobs for one in found] if params.logprobs else None,
            retried=retried,
        )

    def _write(self, left: Sequence[_Writing], params: SamplingParams, seed: int) -> bool:
        """Let the library write on; returns whether it reported nothing of some response."""
        model = self.policy.model
        session = model.continuous_batching_context_manager(
            generation_config=self._generation(params),
            continuous_batching_config=self._batching(left, params, seed),
            block=True,
        )
        attention = model.config._attn_implementation
        try:
            with session as manager:
                return _collect(manager, left, params)
        finally:
            if model.config._attn_implementation != attention:  # the library died before it did so
                model.set_attn_implementation(attention)

    def _generation(self, params: SamplingParams) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=True,
            max_new_tokens=params.max_new_tokens,
            temperature=params.temperature,
            top_k=params.top_k or 0,
            top_p=1.0 if params.top_p is None else params.top_p,
            eos_token_id=sorted(params.eos_ids),
            pad_token_id=0,
            suppress_tokens=self.policy.without_token() or None,
        )

    def _batching(self, left: Sequence[_Writing], params: SamplingParams, seed: int) -> Any:
        from transformers import ContinuousBatchingConfig

        page = self.config.page_tokens
        needed = sum(math.ceil((len(one.prompt) + params.max_new_tokens) / page) for one in left)
        return ContinuousBatchingConfig(
            page_size=page,
            num_blocks=min(needed + 1, math.ceil(self.config.cache_tokens / page) + 1),
            max_batch_tokens=self.config.batch_tokens,
            allow_block_sharing=False,  # or pages of older weights are shared after an update
            return_logprobs=params.logprobs,
            seed=seed % 2**32,
            auto_switch_to_flash=False,  # another kernel than the trainer's
            use_cuda_graph=False,
            use_async_batching=False,
        )


def _collect(manager: Any, left: Sequence[_Writing], params: SamplingParams) -> bool:
    """Hand in the requests and take what comes back; returns whether some are never reported."""
    waiting: dict[str, _Writing] = {}
    refused = False
    for one in left:
        name = manager.add_request(
            [*one.prompt, *one.ids],
            max_new_tokens=params.max_new_tokens - len(one.ids),
            eos_token_id=sorted(params.eos_ids),
        )
        if name is None:
            refused = True
        else:
            waiting[name] = one
    while waiting:
        output = manager.get_result(timeout=1)
        if output is None and not manager.is_running():
            return True
        if output is not None and output.is_finished():
            waiting.pop(output.request_id).take(output)
    return refused


class _Writing:
    """One response as far as it is written."""

    def __init__(self, prompt: list[int]) -> None:
        self.prompt = prompt
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.error: str | None = None

    def take(self, output: Any) -> None:
        """What the library has written, whether it could finish or not."""
        self.ids += output.generated_tokens
        self.logprobs += output.logprobs
        self.error = output.error

    def finished(self, params: SamplingParams) -> bool:
        return bool(self.ids) and (
            self.ids[-1] in params.eos_ids or len(self.ids) >= params.max_new_tokens
        )

    def reason(self, params: SamplingParams) -> StopReason:
        return StopReason.EOS if self.ids[-1] in params.eos_ids else StopReason.LENGTH


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's remark on each call that it may not support what the contract checks."""
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _random_state_kept(device: Any) -> Iterator[None]:
    """The library seeds torch's global generators."""
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield

"""The policy: a transformers causal language model that is asked two things, next tokens and
log-probabilities, and never returns a [B, T, V] tensor for either.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlframe.functional import kl
from rlframe.functional import logprobs as token_logprobs
from rlframe.functional.rewards import response_mask
from rlframe.models.cache import Memory
from rlframe.models.profile import Profile
from rlframe.models.vocabulary import Vocabulary
from rlframe.types import Sequences


class Places(NamedTuple):
    """Where the response tokens of a batch are, flattened to N real tokens.

    `rows` and `steps` index [B, T]; `predictors` is the column whose hidden state predicts the token.
    """

    rows: Tensor
    steps: Tensor
    predictors: Tensor
    mask: Tensor


def response_places(batch: Sequences) -> Places:
    """Response token t of row b sits at prompt_length + t and is predicted one column before."""
    lengths = batch.response_lengths
    mask = response_mask(lengths, width=int(lengths.max()) if len(lengths) else 0)
    rows, steps = mask.nonzero(as_tuple=True)
    return Places(rows, steps, batch.prompt_lengths[rows] + steps - 1, mask)


class Policy(nn.Module):
    """A causal language model with the temperature of its sampler.

    Args:
      model: a transformers `...ForCausalLM`. It is kept in eval mode: dropout would make the ratio of
        new to old policy differ from 1 before anything was learned.
      temperature: divides the logits of everything but `logprobs`.
      chunk: most positions whose logits exist at a time.
      profile: how models of this architecture are run.
      vocabulary: the ids that have a token: all distributions are over them. None for all rows of
        the head, which may be more, since published heads are padded to a multiple.
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float,
        chunk: int,
        profile: Profile | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.temperature = temperature
        self.chunk = chunk
        self.profile = profile or Profile()
        self.vocabulary = vocabulary
        self._cap, self._scale = _treatment(model.config.get_text_config())

    def hidden(self, tokens: Tensor, **kwargs: Any) -> Any:
        """The trunk's output; `last_hidden_state` is [B, L, H]. Causal and right-padded: no mask.

        Where head and trunk cannot be used apart, its place is taken by the logits [B, L, V].
        """
        if not self.profile.whole:
            return self.model.base_model(input_ids=tokens, **kwargs)
        output = self.model(input_ids=tokens, **kwargs)
        output["last_hidden_state"] = output.logits
        return output

    def head(self, hidden: Tensor) -> Tensor:
        """[..., H] -> logits [..., V], with the cap or scale that some architectures put on them.

        V counts the ids up to the largest that has a token; one without is as good as impossible.
        """
        logits = hidden
        if not self.profile.whole:
            logits = self.model.get_output_embeddings()(hidden)
            if self._cap:
                logits = self._cap * torch.tanh(logits / self._cap)
            logits = logits * self._scale if self._scale else logits
        return logits if self.vocabulary is None else self.vocabulary.restrict(logits)

    def _statistics(self, temperature: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What turns hidden states and targets into log-probabilities and entropies."""
        head = self.model.get_output_embeddings()
        # The short way goes around the module, so it is only for one that does nothing else: no
        # adapter, no hook, no mixed precision, no cap or scale behind it.
        plain = type(head) is nn.Linear and not (head._forward_hooks or head._forward_pre_hooks)
        ids = self.vocabulary
        if (
            plain
            and not (self._cap or self._scale or self.profile.whole or (ids and ids.missing))
            and not torch.is_autocast_enabled(head.weight.device.type)
        ):
            return partial(
                token_logprobs.from_linear,
                weight=head.weight,
                bias=head.bias,
                temperature=temperature,
                columns=None if ids is None else ids.size,
            )
        return lambda hidden, targets: token_logprobs.from_logits(
            self.head(hidden), targets, temperature=temperature
        )

    def response_logprobs(self, batch: Sequences, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each response token and entropy of each step, in nats.

        Args:
          batch: B sequences.
          hidden: [B, L-1, H] of `trunk(batch)`.

        Returns:
          (logprobs, entropy), both [B, T], 0 in the padding.
        """
        rows, steps, predictors, mask = response_places(batch)
        targets = batch.tokens[rows, predictors + 1]
        logprobs, entropy = token_logprobs.chunked(
            hidden[rows, predictors],
            targets,
            self._statistics(self.temperature),
            chunk=self.chunk,
        )
        empty = logprobs.new_zeros(mask.shape)
        place = (rows, steps)
        return empty.index_put(place, logprobs), empty.index_put(place, entropy)

    def trunk(self, batch: Sequences) -> Tensor:
        """[B, L-1, H]: the last token predicts nothing, so it is not read."""
        states: Tensor = self.hidden(batch.tokens[:, :-1], use_cache=False).last_hidden_state
        return states

    def memory(self, *, capacity: int) -> Memory:
        """What `next_logits` needs to read `capacity` tokens a row."""
        return self.profile.memory(self.model, capacity=capacity)

    @property
    def padded(self) -> bool:
        """Whether `next_logits` takes rows with padding on the left."""
        return self.profile.padded

    def next_logits(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: Memory
    ) -> Tensor:
        """[B, V] of the token after the last column; `SampledPolicy.next_logits` has the arguments."""
        read, given = cache.reading(tokens, positions, mask)
        output = self.hidden(read, **given)
        cache.keep(output)
        logits = self.head(output.last_hidden_state[:, -1])
        return logits if self.temperature == 1 else logits / self.temperature

    def logprobs(
        self, tokens: Tensor, mask: Tensor | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Log π(tokens[:, t+1] | tokens[:, :t+1]) at temperature 1.

        Args:
          tokens: [B, L] int64, right-padded.
          mask: [B, L-1] bool; where it is False the result is 0 and costs no head. All if left out.
          positions: [B, L-1] of the tokens read, where they do not count from 0.

        Returns:
          [B, L-1] in nats.
        """
        given = {} if positions is None else {"position_ids": positions}
        wanted = _wanted(tokens, mask)
        hidden = self.hidden(tokens[:, :-1], use_cache=False, **given).last_hidden_state
        found, _ = token_logprobs.chunked(
            hidden[wanted], tokens[:, 1:][wanted], self._statistics(1.0), chunk=self.chunk
        )
        return found.new_zeros(wanted.shape).masked_scatter(wanted, found)

    def per_token(
        self,
        function: Callable[..., Tensor],
        tokens: Tensor,
        mask: Tensor | None = None,
        *inputs: Tensor,
    ) -> Tensor:
        """One number per token from the log-probabilities of the whole vocabulary, at temperature 1.

        `PolicyView.per_token` has the arguments. Unlike in `logprobs` the last chunk is computed again
        as well, so that nothing as wide as the vocabulary waits for the backward pass, however
        much the function keeps.

        Raises:
          ValueError: an input has other first dimensions than [B, L-1], or the function returns
            something else than one number per row.
        """
        wanted = _wanted(tokens, mask)
        for number, given in enumerate(inputs):
            if given.shape[:2] != wanted.shape:
                raise ValueError(
                    f"input {number} of `per_token` has the shape {list(given.shape)}; its first "
                    f"dimensions must be those of the predictions, {list(wanted.shape)}"
                )

        def statistics(hidden: Tensor, targets: Tensor, *rows: Tensor) -> tuple[Tensor]:
            logprobs = token_logprobs.over_vocabulary(self.head(hidden), temperature=1)
            return (_one_per_row(function(logprobs, targets, *rows), len(targets)),)

        hidden = self.hidden(tokens[:, :-1], use_cache=False).last_hidden_state
        rows = [each[wanted] for each in (hidden, tokens[:, 1:], *inputs)]
        (found,) = token_logprobs.in_chunks(statistics, *rows, chunk=self.chunk, keep_last=False)
        return found.new_zeros(wanted.shape).masked_scatter(wanted, found)

    @property
    def rows(self) -> int:
        """The number of ids that the head has, with a token or without."""
        return int(self.model.config.get_text_config().vocab_size)

    def without_token(self) -> list[int]:
        """The ids that the head has and the tokenizer has not."""
        if self.vocabulary is None:
            return []
        return sorted(set(range(self.rows)) - set(self.vocabulary.ids(self.rows)))

    def has_token(self, logprobs: Tensor) -> Tensor:
        """[..., V] -> [V] bool: which of these columns belong to an id that has a token."""
        columns, device = logprobs.shape[-1], logprobs.device
        if self.vocabulary is None:
            return torch.ones(columns, dtype=torch.bool, device=device)
        return self.vocabulary.present(columns, device=device)


class GreedyPolicy(Policy):
    """A policy whose next token is always the likeliest; of equals the one with the lowest id.

    As in transformers' `generate(do_sample=False)`. `top_k=1` would keep every token that ties with the
    likeliest, and in bfloat16 many do.
    """

    def next_logits(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: Memory
    ) -> Tensor:
        """[B, V] with -inf everywhere but at the likeliest token."""
        logits = super().next_logits(tokens, positions, mask, cache)
        best = logits.argmax(-1, keepdim=True)
        # Its own logit and not 0: one that is not finite has to be found.
        return torch.full_like(logits, -torch.inf).scatter(-1, best, logits.gather(-1, best))


def _wanted(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """[B, L-1] bool: the mask, or all predictions without one."""
    return torch.ones_like(tokens[:, 1:], dtype=torch.bool) if mask is None else mask


def _one_per_row(found: object, rows: int) -> Tensor:
    """What a function returned for so many rows, if it is one number for each.

    Raises:
      ValueError: it is something else.
    """
    if isinstance(found, Tensor) and found.shape == (rows,):
        return found
    what = f"the shape {list(found.shape)}" if isinstance(found, Tensor) else f"{found!r:.60}"
    raise ValueError(
        f"the function given to `per_token` returned {what} for {rows} rows; it must return a tensor "
        f"of one number per row, [{rows}]: reduce over the vocabulary with `.sum(-1)`, and over no "
        "rows, since they come in chunks"
    )


@torch.no_grad()
def exact_kl(policy: Policy, reference: Policy, batch: Sequences) -> Tensor:
    """KL(policy || reference) over the whole vocabulary at each response token: [B, T] nats.

    A pass of its own over both models, `chunk` positions of logits at a time.
    """
    rows, steps, predictors, mask = response_places(batch)
    ours = policy.trunk(batch)[rows, predictors].split(policy.chunk)
    theirs = reference.trunk(batch)[rows, predictors].split(policy.chunk)
    found = torch.cat(
        [
            kl.full(policy.head(p), reference.head(q), temperature=policy.temperature)
            for p, q in zip(ours, theirs, strict=True)
        ]
    )
    return found.new_zeros(mask.shape).index_put((rows, steps), found)


def _treatment(config: Any) -> tuple[float | None, float | None]:
    """(cap, factor) that an architecture puts on its logits, so that its trunk and head can be used
    apart. Where these are not all, a probe finds that the numbers differ.
    """
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    cap = next((value for name in caps if (value := getattr(config, name, None))), None)
    for name, factor in (
        ("logit_scale", lambda x: x),
        ("lm_head_multiplier", lambda x: x),
        ("logits_scaling", lambda x: 1 / x),
        ("dim_model_base", lambda x: x / config.hidden_size),
    ):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value not in (0, 1):
            return cap, factor(value)
    return cap, None

"""The trained models as one module: a policy and a critic, with or without a common trunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from rlframe.models.policy import Policy, response_places
from rlframe.types import Sequences


class TokenOutputs(NamedTuple):
    """What the models say about the response tokens of a batch; all [B, T], 0 in the padding."""

    logprobs: Tensor
    """log π, nats."""
    entropy: Tensor
    """Nats."""
    values: Tensor | None
    """V(s_t), the estimate before token t, in score units; None without a critic."""


class Critic(nn.Module):
    """A value model of its own: a transformers sequence classifier with one output.

    Args:
      model: `...ForSequenceClassification` with a `score` head; saved and loaded as such.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()

    def values(self, batch: Sequences, policy_hidden: Tensor | None) -> Tensor:
        hidden = self.model.base_model(input_ids=batch.tokens[:, :-1], use_cache=False)
        return _values(self.model.score, hidden.last_hidden_state, batch)


class SharedCritic(nn.Module):
    """A value head on the policy's trunk; its gradient reaches the trunk.

    Args:
      head: [H] -> [1].
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def values(self, batch: Sequences, policy_hidden: Tensor | None) -> Tensor:
        assert policy_hidden is not None
        return _values(self.head, policy_hidden, batch)


def _values(head: nn.Module, hidden: Tensor, batch: Sequences) -> Tensor:
    rows, steps, predictors, mask = response_places(batch)
    found = head(hidden[rows, predictors]).squeeze(-1)
    found = found if found.element_size() > 4 else found.float()
    return found.new_zeros(mask.shape).index_put((rows, steps), found)


class ActorCritic(nn.Module):
    """Policy and critic, if there is one, as one module.

    `forward` runs a function on the module: whoever wraps this module (DDP, DeepSpeed, FSDP) sees one
    forward pass, whatever mixture of losses is computed in it.
    """

    def __init__(self, policy: Policy, critic: Critic | SharedCritic | None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self, *args)

    def evaluate(self, batch: Sequences) -> TokenOutputs:
        """Log-probabilities, entropies and values of a batch's response tokens."""
        hidden = self.policy.trunk(batch)
        logprobs, entropy = self.policy.response_logprobs(batch, hidden)
        values = None if self.critic is None else self.critic.values(batch, hidden)
        return TokenOutputs(logprobs, entropy, values)

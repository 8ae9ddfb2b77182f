"""Batches for the parts of the algorithm from plain lists, for tests with numbers worked by hand.

Responses may have any lengths; the mask comes from them. Everything is in float64, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlframe.batches import CreditBatch, PolicyLossBatch, ScoreBatch, ValueLossBatch
from rlframe.functional.rewards import response_mask
from rlframe.functional.running import statistics
from rlframe.types import StopReason

Rows = Sequence[Sequence[float]]
"""Of each response, one number per token."""


def credit_batch(
    rewards: Rows,
    *,
    values: Rows | None = None,
    group_ids: Sequence[int] | None = None,
    stop_reasons: Sequence[StopReason] | None = None,
    **more: Any,
) -> CreditBatch:
    """What an advantage estimator is given; without KL.

    Args:
      rewards: of each token of each response.
      values: the critic's estimate before each token; None without a critic.
      group_ids: of each response; one group each if left out.
      stop_reasons: of each response; EOS if left out.
      more: other fields of the batch.
    """
    given, count = _padded(rewards), len(rewards)
    usual: dict[str, Any] = {
        "rewards": given,
        "mask": _mask(rewards),
        "scores": given.sum(-1),
        "kl": torch.zeros_like(given),
        "group_ids": torch.tensor(range(count) if group_ids is None else group_ids),
        "stop_reasons": tuple(stop_reasons or [StopReason.EOS] * count),
        "values": None if values is None else _padded(values),
    }
    return CreditBatch(**(usual | more))


def score_batch(
    totals: Sequence[float],
    *,
    group_ids: Sequence[int] | None = None,
    valid: Sequence[bool] | None = None,
    **more: Any,
) -> ScoreBatch:
    """What a reward transform is given in the only update of a run, by one process.

    Args:
      totals: the score of each response.
      group_ids: of each response; one group each if left out.
      valid: which of them count; all if left out.
      more: other fields of the batch.
    """
    given, count = torch.tensor(totals, dtype=torch.float64), len(totals)
    counts = torch.tensor([True] * count if valid is None else valid)
    usual: dict[str, Any] = {
        "totals": given,
        "valid": counts,
        "group_ids": torch.tensor(range(count) if group_ids is None else group_ids),
        "moments": statistics(given[counts], lambda x: x),
        "update": 0,
        "updates": 1,
    }
    return ScoreBatch(**(usual | more))


def policy_loss_batch(
    logprobs: Rows,
    *,
    advantages: Rows,
    old_logprobs: Rows | None = None,
    entropy: Rows | None = None,
) -> PolicyLossBatch:
    """What a policy loss is given; `logprobs` and `entropy` are leaves, for `backward` and `grad`.

    Args:
      logprobs: of each token of each response, in nats, under the policy in training.
      advantages: of each token.
      old_logprobs: when the tokens were sampled; `logprobs` if left out, so that every ratio is 1.
      entropy: at each token, in nats; 0 if left out.
    """
    now = _padded(logprobs)
    return PolicyLossBatch(
        logprobs=now.requires_grad_(),
        old_logprobs=now.detach().clone() if old_logprobs is None else _padded(old_logprobs),
        advantages=_padded(advantages),
        entropy=(torch.zeros_like(now) if entropy is None else _padded(entropy)).requires_grad_(),
        mask=_mask(logprobs),
    )


def value_loss_batch(
    values: Rows, *, returns: Rows, old_values: Rows | None = None
) -> ValueLossBatch:
    """What a value loss is given; `values` is a leaf, for `backward` and `grad`.

    Args:
      values: of each token of each response, the estimate of the critic in training.
      returns: the critic's targets.
      old_values: the estimates when the tokens were sampled; `values` if left out.
    """
    now = _padded(values)
    return ValueLossBatch(
        values=now.requires_grad_(),
        old_values=now.detach().clone() if old_values is None else _padded(old_values),
        returns=_padded(returns),
        mask=_mask(values),
    )


def _padded(rows: Rows) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)


def _mask(rows: Rows) -> Tensor:
    return response_mask(torch.tensor([len(row) for row in rows]), width=max(map(len, rows)))

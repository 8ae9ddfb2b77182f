"""What reward transforms return and remember: engine and kit refuse the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlframe.api.answers import ContractError, awaited, instead, shown
from rlframe.api.contract import plain_number
from rlframe.batches import ScoreBatch

if TYPE_CHECKING:
    from torch import Tensor


def transformed(answer: Any, scores: ScoreBatch) -> tuple[dict[str, Any], Tensor, Tensor]:
    """A reward transform's answer, as the contract wants it: (state, scale, shift).

    Raises:
      ContractError: it is anything else.
    """
    if not isinstance(awaited(answer), tuple) or len(answer) != 3:
        raise instead(answer, "; it must return (state, scale, shift)")
    state, *change = answer
    kept = plain_state(state)
    for name, found in zip(("scale", "shift"), change, strict=True):
        like = scores.totals
        if not isinstance(found, type(like)) or found.shape != like.shape:
            raise ContractError(
                f"returned {shown(found)} as {name}; it must be a tensor of shape {tuple(like.shape)}, "
                "one number per response"
            )
        if (found.dtype, found.device) != (like.dtype, like.device):
            raise ContractError(
                f"returned {name} in {found.dtype} on {found.device}; it must be in {like.dtype} on "
                f"{like.device}, as the totals are"
            )
        bad = ~found.isfinite() & scores.valid
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise ContractError(
                f"returned a {name} of {float(found[row])} for a total of {float(like[row]):g}: a "
                "division by a deviation of 0, or the logarithm of a negative score?",
                row=row,
            )
    scale, shift = change
    return kept, scale, shift


def plain_metrics(answer: Any) -> dict[str, float]:
    """What a transform says of its state, as it is logged.

    Raises:
      ContractError: it is no mapping from names to finite numbers.
    """
    if not isinstance(awaited(answer), Mapping):
        raise instead(answer, "; it must be a mapping from names to numbers")
    for name, value in answer.items():
        if not (isinstance(name, str) and plain_number(value) and math.isfinite(value)):
            raise ContractError(f"returned {name!r}: {shown(value)}, which is no finite number")
    return {name: float(value) for name, value in answer.items()}


def plain_state(state: Any) -> dict[str, Any]:
    """A transform's state as JSON gives it back.

    Raises:
      ContractError: JSON cannot hold it, or would give back something else.
    """
    if not isinstance(awaited(state), Mapping):
        raise instead(state, " as its state; it must be a mapping from names")
    try:
        kept: dict[str, Any] = json.loads(json.dumps(dict(state), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ContractError(
            f"has a state that JSON cannot hold ({error}): {shown(state)}. Keep plain finite numbers, "
            "text and lists"
        ) from error
    if kept != dict(state):
        raise ContractError(
            f"has a state that JSON does not give back as it is: {shown(state)}. Keep lists "
            "in place of tuples, and text for the names"
        )
    return kept

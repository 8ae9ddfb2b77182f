"""What a component must leave unchanged: its arguments, and what the whole process shares.

Engine and conformance kit look in the same way, so that they notice the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rlframe.api.answers import CHANGED, ContractError, Hint
from rlframe.api.component import Component
from rlframe.types import KLState, RewardBatch

if TYPE_CHECKING:
    from torch import Tensor

Still = Callable[[], str | None]
"""What has been changed since; None if nothing has."""

SHARED = Hint(
    "something is set for the whole process: `torch.set_default_dtype`, `set_num_threads`, "
    "`set_grad_enabled`, or a side or a token of `context.tokenizer`",
    "give the type to the tensor and the side to the call, change a copy of the tokenizer, and write "
    "`with torch.no_grad():`, which ends",
)


class Given:
    """What a component is handed, to tell afterwards whether it was changed.

    torch counts what is done to a tensor in place; on a CPU, where NumPy may share its memory, its
    numbers are compared as well. Of the batch of a reward, the columns of prompts and the tokens of
    responses are compared, which are all of it that can change.

    Args:
      given: name -> a batch, a state, or a tensor.
    """

    def __init__(self, **given: Any) -> None:
        self._looks = {name: _look(value) for name, value in given.items()}

    def refuse_change(self) -> None:
        """Raise if anything is not what it was.

        Raises:
          ContractError: names it.
        """
        for name, still in self._looks.items():
            if (part := still()) is not None:
                raise ContractError(
                    f"changed {name}{part}, which it was given, and which others read after it; make "
                    "a copy, or a new tensor",
                    hint=CHANGED,
                )


def _look(value: Any) -> Still:
    if isinstance(value, RewardBatch):
        return _reward_batch(value)
    if isinstance(value, KLState):
        return _mapping(value.memory)
    if isinstance(value, Mapping):
        return _mapping(value)
    return _tensors(value)


def _reward_batch(batch: RewardBatch) -> Still:
    columns = [dict(prompt.columns) for prompt in batch.prompts]
    tokens = [list(ids) for ids in batch.response_ids]

    def changed() -> str | None:
        if [dict(prompt.columns) for prompt in batch.prompts] != columns:
            return ".prompts, the columns of one of them"
        return ".response_ids" if [list(ids) for ids in batch.response_ids] != tokens else None

    return changed


def _mapping(given: Mapping[str, Any]) -> Still:
    # As text, in which NaN equals itself: what is given has gone through JSON.
    before = repr(dict(given))
    return lambda: "" if repr(dict(given)) != before else None


def _tensors(batch: object) -> Still:
    named = _named(batch)
    versions = {name: x._version for name, x in named.items()}
    # Not on a GPU: comparing would wait for it, and nothing but torch writes there.
    copies = {n: x.detach().clone() for n, x in named.items() if x.device.type == "cpu"}

    def changed() -> str | None:
        for name, x in named.items():
            copy = copies.get(name, x)
            same = bool(((x == copy) | (copy != copy)).all()) if name in copies else True
            if x._version != versions[name] or not same:
                return f".{name}"
        return None

    return changed


def _named(batch: object) -> dict[str, Tensor]:
    """The tensors of a batch."""
    return {name: x for name, x in vars(batch).items() if hasattr(x, "_version")}


class Surroundings:
    """What is set for the whole process, or for the run, at the time when this is made.

    Args:
      tokenizer: of the run; None where there is none.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._before = _settings(tokenizer)

    @classmethod
    def of(cls, component: Component[Any]) -> Surroundings:
        """With the tokenizer that a component was built with."""
        return cls(getattr(component.context, "tokenizer", None))

    def refuse_change(self) -> None:
        """Raise if anything is set in another way.

        Raises:
          ContractError: names it.
        """
        now = _settings(self._tokenizer)
        changed = [name for name, value in self._before.items() if now[name] != value]
        if changed:
            raise ContractError(
                f"changed {' and '.join(changed)}, for the policy and everybody else", hint=SHARED
            )


def _settings(tokenizer: Any) -> dict[str, object]:
    import torch  # a recipe is read without it

    found: dict[str, object] = {
        "torch's default type": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "whether torch records gradients": torch.is_grad_enabled(),
    }
    if tokenizer is not None:
        found["the tokenizer's sides"] = (tokenizer.padding_side, tokenizer.truncation_side)
        found["the tokenizer's tokens"] = (len(tokenizer), dict(tokenizer.special_tokens_map))
    return found

"""What components of every kind say of themselves: engine and kit refuse the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlframe.api.answers import ContractError, awaited, instead, shown
from rlframe.api.component import Needs


def refuse_bad_needs(answer: Any, wanted: type[Needs]) -> None:
    """Raise unless `needs` returned what the kind's should.

    Raises:
      ContractError: it did not.
    """
    if not isinstance(awaited(answer), wanted):
        raise instead(answer, f" from `needs` instead of {wanted.__name__}(...)")


def sentences(answer: Any) -> list[str]:
    """What `notes` returned.

    Raises:
      ContractError: it is no list of texts.
    """
    if not isinstance(awaited(answer), Sequence) or isinstance(answer, str | bytes):
        raise instead(answer, " from `notes`; it must return a list of sentences")
    odd = [note for note in answer if not isinstance(note, str)]
    if odd:
        raise ContractError(f"returned {shown(odd[0])} among its `notes`, which are sentences")
    return list(answer)

"""What an auxiliary loss promises of data that is read one example after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlframe.api.answers import ContractError
from rlframe.api.component import AuxiliaryLoss
from rlframe.api.streams import ExampleStream
from rlframe.engine.stream_reader import StreamReader, refuse_lost_cursor
from rlframe.errors import RunError
from rlframe.testing.check import Broken, DoesNotApply, check
from rlframe.testing.subject import Subject
from rlframe.types import TokenExample

Loss = Subject[AuxiliaryLoss[Any]]

STATES, AFTER = 16, 4
"""From how many states a stream is resumed, and how many examples are compared after each."""

LONGEST_PASS = 500
"""How many examples are read to find the end of a pass, where most cursors are wrong."""


def own_examples(subject: Loss, loss: AuxiliaryLoss[Any]) -> Sequence[TokenExample] | None:
    """What `examples` returned; of a stream its beginning, since it may have no end."""
    own = loss.examples()
    if not isinstance(own, ExampleStream):
        return own
    try:
        return _reader(subject, own).read(STATES + AFTER)
    except ContractError as error:
        raise Broken(str(error)) from None


def _reader(subject: Loss, stream: ExampleStream) -> StreamReader:
    size = len(subject.context.tokenizer)
    return StreamReader(stream, path=type(stream).__qualname__, vocabulary=size)


@check(
    expected="a stream that goes on from any of its states as it did from there the first time, pass "
    "after pass and in another process",
    likely="the cursor is moved after `yield`, counts what was only read ahead, is not put back at the "
    "end of a pass, or is not all that the next examples depend on",
    do="move the cursor before `yield`, put it back where `__iter__` ends, and let `state_dict` and "
    "`load_state_dict` exchange plain data or tensors",
)
def cursor_resumes(subject: Loss) -> str:
    """Checkpoints keep the cursor; an example that is lost or learned from twice is never noticed."""
    reader, elsewhere = (_stream_of(subject) for _ in range(2))
    try:
        refuse_lost_cursor(reader, reader, states=STATES, after=AFTER)
        refuse_lost_cursor(reader, elsewhere, states=STATES, after=AFTER)
        length = _first_pass(reader)
        if length is None:
            return f"{STATES} states; the first pass did not end within {LONGEST_PASS} examples"
        reader = _stream_of(subject)
        reader.read(max(0, length - AFTER))
        refuse_lost_cursor(reader, elsewhere, states=2 * AFTER, after=AFTER)
    except (ContractError, RunError) as error:
        raise Broken(str(error)) from None
    return f"{STATES} states at the beginning and {2 * AFTER} where the pass of {length} ends"


def _stream_of(subject: Loss) -> StreamReader:
    stream = subject.build().examples()
    if not isinstance(stream, ExampleStream):
        raise DoesNotApply("its data is no stream")
    return _reader(subject, stream)


def _first_pass(reader: StreamReader) -> int | None:
    """How many examples it has, found by reading the first one of the next pass."""
    for number in range(LONGEST_PASS + 1):
        reader.read(1)
        if reader.passes:
            return number
    return None

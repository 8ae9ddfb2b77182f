"""What an auxiliary loss promises of data that is read one example after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlframe.api.answers import ContractError
from rlframe.api.component import AuxiliaryLoss
from rlframe.api.streams import ExampleStream
from rlframe.engine.stream_reader import TRIED, StreamReader, refuse_lost_cursor
from rlframe.errors import RunError
from rlframe.testing.check import Broken, DoesNotApply, check
from rlframe.testing.subject import Subject
from rlframe.types import TokenExample

Loss = Subject[AuxiliaryLoss[Any]]

BEGINNING, AFTER = 20, 4
"""How many examples of a stream are looked at, and how many are compared after it was resumed."""

LONGEST_PASS = 1000
"""How many examples are read to find the end of a pass, where most cursors are wrong."""


def own_examples(subject: Loss, loss: AuxiliaryLoss[Any]) -> Sequence[TokenExample] | None:
    """What `examples` returned; of a stream its beginning, since it may have no end."""
    own = loss.examples()
    if not isinstance(own, ExampleStream):
        return own
    try:
        return _reader(subject, own).read(BEGINNING)
    except ContractError as error:
        raise Broken(str(error)) from None


def _reader(subject: Loss, stream: ExampleStream) -> StreamReader:
    size = len(subject.context.tokenizer)
    return StreamReader(stream, path=type(stream).__qualname__, vocabulary=size)


@check(
    expected="a stream that continues from any of its states as it did the first time, pass after pass "
    "and in another process",
    likely="the cursor is moved after `yield`, counts what was only read ahead, is not put back at the "
    "end of a pass, or is not all that the next examples depend on",
    do="move the cursor before `yield`, put it back where `__iter__` ends, and let `state_dict` and "
    "`load_state_dict` exchange plain data or tensors",
)
def cursor_resumes(subject: Loss) -> str:
    """Checkpoints keep the cursor; an example that is lost or learned from twice is never noticed."""
    reader, elsewhere = (_stream_of(subject) for _ in range(2))
    try:
        refuse_lost_cursor(reader, reader, tried=TRIED, after=AFTER)
        refuse_lost_cursor(reader, elsewhere, tried=TRIED, after=AFTER)
        length = _first_pass(reader)
        if length is None:
            return f"no pass ended within {LONGEST_PASS} examples"
        tried = range(max(1, length - AFTER), length + AFTER)
        refuse_lost_cursor(_stream_of(subject), elsewhere, tried=[0, *tried], after=AFTER)
    except (ContractError, RunError) as error:
        raise Broken(str(error)) from None
    return f"in the first {TRIED[-1]} examples, and where the first pass of {length} ends"


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

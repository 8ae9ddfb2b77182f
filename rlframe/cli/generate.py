"""`rlframe generate RUN --prompts FILE`: responses of a run's model, as JSON Lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from rlframe.cli.responding import (
    Checkpoint,
    Greedy,
    MaxNewTokens,
    MinP,
    Run,
    Seed,
    Stage,
    Temperature,
    TopK,
    TopP,
    opened,
)
from rlframe.errors import SetupError
from rlframe.redaction import redacted_tree
from rlframe.text import say

if TYPE_CHECKING:
    from rlframe.compose.rendering import PromptWriter, Written
    from rlframe.compose.responses import Asked, Responder, Response


def generate(
    run: Run,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts, in any format that `data` reads; - reads JSON Lines or text from stdin.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A prompt; may be repeated, instead of --prompts."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to this file, not to stdout.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each prompt.")] = 1,
    initial: Annotated[
        bool,
        typer.Option("--initial", help="Add responses of the model that the stage started from."),
    ] = False,
    stage: Stage = None,
    checkpoint: Checkpoint = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    greedy: Greedy = False,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
) -> None:
    """Write responses of a run's model to prompts, as JSON Lines."""
    if (prompts is None) == (not prompt):
        raise typer.BadParameter(
            "say what to respond to, with either --prompts FILE or --prompt TEXT",
            param_hint="--prompts",
        )
    folder, responder = opened(
        run,
        stage=stage,
        checkpoint=checkpoint,
        initial=initial,
        greedy=greedy,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
    )
    written = _written(responder.writer, prompts, prompt or [])
    for note in written.notes:
        say(f"note: {note}", err=True)
    say(
        f"{folder} (prompts: {len(written.prompts)}, samples of each: {samples}, seed: "
        f"{responder.seed})",
        err=True,
    )
    from rlframe.runs.records import jsonl

    with _opened(output) as file:
        for row in _rows(responder, written, samples):
            line = jsonl([row])
            if file is None:
                say(line.removesuffix("\n"))
            else:
                _write(file, line, output)
    if output is not None:
        say(f"The responses are in {output}", err=True)


def _written(writer: PromptWriter, file: Path | None, texts: list[str]) -> Written:
    """The prompts that the options name, as the run wrote its own."""
    from rlframe.compose.rendering import Written

    notices: tuple[str, ...] = ()
    if file is None:
        rows = writer.rows_of_texts(texts)
    elif str(file) == "-":
        rows, notices = writer.rows_of_stream(sys.stdin.read())
    else:
        rows, notices = writer.rows_of_file(file)
    found = writer.written(rows)
    return Written(found.prompts, (*notices, *found.notes))


def _rows(responder: Responder, written: Written, samples: int) -> Iterator[dict[str, Any]]:
    """A row for each response, in the order of the prompts."""
    from rlframe.compose.responses import Asked

    asked = [
        Asked(prompt, number, sample)
        for number, prompt in written.prompts
        for sample in range(samples)
    ]
    for start in range(0, len(asked), responder.at_a_time):
        part = asked[start : start + responder.at_a_time]
        answers = {name: responder.respond(part, model=name) for name in responder.models}
        for place, one in enumerate(part):
            found = {name: given[place] for name, given in answers.items()}
            yield redacted_tree(_row(one, found, responder.seed))


def _row(asked: Asked, found: dict[str, Response], seed: int) -> dict[str, Any]:
    messages = asked.prompt.messages
    return {
        "number": asked.number,
        "sample": asked.sample,
        "seed": seed,
        "prompt": asked.prompt.text,
        **({} if messages is None else {"messages": [dict(message) for message in messages]}),
        **_of(found["policy"]),
        **{name: _of(response) for name, response in found.items() if name != "policy"},
    }


def _of(response: Response) -> dict[str, Any]:
    return {
        "response": response.text,
        "stop_reason": response.stop_reason,
        "tokens": response.tokens,
    }


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO | None]:
    """The file to write to; None for stdout.

    Raises:
      SetupError: it cannot be written.
    """
    if output is None:
        yield None
        return
    try:
        file = output.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise _unwritable(output, error) from error
    with file:
        yield file


def _write(file: TextIO, line: str, output: Path | None) -> None:
    """Write a line at once, so that what is there after an interruption is whole."""
    try:
        file.write(line)
        file.flush()
    except OSError as error:
        raise _unwritable(output, error) from error


def _unwritable(output: Path | None, error: OSError) -> SetupError:
    return SetupError(f"{output} cannot be written: {error.strerror or error}")

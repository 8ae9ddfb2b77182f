"""What `generate` and `chat` share: the options that choose a model and how it is sampled from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlframe.compose.responses import Responder

Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run directory, a result or checkpoint in one, or the folder of a model.",
        show_default=False,
    ),
]
Stage = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Whose model of the run; the last stage's if left out."),
]
Checkpoint = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help="The checkpoint after N updates, instead of the stage's result."
    ),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of the longest response; as in the run.")
]
Temperature = Annotated[
    float | None, typer.Option(help="What logits are divided by, above 0; as in the run.")
]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="Always take the likeliest token, and sample nothing.")
]
TopK = Annotated[
    int | None, typer.Option(min=1, help="Keep the K likeliest tokens; as in the run.")
]
TopP = Annotated[
    float | None,
    typer.Option(max=1, help="Keep the likeliest tokens with this probability; as in the run."),
]
MinP = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Keep tokens this many times as likely as the likeliest; as in the run."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, max=2**32 - 1, help="Of what is drawn at random; the run's if left out."),
]


def opened(
    run: Path,
    *,
    stage: str | None,
    checkpoint: int | None,
    initial: bool,
    greedy: bool,
    **sampling: Any,
) -> tuple[Path, Responder]:
    """(the folder of the model, the model loaded), as the options of a command ask.

    Args:
      run: what RUN names.
      stage: `--stage`.
      checkpoint: `--checkpoint`.
      initial: `--initial`.
      greedy: `--greedy`.
      sampling: the other options, by the names of `compose.responses.Changes`; None for the run's.

    Raises:
      BadParameter: options contradict each other, or name what the run does not have.
      RlframeError: the model cannot be found or loaded.
    """
    _check(greedy, sampling)
    from rlframe.runs.results import find_model

    with _as_usage():
        saved = find_model(run, stage=stage, checkpoint=checkpoint)
    if initial and saved.run is None:
        raise typer.BadParameter(
            f"{run} belongs to no run, so nothing says which model it was trained from",
            param_hint="--initial",
        )
    from transformers.utils.logging import disable_progress_bar

    from rlframe.compose.responses import Changes, load_responder

    disable_progress_bar()
    changes = Changes(greedy=greedy, **sampling)
    return saved.folder, load_responder(saved, changes, initial=initial)


def _check(greedy: bool, sampling: dict[str, Any]) -> None:
    for name in ("temperature", "top_k", "top_p", "min_p"):
        option = f"--{name.replace('_', '-')}"
        value = sampling[name]
        if value is None:
            continue
        if greedy:
            raise typer.BadParameter(
                f"with --greedy the likeliest token is taken, and {option} changes nothing: leave one "
                "of the two out",
                param_hint=option,
            )
        if name in ("temperature", "top_p") and not 0 < value < float("inf"):
            advice = ". For the likeliest token write --greedy" if name == "temperature" else ""
            raise typer.BadParameter(
                f"{value} must be above 0 and finite{advice}", param_hint=option
            )


@contextmanager
def _as_usage() -> Iterator[None]:
    """Report a stage or checkpoint that is not there as a wrong use of its option."""
    from rlframe.runs.results import WrongChoiceError

    try:
        yield
    except WrongChoiceError as error:
        raise typer.BadParameter(str(error), param_hint=error.option) from error

"""What a person sees of a run: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rlframe.text import cell, visible

HEADLINES = (
    ("objective/scores", "score"),
    ("objective/kl", "KL"),
    ("kl/coefficient", "β"),
    ("response/length_mean", "tokens"),
    ("response/truncated_share", "cut"),
    ("policy/approxkl_avg", "approx"),
    ("policy/clipfrac_avg", "clip"),
    ("critic/explained_variance", "expl."),
    ("eps", "resp./s"),
)
"""The metrics of the live table, and their short names."""


class Display(Protocol):
    """Shows a run while it goes on."""

    def stage(self, name: str, detail: str) -> None:
        """A stage begins."""

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        """A step of the stage is done; `figures` may be empty."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def show(self, table: Table) -> None:
        """A table that stays."""

    def close(self) -> None:
        """The run is over, however it ended."""


def make_display(console: Console) -> Display:
    """The live display if `console` is a terminal, else the plain one."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


class SilentDisplay:
    """Says nothing: of several processes, one talks."""

    def stage(self, name: str, detail: str) -> None:
        """Nothing."""

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def show(self, table: Table) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainDisplay:
    """Lines for a log file: each stage, about ten steps of it, every row of figures."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""

    def stage(self, name: str, detail: str) -> None:
        self._stage = name
        self.say(f"== {name}: {detail}")

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        shown = {label: figures[key] for key, label in HEADLINES if key in figures}
        shown = shown or {key: value for key, value in figures.items() if key == "loss"}
        if shown:
            values = "  ".join(f"{label} {value:.4g}" for label, value in shown.items())
            self.say(f"{self._stage} {done}/{total}  {values}")

    def say(self, text: str) -> None:
        self._console.print(cell(text), soft_wrap=True)

    def show(self, table: Table) -> None:
        self._console.print(table)

    def close(self) -> None:
        """Nothing is held open."""


class LiveDisplay:
    """A progress bar and the last updates' figures, redrawn in place."""

    _ROWS = 12

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._rows: list[tuple[int, Mapping[str, float]]] = []
        self._live = Live(self._bar, console=console, refresh_per_second=4)
        self._live.start()

    def stage(self, name: str, detail: str) -> None:
        self._rows = []
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(visible(name), total=None)
        self.say(f"{name}: {detail}")

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=done, total=total)
        if any(key in figures for key, _ in HEADLINES):
            self._rows = [*self._rows, (done, figures)][-self._ROWS :]
        elif "loss" in figures:
            self._bar.update(self._task, description=f"loss {figures['loss']:.3f}")
        self._live.update(Group(self._table(), self._bar) if self._rows else self._bar)

    def _table(self) -> Table:
        # Narrow enough for 80 columns: a cut number is no number.
        labels = ("update", *(label for _, label in HEADLINES))
        table = Table(*labels, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for number, figures in self._rows:
            cells = (f"{figures[key]:.3g}" if key in figures else "" for key, _ in HEADLINES)
            table.add_row(*map(cell, (number, *cells)))
        return table

    def say(self, text: str) -> None:
        self._console.print(cell(text))

    def show(self, table: Table) -> None:
        self._console.print(table)

    def close(self) -> None:
        self._live.stop()

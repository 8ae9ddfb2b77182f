"""`rlframe plan RECIPE [key=value ...]`: what PPO updates need on GPUs, strategy by strategy."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlframe.cli.options import AllowLocalCode, NoPlugin, Overrides, installed
from rlframe.errors import did_you_mean, listed
from rlframe.planning.gpus import GIB, GPUS, PER_NODE, Device
from rlframe.recipe import load_recipe
from rlframe.text import say

if TYPE_CHECKING:
    from rlframe.planning.memory import Workload
    from rlframe.planning.strategies import Strategy

_COLUMNS = ("strategy", "GiB a GPU", "fullest at", "GiB of CPU", "s an update", "verdict")


def plan(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Overrides = None,
    gpus: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="How many, a process on each.")
    ] = 8,
    gpu: Annotated[str, typer.Option(help=f"Which: {', '.join(GPUS)}.")] = "h200",
    gpu_memory_gib: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of each, instead of what is known of it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone, in bytes.")] = False,
    no_plugin: NoPlugin = None,
    allow_local_code: AllowLocalCode = False,
) -> None:
    """Predict memory and time of PPO updates on GPUs, and say which strategies fit."""
    device = _device(gpu, gpu_memory_gib)
    registry = installed(no_plugin, allow_local_code=allow_local_code)
    loaded = load_recipe(recipe, overrides or [], registry=registry)
    # The recipe is checked first: a typo answers at once, and torch is imported only now.
    from rlframe.compose.plan import strategy, workload
    from rlframe.planning.strategies import STRATEGIES

    work, asked = workload(loaded, registry), strategy(loaded.recipe)
    strategies = [*STRATEGIES, *([asked] if asked not in STRATEGIES else [])]
    rows = [_row(work, one, device, gpus) | {"recipe": one == asked} for one in strategies]
    if as_json:
        say(json.dumps({**_question(work, device, gpus), "strategies": rows}))
        return
    say(_heading(work, device, gpus))
    say(_table(rows, device))
    say(_help([row for row in rows if row["verdict"] != "fits"]))
    say(_small_print(rows, gpus))


def _device(name: str, memory_gib: float | None) -> Device:
    if name not in GPUS:
        near = [known for known in GPUS if known.startswith(name)] or GPUS
        raise typer.BadParameter(
            f"{name!r} is not in the table.{did_you_mean(name, near)} It has {listed(GPUS)}; for "
            "another one take the nearest, with --gpu-memory-gib",
            param_hint="--gpu",
        )
    known = GPUS[name]
    return known if memory_gib is None else replace(known, memory_gib=memory_gib)


def _question(work: Workload, device: Device, gpus: int) -> dict[str, Any]:
    from rlframe.planning.duration import Efficiency

    return {
        "gpus": gpus,
        "device": asdict(device),
        "efficiency": asdict(Efficiency()),
        "workload": asdict(work),
    }


def _row(work: Workload, strategy: Strategy, device: Device, gpus: int) -> dict[str, Any]:
    from rlframe.planning.duration import seconds
    from rlframe.planning.memory import memory
    from rlframe.planning.remedies import remedies, verdict

    found, time = memory(work, strategy, device, gpus), seconds(work, strategy, device, gpus)
    judged = verdict(found.peak, device)
    helps = [] if judged == "fits" else remedies(work, strategy, device, gpus)
    return {
        "strategy": str(strategy),
        "overrides": strategy.overrides,
        "peak": found.peak,
        "moment": found.moment,
        "parts": found.moments[found.moment],
        "moments": {name: sum(parts.values()) for name, parts in found.moments.items()},
        "host": found.host,
        "seconds": {**asdict(time), "total": time.total},
        "verdict": judged,
        "helps": [asdict(remedy) for remedy in helps],
    }


def _heading(work: Workload, device: Device, gpus: int) -> str:
    from rlframe.planning.memory import largest_pass, share

    one, trained = largest_pass(work, gpus), work.trained
    waits = {"shard": " in shares", "offload": " on the CPU"}.get(work.placement, "")
    return (
        f"{trained.total / 1e6:,.1f} M parameters trained, {trained.policy / 1e6:,.1f} M of them the "
        f"policy's; {work.frozen_total / 1e6:,.1f} M frozen{waits}; {work.precision}\n"
        f"{gpus} x {device.name} of {device.memory_gib:g} GiB; on each {share(work, gpus)} responses "
        f"of up to {work.response_tokens} tokens to prompts of up to {work.prompt_tokens},\n"
        f"{work.epochs * work.minibatches} steps an update, each of {one.count} passes of up to "
        f"{one.rows} rows\n"
    )


def _table(rows: list[dict[str, Any]], device: Device) -> str:
    cells = [list(_COLUMNS)]
    for row in rows:
        cells.append(
            [
                ("* " if row["recipe"] else "  ") + row["strategy"],
                f"{row['peak'] / GIB:.1f}",
                row["moment"],
                f"{row['host'] / GIB:.1f}" if row["host"] else "",
                f"{row['seconds']['total']:.3g}",
                {"no": "does not fit"}.get(row["verdict"], row["verdict"]),
            ]
        )
    cells[0][0] = "  " + cells[0][0]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = (0, 2, 5)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _help(rows: list[dict[str, Any]]) -> str:
    """A paragraph for each strategy that something would help, and one for the others."""
    from rlframe.planning.remedies import MOST_GPUS

    advice, hopeless = [], []
    for row in rows:
        changes = [f"{h['change']} ({h['peak'] / GIB:.1f} GiB)" for h in row["helps"]]
        word = "does not fit" if row["verdict"] == "no" else "is tight"
        if changes:
            advice.append(
                f"{row['strategy']} {word}: {_parts(row, 3)}. What would help: {'; or '.join(changes)}"
            )
        else:
            hopeless.append(f"{row['strategy']} ({_parts(row, 3)})")
    if hopeless:
        advice.append(
            "Neither offloading, frozen models elsewhere, smaller passes nor "
            f"{MOST_GPUS:,} GPUs would leave room with " + "; with ".join(hopeless)
        )
    return "".join(f"\n{_filled(text)}\n" for text in advice)


def _parts(row: dict[str, Any], most: int | None) -> str:
    """The largest parts of the peak."""
    parts = sorted(row["parts"].items(), key=lambda part: -part[1])[:most]
    return (
        ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size >= GIB / 20) + " GiB"
    )


def _filled(text: str) -> str:
    return fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _small_print(rows: list[dict[str, Any]], gpus: int) -> str:
    from rlframe.planning.duration import Efficiency
    from rlframe.planning.remedies import MARGIN

    reached = Efficiency()
    asked = next(row for row in rows if row["recipe"])
    limits = (
        f"fits: {MARGIN:.0%} stay free. Assumed are {reached.products:.0%} of a GPU's FLOP/s, "
        f"{reached.memory:.0%} of its memory's bandwidth and {reached.link:.0%} of its link's, every "
        "response of full length, and communication that nothing overlaps. How it is computed, and "
        "what is left out: docs/plan.md"
    )
    if gpus > PER_NODE:
        limits += f". More than {PER_NODE} GPUs are several machines, whose network is left out"
    return f"{_filled(f'* the recipe as it is: {_parts(asked, None)}')}\n\n{_filled(limits)}"

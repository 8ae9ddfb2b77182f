"""`rlframe doctor [RUN]`: what is healthy in a run and what is not; without a run, the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlframe.text import say

if TYPE_CHECKING:
    from rlframe.reports.finding import Finding
    from rlframe.reports.reading import RunRecord


def doctor(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="The directory of a run, finished or not."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Say what is healthy in a run and what is not, or describe the environment."""
    if directory is None:
        from rlframe.reports.environment import environment

        found = environment()
        say(json.dumps(found) if as_json else _environment(found))
        return
    from rlframe.reports.doctor import diagnose
    from rlframe.reports.reading import read_run

    run = read_run(directory)
    findings = diagnose(run) if run.rows else []
    say(json.dumps(_page(run, findings)) if as_json else _report(run, findings))


def _page(run: RunRecord, findings: list[Finding]) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "status": run.manifest["status"],
        "updates": len(run.rows),
        "verdict": _verdict(run, findings),
        "findings": [finding.as_json() for finding in findings],
    }


def _verdict(run: RunRecord, findings: list[Finding]) -> str:
    from rlframe.reports.finding import verdict

    return verdict(findings) if run.rows else "there are no PPO updates to judge yet"


def _report(run: RunRecord, findings: list[Finding]) -> str:
    from rlframe.reports.finding import counted

    status = run.manifest["status"].replace("_", " ")
    updates = counted(len(run.rows), "update")
    head = f"{run.path}: {status}, {updates}; {_verdict(run, findings)}"
    error = run.manifest.get("error")
    parts = [head, *([f"The run ended with: {error}"] if error else []), *map(_told, findings)]
    return "\n\n".join(parts)


def _told(finding: Finding) -> str:
    evidence = [
        f"  {metric}: {', '.join(map(str, spans))}" for metric, spans in finding.evidence.items()
    ]
    change = [f"  change: {finding.change}"] if finding.change else []
    first = f"{finding.level}: {finding.what} [{finding.name}]"
    return "\n".join([first, *evidence, f"  {finding.cause} {finding.remedy}", *change])


def _environment(found: dict[str, Any]) -> str:
    packages = {name: version or "not installed" for name, version in found["packages"].items()}
    plugins, gpus = found["plugins"], found["gpus"]
    if not isinstance(plugins, str):
        named = [
            f"{p['distribution']} {p['version']}: {', '.join(p['components'])}" for p in plugins
        ]
        plugins = "\n  ".join(named) or "none"
    threads = ", ".join(f"{name}={value}" for name, value in found["variables"].items())
    rows = {
        "rlframe": found["rlframe"],
        "python": found["python"],
        "platform": found["platform"],
        **packages,
        "CPU threads": f"{found['cpu_threads']}{f' ({threads})' if threads else ''}",
        "GPUs": gpus if isinstance(gpus, str) else "; ".join(gpus) or "none",
        "plugins": plugins,
    }
    return "\n".join(f"{name}: {value}" for name, value in rows.items())

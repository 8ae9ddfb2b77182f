"""What the tests see: a seeded sample of mutants, each against the test files that watch its module.

    OMP_NUM_THREADS=1 .venv/bin/python -m tests.benchmarks.mutants --output mutants.jsonl

A mutant is one change by an operator of cosmic-ray (pip install cosmic-ray) to one expression of
engine/, stages/, runs/ or builtin/. It is killed if a test fails, and survives if all pass. Equivalent
mutants count as survivors; what is never executed (annotations) is not mutated. A position is drawn
first and then one of its mutants, so that an operator with many variants is not drawn more often.
`--named` tries those of `NAMED` instead, which say in words what they break.

Each mutant is tried in a process of its own, forked from one that has imported everything but rlframe.
The mutated source is handed to the import system, so no file is changed and mutants may run side by
side. A file of results is continued: results of a module whose source has changed since are dropped.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PACKAGES = ("engine", "stages", "runs", "builtin")
HANGS = 60
"""Seconds without any CPU time after which a mutant waits for what will never come."""
LEFT_OUT = ("VariableInserter", "VariableReplacer")
"""Operators that want the names of variables."""

WHOLE_RUNS = ("tests/compose/test_run.py", "tests/compose/test_resume.py")
REFERENCE = "tests/engine/test_reference.py"
VALUES = "tests/test_values.py"
CHATS = "tests/compose/test_chat_policy.py"

WATCHERS: dict[str, tuple[str, ...]] = {
    "engine": ("tests/engine/test_updater.py", REFERENCE, "tests/compose/test_run.py"),
    "engine/ema": ("tests/compose/test_ema.py",),
    "engine/batching": (REFERENCE,),
    "engine/checkpoint": ("tests/compose/test_ema.py", *WHOLE_RUNS),
    "engine/scoring": (REFERENCE, "tests/compose/test_run.py"),
    "engine/transforming": ("tests/engine/test_scoring.py", REFERENCE),
    "engine/kl_control": (REFERENCE,),
    "engine/metrics": (REFERENCE,),
    "engine/rebalancing": (),
    "engine/streams": ("tests/engine/test_updater.py", REFERENCE),
    "runs/trees": (),
    "stages": ("tests/stages/test_sft.py", "tests/stages/test_reward_model.py", *WHOLE_RUNS),
    "runs": WHOLE_RUNS,
    "engine/update_metrics": (REFERENCE, "tests/compose/test_run.py"),
    "runs/durable": ("tests/runs/test_power.py", *WHOLE_RUNS),
    "runs/resuming": ("tests/runs/test_fingerprints.py", *WHOLE_RUNS),
    "runs/saving": ("tests/runs/test_checkpointer.py", *WHOLE_RUNS),
    "runs/sealed": ("tests/runs/test_power.py", *WHOLE_RUNS),
    "builtin": ("tests/testing/test_builtins.py", "tests/test_docs.py"),
    "builtin/classifier": ("tests/builtin/test_reward_model.py", CHATS),
    "builtin/reward_input": ("tests/builtin/test_reward_model.py", CHATS),
}
"""Module, or package for those that are not named -> test files, after the one that mirrors it."""


NAMED = {
    "the sign of the KL penalty": (
        "engine/experience",
        "apply_kl_penalty(rewards, kl, kl_coefficient=kl_coefficient)",
        "apply_kl_penalty(rewards, kl, kl_coefficient=-kl_coefficient)",
    ),
    "the choice of estimator": (
        "engine/evaluation",
        "kl_estimators.ESTIMATORS[self.estimator]",
        'kl_estimators.ESTIMATORS["k1"]',
    ),
    "full is k1": ("engine/evaluation", 'self.estimator == "full"', "False"),
    "rewards are never whitened": ("engine/experience", "if self.whiten_rewards:", "if False:"),
    "advantages are always whitened": (
        "engine/experience",
        "if self.whiten_advantages:",
        "if True:",
    ),
    "whitened rewards lose their mean": (
        "engine/experience",
        "whiten(rewards, mask, center=False",
        "whiten(rewards, mask, center=True",
    ),
    "the target of the value loss": (
        "engine/objective",
        "ValueLossBatch(values, exp.values, exp.returns",
        "ValueLossBatch(values, exp.values, exp.advantages",
    ),
    "the value loss without its coefficient": (
        "engine/objective",
        "self.value_coefficient * value",
        "value",
    ),
    "the metric reward/NAME/running_std": (
        "builtin/reward_transforms",
        '"running_std": seen.std',
        '"running_std": seen.squared_deviations',
    ),
    "the mix without its transforms": (
        "engine/scoring",
        "parts[name][:, None] * values[name]",
        "parts[name][:, None] * raw[name]",
    ),
    "another clip for values": (
        "builtin/value_losses",
        "clip=self.config.clip",
        "clip=2 * self.config.clip",
    ),
    "KL as a loss without the policy's weights": (
        "engine/objective",
        "kl_coefficient * self._weighed(kl, mask)",
        "kl_coefficient * masked_sum(kl, mask)",
    ),
    "KL as a loss without its coefficient": (
        "engine/objective",
        "kl_coefficient * self._weighed(kl, mask)",
        "self._weighed(kl, mask)",
    ),
    "KL as a loss without the ratio": (
        "engine/objective",
        "exp.reference, ratio)",
        "exp.reference, torch.ones_like(ratio))",
    ),
    "the estimator of the KL loss": (
        "engine/objective",
        "kl_estimators.ESTIMATORS[self.kl_loss]",
        'kl_estimators.ESTIMATORS["k2"]',
    ),
    "auxiliary losses without coefficient": (
        "engine/objective",
        "loss + instance.component.coefficient * total / count",
        "loss + total / count",
    ),
    "the next update's coefficient in the rewards' metrics": (
        "engine/update_metrics",
        "update.kl.coefficient if penalty",
        "update.next_kl.coefficient if penalty",
    ),
    "the KL coefficient of the wrong update": (
        "engine/update_metrics",
        '"kl/coefficient": update.kl.coefficient',
        '"kl/coefficient": update.next_kl.coefficient',
    ),
    "the coefficient is never adapted": (
        "engine/ppo",
        "RunState(number + 1, run.control.update(kl, measured))",
        "RunState(number + 1, kl)",
    ),
    "another coefficient in the loss": (
        "engine/ppo",
        "update_policy(experience, kl_coefficient=kl.coefficient)",
        "update_policy(experience, kl_coefficient=run.control.initial().coefficient)",
    ),
    "lost controller memory": (
        "engine/ppo",
        "kl = state.kl",
        "kl = type(state.kl)(state.kl.coefficient, run.control.initial().memory)",
    ),
    "the learning rate's schedule": (
        "engine/updater",
        'group["lr"] = group["peak_lr"] * factor',
        'group["lr"] = group["peak_lr"]',
    ),
    "the schedule of another update": (
        "engine/updater",
        "self._schedule(experience.update)",
        "self._schedule(experience.update + 1)",
    ),
    "identical shuffling in every epoch": ("engine/batching", "* 1_009 + epoch", "* 1_009"),
    "identical shuffling in every update": (
        "engine/batching",
        "(self._seed * 1_000_003 + self._update)",
        "(self._seed * 1_000_003)",
    ),
    "the same auxiliary examples in every step": (
        "engine/auxiliary",
        "take(step * per_step, per_step)",
        "take(0, per_step)",
    ),
    "epochs that never stop early": (
        "engine/updater",
        "if self._moved_too_far(passed):",
        "if False:",
    ),
    **{
        f"the metric {name}": ("engine/objective", f'"{name}", {value}', f'"{name}", {other}')
        for name, value, other in (
            ("policy/approxkl_avg", "0.5 *", "1.0 *"),
            ("policy/clipfrac_avg", "term.clipped", "~term.clipped"),
            ("policy/entropy_avg", "now.entropy", "-now.logprobs"),
            ("loss/policy_avg", "term.loss", "-term.loss"),
            ("loss/value_avg", "term.loss", "2 * term.loss"),
            ("val/clipfrac_avg", "term.clipped", "~term.clipped"),
            ("val/ratio", "ratio", "1 / ratio"),
            ("ratio_square", "(ratio.double() - 1)", "(ratio.double())"),
            ("loss/kl_avg", "kl", "kl_coefficient * kl"),
        )
    },
    **{
        f"the metric {name}": ("engine/update_metrics", value, other)
        for name, value, other in (
            ("val/ratio_var", "variance < 0 else variance", "variance < 0 else variance + shift"),
            ("objective/rlhf_reward", ' + found["objective/non_score_reward"]', ""),
            ("objective/entropy", "row_sums(-exp.logprobs", "row_sums(exp.logprobs"),
            (
                "objective/non_score_reward",
                "-kl_coefficient * kl.sum()",
                "kl_coefficient * kl.sum()",
            ),
            ("objective/kl", '"objective/kl", kl.sum()', '"objective/kl", exp.kl.abs().sum()'),
            ("response/truncated_share", "reason is StopReason.LENGTH", "reason is StopReason.EOS"),
            ("val/num_eos_tokens", "reason is StopReason.EOS", "reason is not StopReason.LENGTH"),
            ("response/length_mean", "exp.mask.sum(), count", "exp.mask.sum(), exp.mask.sum()"),
            ("critic/explained_variance", "exp.returns - exp.values", "exp.values"),
            ("kl/nats_per_token", "update.measured.nats_per_token", "update.measured.kl"),
            ("reward/NAME/raw", "scores.raw[name].sum()", "scores.raw[name].abs().sum()"),
            ("objective/scores_std", ".var.sqrt()", ".var"),
        )
    },
}
"""What is broken -> (module, text, text in its place): what the tests did not see once."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    """As "engine/updater"."""
    operator: str
    occurrence: int
    line: int
    column: int
    digest: str
    """Of the module's source."""


def path_of(module: str) -> Path:
    return ROOT / "rlframe" / f"{module}.py"


def watchers(module: str) -> list[str]:
    """Test files of a module, the one that mirrors it first."""
    package, _, name = module.partition("/")
    own = f"tests/{package}/test_{name}.py"
    more = WATCHERS.get(module, WATCHERS[package])
    return [*([own] if (ROOT / own).exists() else []), VALUES, *(m for m in more if m != own)]


# Drawing


def annotations(source: str) -> set[tuple[int, int]]:
    """(line, column) of everything inside of annotations, which are text here."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            root = getattr(node, name, None)
            for inner in ast.walk(root) if isinstance(root, ast.AST) else ():
                if isinstance(inner, ast.expr) and inner.end_lineno is not None:
                    lines = range(inner.lineno, inner.end_lineno + 1)
                    found |= {(n, c) for n in lines for c in _columns(inner, n)}
    return found


def _columns(node: ast.expr, line: int) -> range:
    start = node.col_offset if line == node.lineno else 0
    return range(start, (node.end_col_offset or 0) if line == node.end_lineno else 200)


def every_mutant() -> dict[tuple[str, int, int], list[Mutant]]:
    """(module, line, column) -> the mutants there."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    operators = [name for name in operator_names() if not name.endswith(LEFT_OUT)]
    found: dict[tuple[str, int, int], list[Mutant]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / "rlframe" / package).glob("*.py")):
            source, module = path.read_text(encoding="utf-8"), f"{package}/{path.stem}"
            digest, never = hashlib.sha256(source.encode()).hexdigest()[:12], annotations(source)
            nodes = list(ast_nodes(get_ast(source)))
            for name in operators:
                operator, occurrence = get_operator(name)(), 0
                for node in nodes:
                    for (line, column), _ in operator.mutation_positions(node):
                        if (line, column) not in never:
                            mutant = Mutant(module, name, occurrence, line, column, digest)
                            found.setdefault((module, line, column), []).append(mutant)
                        occurrence += 1
    return found


def sample(count: int, seed: int) -> list[Mutant]:
    """Mutants at `count` positions."""
    draw, places = random.Random(seed), every_mutant()
    order, found = draw.sample(sorted(places), len(places)), []
    while order and len(found) < count:
        mutant = draw.choice(places[order.pop()])
        if compiles(mutated(mutant)):
            found.append(mutant)
    return found


def compiles(source: str) -> bool:
    """The `*` before keyword-only arguments is no multiplication, though it is changed like one."""
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


@cache
def mutated(mutant: Mutant) -> str:
    """The module's source with the change."""
    source = path_of(mutant.module).read_text(encoding="utf-8")
    if mutant.operator == "named":
        _, before, after = list(NAMED.values())[mutant.occurrence]
        assert source.count(before) == 1, (mutant.module, before)
        return source.replace(before, after)
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    changed = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    assert changed is not None
    return str(changed)


def named() -> list[Mutant]:
    """The mutants of `NAMED`."""
    found = []
    for number, (module, before, _) in enumerate(NAMED.values()):
        source = path_of(module).read_text(encoding="utf-8")
        line = source[: source.index(before)].count("\n") + 1
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        found.append(Mutant(module, "named", number, line, 0, digest))
    return found


def difference(mutant: Mutant) -> tuple[str, str]:
    """The first line that differs, before and after."""
    before = path_of(mutant.module).read_text(encoding="utf-8").splitlines()
    changes = list(difflib.ndiff(before, mutated(mutant).splitlines()))
    found = [next((c[2:].strip() for c in changes if c[0] == sign), "") for sign in "-+"]
    return found[0], found[1]


# Trying


class First:
    """A pytest plugin that remembers the first test that failed."""

    failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = f"collecting {report.nodeid}"


def child(module: str, source: str | None, files: list[str], seconds: int, write: int) -> None:
    """In a forked process: run the tests with a module's source replaced; its result goes to a pipe."""
    import pytest

    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    if source is not None:
        right, target = SourceFileLoader.get_code, str(path_of(module))

        def get_code(self: SourceFileLoader, name: str) -> Any:
            return compile(source, target, "exec") if self.path == target else right(self, name)

        SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    first = First()
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "-x",
            "-q",
            "--assert=plain",
            "-p",
            "no:cacheprovider",
            f"--basetemp={folder}/tests",
        ]
        code = int(pytest.main([*options, *files], plugins=[first]))
    message = {"code": code, "by": first.failed, "seconds": round(time.process_time(), 1)}
    os.write(write, json.dumps(message).encode())


def tried(module: str, source: str | None, files: list[str], seconds: int) -> dict[str, Any]:
    """The result of some test files: outcome, the test that failed, CPU seconds."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            child(module, source, files, seconds, write)
        finally:
            os._exit(0)
    os.close(write)
    used, since = 0.0, time.monotonic()
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        now = sum(psutil.Process(process).cpu_times()[:4])
        if now > used:
            used, since = now, time.monotonic()
        elif time.monotonic() - since > HANGS:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            break
        time.sleep(0.05)
    message = os.read(read, 1 << 16)
    os.close(read)
    if not message:
        return {"outcome": "timed out", "by": "", "seconds": float(seconds)}
    found = json.loads(message)
    outcome = "survived" if found.pop("code") == 0 else "killed"
    return {"outcome": outcome, **found}


def warm_up() -> None:
    """Import what rlframe imports, but not rlframe: a mutant's process begins with all of it."""
    listed = "import rlframe.compose.run, rlframe.cli.main, pytest, sys; print(*sys.modules)"
    names = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", listed],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()
    for name in names:
        if name.partition(".")[0] not in ("rlframe", "tests", "__main__"):
            try:
                importlib.import_module(name)
            except ImportError:
                continue  # made by its package at import, as six.moves is
    assert not any(name.startswith("rlframe") for name in sys.modules)


def results(output: Path) -> Iterator[dict[str, Any]]:
    """Results that still hold."""
    for line in output.read_text().splitlines() if output.exists() else ():
        row = json.loads(line)
        source = path_of(row["module"]).read_bytes() if path_of(row["module"]).exists() else b""
        if hashlib.sha256(source).hexdigest()[:12] == row["digest"]:
            yield row


def summary(rows: list[dict[str, Any]]) -> str:
    """A table by package, and every survivor."""
    lines = [
        "",
        "| package | mutants | killed | timed out | survived | killed or timed out |",
        "|---|---|---|---|---|---|",
    ]
    for package in (*PACKAGES, ""):
        counts = Counter(r["outcome"] for r in rows if r["module"].startswith(package))
        total = sum(counts.values())
        if total:
            share = f"{1 - counts['survived'] / total:.1%}"
            cells = (total, counts["killed"], counts["timed out"], counts["survived"], share)
            lines.append(f"| {package or 'all'} | {' | '.join(map(str, cells))} |")
    for r in sorted(rows, key=lambda r: (r["module"], r["line"])):
        if r["outcome"] == "survived":
            lines.append(f"- `{r['module']}.py:{r['line']}` `{r['before']}` -> `{r['after']}`")
    return "\n".join(lines)


@cache
def unmutated(file: str, seconds: int) -> float:
    """CPU seconds of a test file; its tests have to pass."""
    found = tried("", None, [file], seconds)
    if found["outcome"] != "survived":
        sys.exit(f"{file}: a test fails without any mutant: {found}")
    return float(found["seconds"])


def try_module(
    module: str, mutants: list[Mutant], side_by_side: int, seconds: int
) -> Iterator[dict[str, Any]]:
    """The results of a module's mutants, one after the other."""
    files = watchers(module)
    whole = sum(unmutated(file, 10 * seconds) for file in files)
    sys.stderr.write(f"{module}: {whole:.1f} CPU seconds without a mutant, by {' '.join(files)}\n")

    def one(mutant: Mutant) -> dict[str, Any]:
        before, after = difference(mutant)
        found = tried(module, mutated(mutant), files, seconds)
        return {**asdict(mutant), "before": before, "after": after, **found}

    with ThreadPoolExecutor(side_by_side) as pool:
        for row in pool.map(one, mutants):
            message = f"{row['outcome']:9} {row['line']:4} {row['before']}  ->  {row['after']}"
            sys.stderr.write(f"  {message}  by {row['by']}\n")
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"), help="results")
    parser.add_argument("--sample", type=int, default=400, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--named", action="store_true", help="those of NAMED instead of a sample")
    parser.add_argument("--only", nargs="+", default=[""], help="modules that begin so: engine/le")
    parser.add_argument("--cpu-seconds", type=int, default=200, help="of one mutant")
    parser.add_argument("--side-by-side", type=int, default=1, help="mutants at a time")
    given = parser.parse_args()
    os.chdir(ROOT)
    drawn = named() if given.named else sample(given.sample, given.seed)
    wanted = {key_of(asdict(m)): m for m in drawn if m.module.startswith(tuple(given.only))}
    warm_up()
    held = list(results(given.output))
    given.output.write_text("".join(json.dumps(row) + "\n" for row in held))
    known = set(map(key_of, held))
    missing = [mutant for key, mutant in wanted.items() if key not in known]
    for module in sorted({m.module for m in missing}):
        mutants = [m for m in missing if m.module == module]
        for row in try_module(module, mutants, given.side_by_side, given.cpu_seconds):
            held.append(row)
            with given.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(summary([row for row in held if key_of(row) in wanted]))


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["module"], row["operator"], row["occurrence"]


if __name__ == "__main__":
    main()

"""Processes that a scheduler started and that know nothing of each other: each would run the
whole recipe.

Imports no torch: the command line asks before it does anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlframe.errors import SetupError

_MPI = {
    "OMPI_COMM_WORLD_SIZE": "mpirun (Open MPI)",
    "PMI_SIZE": "mpiexec (MPICH, Intel MPI)",
    "MV2_COMM_WORLD_SIZE": "mpirun (MVAPICH)",
}
"""Number of processes, set in each of them -> who sets it."""


def refuse_copies(environ: Mapping[str, str]) -> None:
    """Make sure that this process is alone, or one of a group that torchrun or rlframe itself made.

    Raises:
      SetupError: it is one of several that `srun` or an MPI started.
    """
    if "WORLD_SIZE" in environ:  # each knows of the others
        return
    tasks, starter = _tasks_of_this_step(environ), "srun"
    for name, whose in _MPI.items():
        if _number(environ, name) > tasks:
            tasks, starter = _number(environ, name), whose
    if tasks > 1:
        raise SetupError(
            f"{starter} started {tasks} copies of this command, and each of them would train the whole "
            "recipe by itself and write the same run, since WORLD_SIZE is not set. Start one copy "
            "on each machine, and let it start the processes. On one machine: `rlframe train "
            f"RECIPE --processes {tasks}`, without {starter.split()[0]}. On several: `srun "
            "--ntasks-per-node 1 torchrun --nnodes $SLURM_NNODES --nproc-per-node 8 --rdzv-id "
            "mine --rdzv-backend c10d --rdzv-endpoint HEAD:29500 -m rlframe train RECIPE --output "
            "/shared/runs/mine`, where HEAD is one of them"
        )


def unused_tasks(environ: Mapping[str, str], *, processes: int) -> str | None:
    """A remark for a job of several tasks, of which one process would use one; else None."""
    tasks = _number(environ, "SLURM_NTASKS")
    if "WORLD_SIZE" in environ or processes > 1 or tasks < 2:
        return None
    return (
        f"SLURM has given this job {tasks} tasks, and this run is one process. `--processes "
        f"{tasks}` uses them all if they are on one machine; docs/scale.md says what to do for several"
    )


def _tasks_of_this_step(environ: Mapping[str, str]) -> int:
    """How many tasks `srun` started beside this one; 1 outside of `srun`.

    SLURM_NTASKS does not tell: it is also set in a batch script and in the shell of `salloc`, of
    which there is one, and where `--processes` is right. What tells is the step: `srun` sets
    SLURM_STEP_NUM_TASKS to the tasks that it started (for the shell of `salloc`, if that is a
    step of its own, 1). Older versions lack it; then a step is known by SLURM_STEP_ID, and a task
    after the first by SLURM_PROCID, which is 0 in a batch script.
    """
    if "SLURM_STEP_NUM_TASKS" in environ:
        return _number(environ, "SLURM_STEP_NUM_TASKS")
    if "SLURM_STEP_ID" in environ or _number(environ, "SLURM_PROCID") > 0:
        return _number(environ, "SLURM_NTASKS")
    return 1


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else 0

"""Copies of a command that know nothing of each other, told from jobs in which one process is right."""

from __future__ import annotations

import pytest

from rlframe.distributed.copies import refuse_copies, unused_tasks
from rlframe.errors import SetupError

BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
SALLOC = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}
SALLOC_AS_A_STEP = {**SALLOC, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
SRUN = {**BATCH_SCRIPT, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}
TORCHRUN = {"WORLD_SIZE": "8", "RANK": "3"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        BATCH_SCRIPT,
        SALLOC,
        SALLOC_AS_A_STEP,
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
        {**SRUN, **TORCHRUN},
        {"OMPI_COMM_WORLD_SIZE": "2", **TORCHRUN},
        {"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"},
        {"SLURM_STEP_NUM_TASKS": "many"},
    ],
    ids=str,
)
def test_a_process_that_is_alone_or_one_of_a_group_may_run(environ: dict[str, str]) -> None:
    assert refuse_copies(environ) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (SRUN, "srun started 8 copies"),
        ({**BATCH_SCRIPT, "SLURM_STEP_ID": "0"}, "srun started 8 copies"),
        ({**BATCH_SCRIPT, "SLURM_PROCID": "3"}, "srun started 8 copies"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun (Open MPI) started 2 copies"),
        ({"PMI_SIZE": "4"}, "mpiexec (MPICH, Intel MPI) started 4 copies"),
        ({"MV2_COMM_WORLD_SIZE": "4"}, "mpirun (MVAPICH) started 4 copies"),
    ],
    ids=str,
)
def test_one_of_several_copies_is_refused_with_the_command(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(SetupError) as caught:
        refuse_copies(environ)
    assert str(caught.value).startswith(message)
    assert "torchrun" in str(caught.value)
    assert "--processes" in str(caught.value)


@pytest.mark.parametrize("environ", [BATCH_SCRIPT, SALLOC], ids=str)
def test_one_process_in_a_job_of_several_tasks_gets_a_remark(environ: dict[str, str]) -> None:
    assert "8 tasks, and this run is one process" in str(unused_tasks(environ, processes=1))
    assert unused_tasks(environ, processes=8) is None
    assert unused_tasks({**environ, **TORCHRUN}, processes=1) is None
    assert unused_tasks({**environ, "SLURM_NTASKS": "1"}, processes=1) is None

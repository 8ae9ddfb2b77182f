from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rlframe.distributed.runtime import Runtime
from rlframe.distributed.strategy import Strategy
from rlframe.errors import SetupError


def test_one_process_sums_to_itself() -> None:
    runtime = Runtime(device="cpu")
    assert (runtime.rank, runtime.world_size, runtime.device.type) == (0, 1, "cpu")
    assert runtime.sum(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert runtime.peak_memory_mib() > 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_an_environment_error() -> None:
    with pytest.raises(SetupError, match="sees no GPU"):
        Runtime(device="cuda")


def test_fsdp_has_nothing_to_offload_on_a_cpu() -> None:
    with pytest.raises(SetupError, match=r"runtime\.offload: fsdp offloads from a GPU"):
        Runtime(Strategy("fsdp", offload="all"), device="cpu")


def test_the_recipes_number_of_threads_is_used() -> None:
    before = torch.get_num_threads()
    try:
        Runtime(device="cpu", threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_processes_that_do_not_see_each_other_are_refused_instead_of_trained_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two runs that each believe to be alone would write over each other's files."""
    alone = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
    monkeypatch.setattr("rlframe.distributed.runtime.PartialState", lambda **_: alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SetupError, match="2 processes were started, but accelerate sees 1"):
        Runtime(device="cpu")
    alone.num_processes = 2
    assert Runtime(device="cpu").world_size == 2


def test_ranks_that_differ_are_named_before_anything_is_computed():
    from rlframe.distributed.runtime import refuse_difference

    refuse_difference("the recipe", ["a", "a", "a"])
    with pytest.raises(SetupError, match="the recipe is not the same on all ranks: rank 2 has b"):
        refuse_difference("the recipe", ["a", "a", "b"])

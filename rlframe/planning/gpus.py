"""GPUs as a plan needs them: what they hold, how fast they compute, and how fast bytes travel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 2**30
PER_NODE = 8
"""GPUs of a machine: how many share one CPU and its memory."""


@dataclass(frozen=True)
class Device:
    """One accelerator, or the CPU in its place. Speeds are those of the data sheet, never reached."""

    name: str
    memory_gib: float
    """What torch reports as total memory: less than the data sheet says."""
    bfloat16: float
    """Dense FLOP/s with bfloat16 inputs."""
    float32: float
    """FLOP/s with float32 inputs; torch leaves TF32 off unless it is told."""
    memory_rate: float
    """Bytes/s of its own memory."""
    link: float
    """Bytes/s to another GPU of the machine, one direction."""
    host_link: float
    """Bytes/s to the CPU, one direction."""
    runtime_gib: float = 1.0
    """What is there before any tensor: CUDA context, cuBLAS workspace, NCCL buffers."""
    launch: float = 8e-6
    """Seconds from one kernel to the next if each waits for Python: what a token costs at least."""
    head_columns: int | None = None
    """Columns of logits that are reduced at a time, `functional/logprobs.py`; all if None."""
    lazy: bool = False
    """Whether memory counts only once it is touched, as on a CPU."""

    def rate(self, precision: Literal["float32", "bfloat16"]) -> float:
        """Peak FLOP/s."""
        return self.bfloat16 if precision == "bfloat16" else self.float32


# Memory: `torch.cuda.get_device_properties(0).total_memory`, as it stands in messages of torch.
# PCIe: 4.0 x16 carries 32 GB/s in a direction, 5.0 x16 twice that.
GPUS = {
    device.name: device
    for device in (
        # NVIDIA H200 data sheet, SXM: 4.8 TB/s, 989 TFLOPS dense bf16, 67 fp32, NVLink 900 GB/s
        Device("h200", 139.8, 989.4e12, 67e12, 4.8e12, 450e9, 64e9),
        # NVIDIA H100 data sheet, SXM: 3.35 TB/s, 989 TFLOPS dense bf16, 67 fp32, NVLink 900 GB/s
        Device("h100-80gb", 79.1, 989.4e12, 67e12, 3.35e12, 450e9, 64e9),
        # NVIDIA A100 data sheet (SXM 80 GB): 2,039 GB/s, 312 TFLOPS bf16, 19.5 fp32, NVLink 600 GB/s
        Device("a100-80gb", 79.2, 312e12, 19.5e12, 2.039e12, 300e9, 32e9),
        # The same with 40 GB: 1,555 GB/s
        Device("a100-40gb", 39.4, 312e12, 19.5e12, 1.555e12, 300e9, 32e9),
        # NVIDIA L40S data sheet: 864 GB/s, 362.05 TFLOPS bf16, 91.6 fp32, PCIe 4.0 and no NVLink
        Device("l40s", 44.4, 362.05e12, 91.6e12, 0.864e12, 32e9, 32e9),
        # NVIDIA A10G data sheet: 600 GB/s, 70 TFLOPS bf16, 35 fp32, PCIe 4.0 and no NVLink
        Device("a10g", 22.1, 70e12, 35e12, 0.6e12, 32e9, 32e9),
        # NVIDIA Ada white paper: 1,008 GB/s, 165.2 TFLOPS bf16 into fp32, 82.6 fp32, PCIe 4.0
        Device("rtx4090", 23.6, 165.2e12, 82.6e12, 1.008e12, 32e9, 32e9),
    )
}


def cpu(
    *, memory_gib: float, flops: float, memory_rate: float, runtime_gib: float = 0.02
) -> Device:
    """One process on a CPU: what the model is held against on a machine without a GPU.

    Args:
      memory_gib: of the machine.
      flops: float32 FLOP/s that a large product reaches with the threads of a run.
      memory_rate: bytes/s.
      runtime_gib: modules that a run imports after its first model is there, and the allocator's rest.
    """
    return Device(
        "cpu",
        memory_gib,
        flops,
        flops,
        memory_rate,
        link=memory_rate,
        host_link=memory_rate,
        runtime_gib=runtime_gib,
        launch=5e-6,
        head_columns=1024,
        lazy=True,
    )

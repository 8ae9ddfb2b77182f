"""What a recipe says about processes and their memory of the run, as objects."""

from __future__ import annotations

import os

from rlframe.distributed import strategy
from rlframe.distributed.runtime import Runtime
from rlframe.recipe.schema import Checkpoints
from rlframe.recipe.schema import Runtime as RuntimeSection
from rlframe.runs.directory import RunDirectory
from rlframe.runs.saving import Rhythm, Saver
from rlframe.runs.stopping import StopRequest


def runtime_of(section: RuntimeSection) -> Runtime:
    """One process, under the strategy that the recipe or `accelerate launch` asks for.

    Raises:
      SetupError: the two contradict each other, keys do not go together, or the device is not there.
    """
    asked = strategy.chosen(
        name=section.strategy,
        zero_stage=section.zero_stage,
        offload=section.offload,
        precision=section.precision,
        config=section.deepspeed_config,
        environ=os.environ,
    )
    return Runtime(asked, device=section.device, threads=section.threads, placement=section.frozen)


def saver_of(
    section: Checkpoints, stage: str, files: RunDirectory, runtime: Runtime, stop: StopRequest
) -> Saver:
    """What saves the checkpoints of a stage.

    Args:
      section: when, and which of them stay.
      stage: its name, as in the stage table.
      files: of the run.
      runtime: its processes.
      stop: asked after every step.
    """
    rhythm = Rhythm(
        every=section.every,
        every_minutes=section.every_minutes,
        keep_last=section.keep_last,
        keep_best=section.keep_best,
    )
    directory = files.path / "checkpoints" / stage
    origin = files.origin(stage)
    return Saver(directory, rhythm=rhythm, runtime=runtime, stop=stop, origin=origin)

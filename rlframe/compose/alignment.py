"""The PPO stage of a project: what is said before it, and its parts put together around the policy.

It stands here and not in `stages/`, since PPO reads nearly every section of the recipe.
"""

from __future__ import annotations

from typing import Any

from rlframe.compose.components import notes_of
from rlframe.compose.ppo import PPOParts
from rlframe.compose.stage_context import ProjectStage
from rlframe.recipe.schema import PPO
from rlframe.runs.directory import RunDirectory
from rlframe.runs.display import Display
from rlframe.runs.saving import Saver
from rlframe.stages.ppo import Aligned, PPOStage


class PPORun:
    """A `StageRun`; skips what is done by itself, since more updates may follow the last one.

    Args:
      section: of the recipe.
      context: has the project.
    """

    def __init__(self, section: PPO, context: ProjectStage) -> None:
        self._section = section
        self._project = context.project

    def check(self) -> None:
        """Every prompt leaves room for its response."""
        _ = self._project.prompts

    @property
    def headline(self) -> str:
        prompts, _ = self._project.prompts
        return f"{self._section.updates} updates on {len(prompts)} prompts"

    @property
    def notes(self) -> list[str]:
        return self._project.data.prompt_notes()

    def run(self, policy: Any, files: RunDirectory, display: Display, saver: Saver) -> Aligned:
        """Build the PPO run around the policy, and run or resume it. Collective: call on all ranks."""
        project, parts = self._project, PPOParts(self._project, policy)
        for path, component in parts.components.items():
            for note in notes_of(path, component):
                display.say(f"{path}: {note}")
        return PPOStage(
            run=parts.run(files, display, saver),
            directory=files,
            display=display,
            runtime=project.runtime,
            ema=parts.ema,
            table_rows=project.recipe.evaluation.table_rows,
            resolved=project.loaded.resolved(),
        ).align()

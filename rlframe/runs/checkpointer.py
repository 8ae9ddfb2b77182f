"""What a stage keeps between two steps: weights as a model folder, everything else as named states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlframe.api.events import CheckpointSaved
from rlframe.errors import RunError
from rlframe.registry.relay import Relay
from rlframe.runs.directory import RunDirectory
from rlframe.runs.saving import Saver
from rlframe.runs.trees import load_tree, save_tree


class Stateful(Protocol):
    """Something that remembers; its state is a tree, see `runs.trees`, that is equal on all ranks."""

    def state_dict(self) -> Mapping[str, Any]:
        """What it remembers. Collective: called on all ranks."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave. Collective: called on all ranks."""


class Weights(Protocol):
    """The models of a stage, which are kept as folders that other tools can load."""

    def gather(self) -> Callable[[Path], None]:
        """A function that writes the present weights into a directory. Collective."""

    def load(self, directory: Path) -> None:
        """Take back what was written. Collective: called on all ranks."""


class Checkpointer:
    """Saves and restores one stage.

    Args:
      directory: of the run.
      saver: knows when to save, and where.
      observers: are notified of every checkpoint.
      weights: the models.
      optimizer: its memory is kept in checkpoints, and not in the result of the stage.
      kept: name -> whatever else remembers something.
      steps: in the whole stage.
    """

    def __init__(
        self,
        directory: RunDirectory,
        saver: Saver,
        observers: Relay,
        *,
        weights: Weights,
        optimizer: Stateful,
        kept: Mapping[str, Stateful],
        steps: int,
    ) -> None:
        self._directory = directory
        self.saver = saver
        self._observers = observers
        self._weights = weights
        self._optimizer = optimizer
        self._kept = dict(kept)
        self._steps = steps
        self._last: dict[str, Any] | None = None
        self._number = steps

    def check(self) -> None:
        """Make sure, before hours of work, that every state can be saved.

        Raises:
          RunError: of the first that cannot.
        """
        self._states()

    def after(
        self, done: int, state: Mapping[str, Any], *, score: float | None, ends: bool = False
    ) -> None:
        """Save a checkpoint if one is due, or if the run is asked to stop. Collective.

        Args:
          done: steps so far.
          state: of the loop itself.
          score: by which the best checkpoints are kept; None if nothing was evaluated.
          ends: whether the stage ends here, before its last step. It is given a checkpoint then, by
            which it can be resumed all the same, with the optimiser's memory.

        Raises:
          Stopped: the run was asked to stop, and a checkpoint is saved.
        """
        last = done == self._steps
        if last or ends:  # the result keeps it too, so that the run can be given more steps
            self._last, self._number = self._tree(state), done
        if ends and not last:
            self._save(done, state, score)
        else:
            self.saver.after(done, lambda: self._save(done, state, score), last=last)

    def _save(self, done: int, state: Mapping[str, Any], score: float | None) -> None:
        write, memory, tree = (
            self._weights.gather(),
            self._optimizer.state_dict(),
            self._tree(state),
        )

        def fill(path: Path) -> None:
            write(path)
            save_tree(path / "state", tree)
            save_tree(path / "optimizer", memory)

        self._directory.sync()
        path = self.saver.write(done, fill, score=score)
        self._observers.tell("checkpoint_saved", CheckpointSaved(done - 1, path))

    def save_result(self, stage: str) -> None:
        """Write the models as the result of the stage. Collective: call on all ranks."""
        write, tree = self._weights.gather(), self._last
        assert tree is not None

        def fill(path: Path) -> None:
            write(path)
            save_tree(path / "state", tree)

        self._directory.write_result(stage, fill, number=self._number)
        path = self._directory.path / stage
        self._observers.tell("checkpoint_saved", CheckpointSaved(self._number - 1, path))

    def restore(self, path: Path) -> Mapping[str, Any]:
        """Go back to a checkpoint, or to the result of a run that is to make more steps.

        Collective: call on all ranks.

        Returns:
          The state of the loop itself.

        Raises:
          RunError: something does not take its state back.
        """
        tree = self._last = load_tree(path / "state")  # the result's, if no step is left to make
        self._weights.load(path)
        if (path / "optimizer.json").exists():
            self._optimizer.load_state_dict(load_tree(path / "optimizer"))
        missing = sorted(self._kept.keys() - tree["kept"].keys())
        if missing:
            raise RunError(f"{path}: there is no state of {', '.join(missing)} in it")
        for name, thing in self._kept.items():
            thing.load_state_dict(tree["kept"][name])
        state: Mapping[str, Any] = tree["loop"]
        return state

    def _tree(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return {"loop": dict(state), "kept": self._states()}

    def _states(self) -> dict[str, dict[str, Any]]:
        return {name: dict(thing.state_dict()) for name, thing in self._kept.items()}

"""transformers.Trainer as both supervised stages use it, on any number of processes: the order of the
examples does not depend on their number, and checkpoints and progress are our own.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from rlframe.runs.saving import Saver
from rlframe.runs.trees import flat_optimizer, load_flat_optimizer, load_tree, save_tree

Progress = Callable[[int, int, dict[str, float]], None]
"""(step, of how many, figures): called after each optimiser step; figures are empty between logs."""


@dataclass(frozen=True)
class FineTuningSettings:
    """Hyperparameters of a supervised stage; see the recipe's `sft` section for units."""

    epochs: float
    batch_size: int
    """Over all processes."""
    processes: int
    learning_rate: float
    warmup_share: float
    weight_decay: float
    seed: int
    cpu: bool
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Around every forward pass: the precision of the computation, whatever that of the weights."""


class Examples(Dataset[dict[str, Any]]):
    """Examples in memory; beyond the last one lies `blank`, which counts for nothing."""

    def __init__(self, examples: Sequence[dict[str, Any]], blank: dict[str, Any]) -> None:
        self._examples = examples
        self._blank = blank

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._examples[index] if index < len(self._examples) else self._blank


class _Shuffled(Sampler[int]):
    """Each epoch in an order of its own, filled up with blanks until every process has its share.

    accelerate would fill the last batch up with examples of the first, so that several processes would
    learn something else than one.
    """

    def __init__(self, count: int, *, seed: int, multiple: int) -> None:
        self._count, self._seed = count, seed
        self._length = -(-count // multiple) * multiple
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        yield from torch.randperm(self._count, generator=generator).tolist()
        yield from range(self._count, self._length)


class _Epochs(TrainerCallback):
    """Tells the sampler which epoch begins.

    transformers and accelerate do as well, but not on several processes where a run goes on in the
    middle of an epoch: one wrapper more hides the sampler then (5.23, 1.15).
    """

    def __init__(self, order: _Shuffled, steps: int) -> None:
        self._order, self._steps = order, steps

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._order.set_epoch(state.global_step // self._steps)


class _Reporter(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps, {})

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        self._progress(state.global_step, state.max_steps, dict(logs or {}))


class _Keeper(TrainerCallback):
    """Saves checkpoints at the end of a step."""

    def __init__(self, saver: Saver) -> None:
        self._saver = saver

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done, last = state.global_step, state.global_step == state.max_steps
        self._saver.after(done, lambda: self._save(state, **kwargs), last=last)

    def _save(self, state: Any, *, optimizer: Any, lr_scheduler: Any, model: Any, **_: Any) -> None:
        names = dict(model.named_parameters())
        random_states = self._saver.runtime.gather(_random_state())

        def fill(path: Path) -> None:
            state.save_to_json(str(path / TRAINER_STATE_NAME))
            save_tree(path / "optimizer", flat_optimizer(_bare(optimizer), names))
            save_tree(
                path / "stage",
                {
                    "model": dict(model.state_dict()),
                    "schedule": _plain_schedule(lr_scheduler),
                    "random": random_states,
                },
            )

        self._saver.write(state.global_step, fill)


class _OneDevice(TrainingArguments):
    """One process uses one device.

    Where it sees several GPUs, Trainer would wrap the model in `DataParallel`, which gives each a part
    of the batch: the chosen answers to one, the rejected ones to another.
    """

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


class _Resuming(Trainer):
    """Reads what `_Keeper` wrote in place of what Trainer would, which is pickled."""

    rank = 0
    order: Sampler[int]
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def compute_loss_context_manager(self) -> Any:
        return self.autocast()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tree = load_tree(Path(resume_from_checkpoint) / "stage")
        self._model().load_state_dict(tree["model"])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            names = dict(self._model().named_parameters())
            tree = load_tree(Path(checkpoint) / "optimizer")
            load_flat_optimizer(_bare(self.optimizer), names, tree)
            assert self.lr_scheduler is not None
            self.lr_scheduler.load_state_dict(load_tree(Path(checkpoint) / "stage")["schedule"])

    def _model(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states = load_tree(Path(checkpoint) / "stage")["random"]
            _set_random_state(states[self.rank] if self.rank < len(states) else states[0])


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser in accelerate's wrapper."""
    found: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found


def _plain_schedule(scheduler: Any) -> dict[str, Any]:
    """A schedule's counters; its functions are made again from the settings."""
    state = scheduler.state_dict()
    return {key: state[key] for key in ("last_epoch", "_step_count", "base_lrs", "_last_lr")} | {
        "lr_lambdas": [None for _ in state["lr_lambdas"]]
    }


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, [int(key) for key in keys], position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def fit(
    loss: nn.Module,
    model: Any,
    examples: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    blank: dict[str, Any],
    settings: FineTuningSettings,
    progress: Progress,
    saver: Saver | None = None,
) -> None:
    """Train `model` in place with a linear decay after a warm-up; leaves it in eval mode.

    Args:
      loss: holds `model`; its forward pass of a collated batch and `num_items_in_batch`, the labels
        that count on all processes, returns {"loss": ...}: their share of the mean. A module, so that
        whatever wraps it for several processes sees every gradient.
      model: a transformers model.
      examples: drawn at random. Grouping them by length saves padding but costs more than it saves:
        batches of one length each point elsewhere (pros_cons, one epoch: perplexity 65 against 32).
      collate: examples -> tensors; `labels` among them, -100 where nothing counts.
      blank: an example whose labels are all -100.
      settings: hyperparameters.
      progress: notified of each step.
      saver: of the stage's checkpoints; training resumes from the newest one. None for none.
    """
    an_epoch = math.ceil(len(examples) / settings.batch_size)
    steps = an_epoch * settings.epochs
    multiple = settings.batch_size if settings.processes > 1 else 1
    order = _Shuffled(len(examples), seed=settings.seed, multiple=multiple)
    with tempfile.TemporaryDirectory() as scratch:  # Trainer insists on a place for output
        arguments = _OneDevice(
            output_dir=scratch,
            per_device_train_batch_size=settings.batch_size // settings.processes,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            warmup_steps=math.ceil(steps * settings.warmup_share),
            weight_decay=settings.weight_decay,
            logging_steps=max(1, round(steps / 20)),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=settings.cpu,
            dataloader_pin_memory=not settings.cpu,
            remove_unused_columns=False,
            seed=settings.seed,
        )
        runner = _Resuming(
            model=loss,
            args=arguments,
            train_dataset=Examples(examples, blank),
            data_collator=collate,
            callbacks=[
                _Epochs(order, an_epoch),
                _Reporter(progress),
                *([] if saver is None else [_Keeper(saver)]),
            ],
        )
        newest = None if saver is None else saver.newest()
        runner.order = order
        runner.autocast = settings.autocast
        runner.rank = 0 if saver is None else saver.runtime.rank
        runner.remove_callback(PrinterCallback)  # it prints on stdout; progress is ours to show
        runner.train(resume_from_checkpoint=str(newest.path) if newest else None)
    model.eval()

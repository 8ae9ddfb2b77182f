"""transformers.Trainer as both supervised stages use it: one process, no files, our own progress."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

Progress = Callable[[int, int, dict[str, float]], None]
"""(step, of how many, figures): called after each optimiser step; figures are empty between logs."""


@dataclass(frozen=True)
class FineTuningSettings:
    """Knobs of a supervised stage; see the recipe's `sft` section for units."""

    epochs: float
    batch_size: int
    learning_rate: float
    warmup_share: float
    weight_decay: float
    seed: int
    cpu: bool


class Examples(Dataset[dict[str, Any]]):
    """Examples in memory."""

    def __init__(self, examples: Sequence[dict[str, Any]]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._examples[index]


class _Reporter(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps, {})

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        self._progress(state.global_step, state.max_steps, dict(logs or {}))


def fit(
    loss: nn.Module,
    model: Any,
    examples: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    settings: FineTuningSettings,
    progress: Progress,
) -> None:
    """Train `model` in place with a linear decay after a warm-up; leaves it in eval mode.

    Args:
      loss: holds `model`; its forward pass of a collated batch returns {"loss": ...}. A module, so that
        whatever wraps it for several processes sees every gradient.
      model: a transformers model.
      examples: drawn at random. Grouping them by length saves padding but costs more than it saves:
        batches of one length each point elsewhere (pros_cons, one epoch: perplexity 65 against 32).
      collate: examples -> tensors.
      settings: knobs.
      progress: told about each step.
    """
    steps = math.ceil(len(examples) / settings.batch_size) * settings.epochs
    with tempfile.TemporaryDirectory() as scratch:  # Trainer insists on a place for output
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=settings.batch_size,
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
        runner = Trainer(
            model=loss,
            args=arguments,
            train_dataset=Examples(examples),
            data_collator=collate,
            callbacks=[_Reporter(progress)],
        )
        runner.remove_callback(PrinterCallback)  # it prints on stdout; progress is ours to show
        runner.train()
    model.eval()

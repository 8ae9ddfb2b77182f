"""What both supervised stages have in common: the precision of the computation, and one device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from rlframe.distributed.runtime import Runtime
from rlframe.distributed.strategy import Strategy
from rlframe.models.loading import scalar_model_from
from rlframe.stages.reward_model import train_reward_model
from rlframe.stages.sft import fine_tune
from rlframe.stages.supervised import FineTuningSettings
from rlframe.types import TokenExample

SETTINGS = FineTuningSettings(
    epochs=1,
    batch_size=4,
    processes=1,
    learning_rate=1e-2,
    warmup_share=0.0,
    weight_decay=0.0,
    seed=0,
    cpu=True,
)
TEXTS = [TokenExample((1, 20 + i, 30, 31, 2), 0) for i in range(8)]


def sft(model: Any, settings: FineTuningSettings) -> None:
    fine_tune(model, TEXTS, pack_to=None, settings=settings, progress=lambda *_: None)


def reward_model(model: Any, settings: FineTuningSettings) -> Any:
    judge = scalar_model_from(model, head="normal", seed=0)
    pairs = list(zip(TEXTS[:4], TEXTS[4:], strict=True))
    return judge, partial(
        train_reward_model,
        judge,
        pairs,
        center=0.1,
        settings=settings,
        progress=lambda *_: None,
    )


def trained(stage: str, model: Any, settings: FineTuningSettings) -> tuple[Any, set[torch.dtype]]:
    """The model that a stage trained, and the dtypes in which its linear layers computed."""
    judge, train = (
        (model, partial(sft, model, settings)) if stage == "sft" else reward_model(model, settings)
    )
    seen: set[torch.dtype] = set()
    for layer in (part for part in judge.modules() if isinstance(part, nn.Linear)):
        layer.register_forward_hook(lambda _layer, _given, result: seen.add(result.dtype))
    train()
    return judge, seen


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bfloat16_computes_in_it_and_trains_float32_weights(
    stage: str, strategy: Any, language_model: Callable[..., Any]
) -> None:
    """By every strategy: the supervised stages run on DDP anyway."""
    runtime = Runtime(Strategy(precision="bfloat16"), device="cpu")
    runtime.strategy = Strategy(strategy, precision="bfloat16")
    settings = replace(SETTINGS, autocast=runtime.mixed_precision)
    mixed, seen = trained(stage, language_model(), settings)
    assert seen == {torch.bfloat16}
    assert {weight.dtype for weight in mixed.parameters()} == {torch.float32}
    exact, seen = trained(stage, language_model(), SETTINGS)
    assert seen == {torch.float32}
    apart = [
        float((a - b).detach().abs().max())
        for a, b in zip(mixed.parameters(), exact.parameters(), strict=True)
    ]
    assert 0 < max(apart) < 0.05  # two steps of Adam move a weight by at most 0.02


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_float64_is_computed_in_and_kept(stage: str, language_model: Callable[..., Any]) -> None:
    model, seen = trained(stage, language_model(dtype=torch.float64), SETTINGS)
    assert seen == {torch.float64}
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_one_process_uses_one_device_however_many_it_sees(
    stage: str, language_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer takes all that are visible, and would give each a part of the batch."""
    alone, _ = trained(stage, language_model(), SETTINGS)
    wrapped: list[Any] = []
    inner = Trainer._wrap_model

    def wrap(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        self.args._n_gpu = 4  # what `_setup_devices` sets where torch sees four
        wrapped.append(inner(self, model, *args, **kwargs))
        assert self.args.train_batch_size == SETTINGS.batch_size
        return wrapped[-1]

    monkeypatch.setattr(Trainer, "_wrap_model", wrap)
    among_four, _ = trained(stage, language_model(), SETTINGS)
    assert wrapped
    assert not any(isinstance(found, nn.DataParallel) for found in wrapped)
    for one, other in zip(alone.parameters(), among_four.parameters(), strict=True):
        assert torch.equal(one, other)


def test_trainer_would_have_taken_all_of_them(tmp_path: Any) -> None:
    """The premise of the test above."""
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    arguments._n_gpu = 4
    assert arguments.n_gpu == 4

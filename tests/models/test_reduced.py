from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig

from rlframe.models.reduced import reduced_model


@pytest.mark.parametrize("kind", ["llama", "jamba", "gemma2", "deepseek_v3", "mixtral"])
def test_a_large_model_becomes_small_and_keeps_every_kind_of_layer(kind: str) -> None:
    config = AutoConfig.for_model(kind)
    before = copy.deepcopy(config.to_dict())
    model, _ = reduced_model(config, length=None)
    assert model is not None
    assert model.num_parameters() < 40e6
    assert next(model.parameters()).dtype == torch.float32
    assert config.to_dict() == before  # the one that was given is as it was
    for name in ("layer_types", "layers_block_type"):
        if getattr(config, name, None):
            assert set(getattr(model.config, name)) == set(getattr(config, name))


@pytest.mark.parametrize(("length", "window"), [(None, 4), (30, 4096), (5000, 4)])
def test_a_window_slides_only_where_the_run_passes_it(length: int | None, window: int) -> None:
    model, _ = reduced_model(AutoConfig.for_model("mistral", sliding_window=4096), length=length)
    assert model.config.sliding_window == window


def test_what_cannot_be_made_is_explained() -> None:
    config = AutoConfig.for_model("dbrx")
    model, reasons = reduced_model(config, length=None)
    assert model is None
    assert any("rope_theta" in reason for reason in reasons)

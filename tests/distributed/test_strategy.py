"""Which engine runs, from a recipe and from what `accelerate launch` leaves in the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlframe.distributed.runtime import Runtime
from rlframe.distributed.strategy import Strategy, chosen
from rlframe.errors import SetupError

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
FSDP = {"ACCELERATE_USE_FSDP": "true"}


def choose(environ: dict[str, str] | None = None, **keys: Any) -> Strategy:
    asked: dict[str, Any] = {
        "name": "auto",
        "zero_stage": None,
        "offload": "none",
        "precision": "float32",
        "config": None,
        **keys,
    }
    return chosen(environ=environ or {}, **asked)


# The recipe alone


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, Strategy("ddp")),
        ({"name": "ddp", "precision": "float64"}, Strategy("ddp", precision="float64")),
        ({"name": "deepspeed"}, Strategy("deepspeed", 2)),
        ({"name": "deepspeed", "zero_stage": 3}, Strategy("deepspeed", 3)),
        ({"name": "deepspeed", "offload": "all"}, Strategy("deepspeed", 2, "all")),
        ({"name": "deepspeed", "config": "ds.json"}, Strategy("deepspeed", config="ds.json")),
        ({"name": "fsdp", "offload": "all"}, Strategy("fsdp", offload="all")),
        ({"name": "fsdp", "precision": "bfloat16"}, Strategy("fsdp", precision="bfloat16")),
    ],
)
def test_a_recipe_decides_where_accelerate_is_silent(
    keys: dict[str, Any], expected: Strategy
) -> None:
    assert choose(**keys) == expected


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"zero_stage": 2}, r"runtime\.zero_stage is a setting of deepspeed.*strategy is ddp"),
        (
            {"name": "fsdp", "config": "ds.json"},
            r"runtime\.deepspeed_config is a setting of deepspeed.*strategy is fsdp",
        ),
        ({"offload": "all"}, r"runtime\.offload needs the strategy deepspeed or fsdp"),
        ({"name": "ddp", "offload": "optimizer"}, r"runtime\.offload needs the strategy"),
        ({"name": "fsdp", "offload": "optimizer"}, r"runtime\.offload=all"),
        ({"name": "deepspeed", "precision": "float64"}, "DeepSpeed has no float64"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        choose(**keys)


def test_a_strategy_is_told_in_the_words_of_its_engine() -> None:
    assert str(Strategy()) == "DDP, float32"
    assert str(Strategy("fsdp", precision="bfloat16")) == "FSDP2, bfloat16"
    message = str(Strategy("deepspeed", 3, "optimizer"))
    assert message == "DeepSpeed ZeRO-3, optimizer offloaded, float32"


# What `accelerate launch` says


@pytest.mark.parametrize("yes", ["true", "True", "1"])
@pytest.mark.parametrize(("message", "expected"), [(DEEPSPEED, "deepspeed"), (FSDP, "fsdp")])
def test_accelerates_choice_is_taken_where_the_recipe_is_silent_or_says_the_same(
    message: dict[str, str], expected: Any, yes: str
) -> None:
    environ = dict.fromkeys(message, yes)
    assert choose(environ).name == expected
    assert choose(environ, name=expected).name == expected


@pytest.mark.parametrize("no", ["false", "False", "0", ""])
def test_an_engine_that_accelerate_was_told_not_to_use_is_none(no: str) -> None:
    assert choose(dict.fromkeys([*DEEPSPEED, *FSDP], no)).name == "ddp"


@pytest.mark.parametrize(
    ("environ", "name"),
    [(DEEPSPEED, "ddp"), (DEEPSPEED, "fsdp"), (FSDP, "ddp"), (FSDP, "deepspeed")],
)
def test_a_recipe_that_contradicts_accelerate_is_refused(
    environ: dict[str, str], name: str
) -> None:
    expected = "deepspeed" if environ is DEEPSPEED else "fsdp"
    words = rf"runtime\.strategy is {name}, but `accelerate launch` was given {expected}"
    with pytest.raises(SetupError, match=words):
        choose(environ, name=name)


def test_the_stage_may_come_from_accelerate() -> None:
    environ = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert choose(environ).zero_stage == 3
    assert choose(environ, zero_stage=3).zero_stage == 3
    words = r"runtime\.zero_stage is 1, but `accelerate launch` was given stage 3"
    with pytest.raises(SetupError, match=words):
        choose(environ, zero_stage=1)


def test_a_stage_that_is_left_over_of_another_engine_is_not_read() -> None:
    left = {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert choose({**FSDP, **left}) == Strategy("fsdp")
    assert choose(left, name="deepspeed").zero_stage == 2


def test_the_deepspeed_file_may_come_from_accelerate() -> None:
    environ = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "theirs.json"}
    assert choose(environ).config == "theirs.json"
    assert choose(environ, config="ours.json").config == "ours.json"
    assert choose({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": ""}).config is None


def test_accelerates_engine_is_held_to_the_same_rules() -> None:
    with pytest.raises(SetupError, match="DeepSpeed has no float64"):
        choose(DEEPSPEED, precision="float64")
    with pytest.raises(SetupError, match=r"runtime\.zero_stage is a setting of deepspeed"):
        choose(FSDP, zero_stage=3)


# The DeepSpeed config of a strategy


@pytest.fixture
def configured(tmp_path: Path) -> Any:
    """Makes the config of a strategy with this text in the user's file."""
    Runtime(device="cpu")  # tells deepspeed, which would warn that there is no GPU
    zero = pytest.importorskip("rlframe.distributed.zero", exc_type=ImportError)

    def make(given: Any = None, **keys: Any) -> dict[str, Any]:
        file = None
        if given is not None:
            file = tmp_path / "ds.json"
            file.write_text(given if isinstance(given, str) else json.dumps(given))
        strategy = Strategy("deepspeed", config=file and str(file), **keys)
        found: dict[str, Any] = zero.configuration(strategy, max_grad_norm=0.7)
        return found

    return make


def test_without_a_file_the_recipe_says_it_all(configured: Any) -> None:
    found = configured(zero_stage=1)
    assert found["zero_optimization"] == {"stage": 1}
    assert found["gradient_clipping"] == 0.7
    assert found["gradient_accumulation_steps"] == 1
    assert found["bf16"]["enabled"] is False
    assert configured(precision="bfloat16")["bf16"]["enabled"] is True


@pytest.mark.parametrize(
    ("stage", "offload", "expected"),
    [
        (2, "optimizer", {"offload_optimizer"}),
        (2, "all", {"offload_optimizer"}),  # its weights are never away
        (3, "optimizer", {"offload_optimizer"}),
        (3, "all", {"offload_optimizer", "offload_param"}),
    ],
)
def test_what_is_offloaded_waits_in_the_memory_of_the_cpu(
    configured: Any, stage: int, offload: Any, expected: set[str]
) -> None:
    zero = configured(zero_stage=stage, offload=offload)["zero_optimization"]
    assert zero == {"stage": stage, **{key: {"device": "cpu"} for key in expected}}


def test_the_users_file_is_kept_beside_what_the_recipe_says(configured: Any) -> None:
    given = {
        "zero_optimization": {"stage": 3, "overlap_comm": False, "offload_param": {"ratio": 0.5}},
        "gradient_clipping": 0.7,
        "wall_clock_breakdown": True,
    }
    found = configured(given, zero_stage=3, offload="all")
    assert found["wall_clock_breakdown"] is True
    assert found["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": False,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu", "ratio": 0.5},
    }


def test_auto_leaves_it_to_the_recipe(configured: Any) -> None:
    given = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "optimizer": "auto",
        "scheduler": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": "auto"},
    }
    assert configured(given, zero_stage=3) == configured(zero_stage=3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"zero_optimization": {"stage": 3}}, "sets stage to 3, but the recipe says 2"),
        ({"gradient_clipping": 1.0}, r"sets gradient_clipping to 1\.0, but the recipe says 0\.7"),
        ({"bf16": {"enabled": True}}, "sets enabled to True, but the recipe says False"),
        ({"zero_optimization": 3}, "sets zero_optimization to 3"),
        *(
            ({key: 1}, f"sets {key}, which the recipe decides")
            for key in (
                "train_batch_size",
                "train_micro_batch_size_per_gpu",
                "gradient_accumulation_steps",
                "optimizer",
                "scheduler",
            )
        ),
        ("[]", "holds no JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_a_file_that_contradicts_the_recipe_is_refused(
    configured: Any, given: Any, words: str
) -> None:
    with pytest.raises(SetupError, match=rf"runtime\.deepspeed_config: .*ds\.json.*{words}"):
        configured(given)


def test_a_file_that_is_not_there_is_named(configured: Any, tmp_path: Path) -> None:
    from rlframe.distributed.zero import configuration

    missing = Strategy("deepspeed", config=str(tmp_path / "missing.json"))
    with pytest.raises(SetupError, match=r"missing\.json cannot be read"):
        configuration(missing, max_grad_norm=1.0)

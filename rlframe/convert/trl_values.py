"""What the options of TRL come to, where that depends on several of them."""

from __future__ import annotations

import re
from typing import Any

from rlframe.convert import shared
from rlframe.convert.option import (
    ABSENT,
    Given,
    NoCounterpartError,
    Option,
    chosen,
    to,
    truth,
)
from rlframe.convert.shared import PLACEHOLDER


def batch(given: Given) -> int:
    per_process = given.count("per_device_train_batch_size") * given.count(
        "gradient_accumulation_steps"
    )
    return per_process * given.processes


def updates(given: Given) -> Any:
    if "total_episodes" not in given:
        raise NoCounterpartError(
            "without it the number of updates depends on the size of the data set"
        )
    return shared.quotient(given.number("total_episodes"), batch(given))


def model_name(given: Given) -> Any:
    if "sft_model_path" in given:
        raise NoCounterpartError("TRL reads the tokenizer here, and the policy from sft_model_path")
    return given["model_name_or_path"]


def split(given: Given) -> Any:
    split = str(given["dataset_train_split"])
    if not re.fullmatch(r"[\w.-]+", split):
        raise NoCounterpartError(
            f"{split!r} is a slice: name the whole split in data.prompts.hub.split, and take its first "
            "rows with data.prompts.limit"
        )
    return where_hub("dataset_train_split", "split")(given)


def where_hub(name: str, key: str) -> Any:
    """A key of a data set of the hub; a file has `split` alone."""

    def value(given: Given) -> Any:
        source = shared.dataset("prompts", str(given["dataset_name"] or PLACEHOLDER))
        if "data.prompts.hub.id" in source:
            return {f"data.prompts.hub.{key}": given[name]}
        if key == "split" and given[name] != "train":
            return {"data.prompts.split": given[name]}
        raise NoCounterpartError("data.prompts is a file, which has none")

    return value


def targets(given: Given) -> Any:
    found = given["lora_target_modules"]
    if found is None or found == "all-linear":
        return "all-linear"
    return [found] if isinstance(found, str) else list(found)


def adapters(name: str, key: str) -> Option:
    def value(given: Given) -> Any:
        if not truth(given["use_peft"] or False):
            raise NoCounterpartError("nothing reads it without use_peft")
        return given.count(name)

    return to(key, value=value)


def save_every(given: Given) -> Any:
    found = given.number("save_steps")
    if found < 1:
        raise NoCounterpartError(
            "a share of the run: write the number of updates, checkpoints.every"
        )
    return int(found)


def stop(given: Given) -> Any:
    if given["stop_token"] not in ("eos", None):
        raise NoCounterpartError("write the text at which a response ends, rollout.stop_strings")
    return ABSENT


def decay(given: Given) -> Any:
    return chosen(
        "lr_scheduler_type",
        linear="linear",
        cosine="cosine",
        constant="constant",
        constant_with_warmup="constant",
        reason="is not among rlframe's ppo.decay: constant, linear, cosine",
    )(given)


def old_batch(given: Given) -> int:
    return given.count("batch_size") * given.processes


def old_minibatches(given: Given) -> int:
    step = given.count("mini_batch_size") * given.count("gradient_accumulation_steps")
    return shared.quotient(given.count("batch_size"), step)


def old_updates(given: Given) -> Any:
    if "steps" not in given:
        raise NoCounterpartError(
            "without it the number of updates depends on the size of the data set"
        )
    return shared.quotient(given.number("steps"), old_batch(given))


def controller(given: Given) -> Any:
    start = given.number("init_kl_coef")
    if not truth(given["adap_kl_ctrl"]):
        return {"kl.controller.type": "fixed", "kl.controller.coefficient": start}
    return {
        "kl.controller.type": "adaptive",
        "kl.controller.initial": start,
        "kl.controller.target": given.number("target"),
        "kl.controller.horizon": int(given.number("horizon")),
    }


def only_adaptive(name: str) -> Any:
    def value(given: Given) -> Any:
        if not truth(given["adap_kl_ctrl"]):
            raise NoCounterpartError("a fixed coefficient has none")
        key = f"kl.controller.{name}"
        return {key: controller(given)[key]}

    return value


def scaling(given: Given) -> Any:
    kind = None
    if truth(given["use_score_scaling"] or False):
        norm = truth(given["use_score_norm"] or False)
        kind = "running_standardize" if norm else "running_scale"
    limit = given["score_clip"]
    chain: list[dict[str, Any]] = [{"type": kind}] if kind else []
    chain += [{"type": "clip", "limit": given.number("score_clip")}] if limit is not None else []
    return chain or ABSENT


def early_stop(given: Given) -> Any:
    if not truth(given["early_stopping"] or False):
        return ABSENT
    raise NoCounterpartError(
        "TRL ends the epochs at a KL of 1.5 * target_kl; ppo.stop_approx_kl does so at half the mean "
        "squared log-ratio of a token, in another unit: begin with 0.1"
    )


def generation(name: str, key: str, *, off: tuple[float, ...]) -> Option:
    def value(given: Given) -> Any:
        found = given.number(f"generation_kwargs.{name}")
        if found in off:
            return None
        return int(found) if name in ("top_k", "max_new_tokens") else found

    return to(key, value=value)

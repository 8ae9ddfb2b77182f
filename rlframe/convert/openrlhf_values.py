"""What the options of OpenRLHF come to, where that depends on several of them."""

from __future__ import annotations

import re
from typing import Any

from rlframe.convert import shared
from rlframe.convert.option import ABSENT, Given, NoCounterpartError, Value, chosen, truth
from rlframe.errors import RecipeError


def estimator(given: Given) -> str:
    return str(given["advantage_estimator"] or "gae")


def critic(given: Given) -> bool:
    return estimator(given) == "gae"


def with_critic(made: Value) -> Value:
    def value(given: Given) -> Any:
        if not critic(given):
            raise NoCounterpartError(f"{estimator(given)} has no critic, and nothing reads it")
        return made(given)

    return value


def advantages(given: Given) -> Any:
    kind = {"algorithm.advantages.type": "group_relative"}
    mean = {"algorithm.advantages.divide_by_std": False}
    whiten = {"algorithm.whiten_advantages": True}
    kinds: dict[str, dict[str, Any]] = {
        "gae": {"algorithm.advantages.type": "gae"},
        "reinforce": {"algorithm.advantages.type": "reinforce_plus_plus"},
        "rloo": {"algorithm.advantages.type": "rloo", **whiten},
        "reinforce_baseline": {**kind, **mean, **whiten},
        "group_norm": kind,
        "dr_grpo": {**kind, **mean},
    }
    if estimator(given) not in kinds:
        raise RecipeError(
            f"--advantage_estimator {estimator(given)}: OpenRLHF has {', '.join(kinds)}. Correct it in "
            "the file"
        )
    return kinds[estimator(given)]


def gamma(given: Given) -> Any:
    if estimator(given) not in ("gae", "reinforce"):
        raise NoCounterpartError(f"{estimator(given)} has gamma 1, in OpenRLHF as here")
    return given.number("gamma")


def responses(given: Given) -> int:
    return given.count("rollout_batch_size") * given.count("n_samples_per_prompt")


def minibatches(given: Given) -> int:
    return max(1, responses(given) // given.count("train_batch_size"))


def updates(given: Given) -> Any:
    if "max_samples" not in given or given.number("max_samples") >= 1e8:
        raise NoCounterpartError(
            "without --max_samples the number of updates depends on the data set"
        )
    rollouts = int(given.number("max_samples")) // given.count("rollout_batch_size")
    return given.count("num_episodes") * max(1, rollouts)


def controller(given: Given) -> Any:
    start = given.number("init_kl_coef")
    if given["kl_target"] in (None, "None"):
        return {"kl.controller.type": "fixed", "kl.controller.coefficient": start}
    if start <= 0:
        raise RecipeError(
            "--init_kl_coef 0 with --kl_target: an adaptive coefficient begins above 0"
        )
    return {
        "kl.controller.type": "adaptive",
        "kl.controller.initial": start,
        "kl.controller.target": given.number("kl_target"),
        "kl.controller.unit": "nats_per_token",
        "kl.controller.horizon": given.count("kl_horizon"),
    }


def of_controller(name: str) -> Any:
    def value(given: Given) -> Any:
        found = controller(given)
        if f"kl.controller.{name}" not in found:
            raise NoCounterpartError("nothing reads it without --kl_target")
        return {key: v for key, v in found.items() if key.rpartition(".")[2] in (name, "unit")}

    return value


def clips(given: Given) -> Any:
    return clip_keys(given, [given.number("eps_clip")] * 2)


def two_clips(given: Given) -> Any:
    return clip_keys(given, pair(given, "eps_clip_low_high"))


def clip_keys(given: Given, bounds: list[float]) -> Any:
    if "eps_clip_low_high" in given and bounds != pair(given, "eps_clip_low_high"):
        raise NoCounterpartError("--eps_clip_low_high takes its place")
    low, high = bounds
    gspo = given["policy_loss_type"] == "gspo"
    return {
        "algorithm.policy_loss.clip": low,
        **({"algorithm.policy_loss.clip_high": high} if high != low or gspo else {}),
    }


def pair(given: Given, name: str) -> list[float]:
    found = given[name]
    try:
        low, high = map(float, found)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"--{name} takes two numbers. Correct it in the file") from error
    return [low, high]


def reward_clip(given: Given) -> Any:
    low, high = pair(given, "reward_clip_range")
    if low != -high or high <= 0:
        raise NoCounterpartError(
            "rlframe's transform `clip` is symmetric: {type: clip, limit: ...}"
        )
    if no_model(given):
        raise NoCounterpartError(
            "add transforms: [{type: clip, limit: ...}] to the reward you fill in"
        )
    return [{"type": "clip", "limit": high}]


def no_model(given: Given) -> bool:
    return given["reward_pretrain"] is None


def reward_model(given: Given) -> Any:
    if "," in str(given["reward_pretrain"]):
        raise NoCounterpartError(
            "several models: give each a name of its own under rewards, with a weight"
        )
    return given["reward_pretrain"]


def critic_model(given: Given) -> str:
    initial = given["critic_pretrain"]
    if initial is None and "remote_rm_url" not in given.written and not no_model(given):
        initial = str(given["reward_pretrain"]).split(",")[0]
    return "policy" if initial in (None, given["pretrain"]) else str(initial)


def template(given: Given) -> Any:
    template = given["input_template"]
    if template in (None, "None") or truth(given["apply_chat_template"] or False):
        raise NoCounterpartError(
            "--apply_chat_template renders the prompts, and nothing else is read"
        )
    around = str(template).split("{}")
    column = str(given["input_key"])
    return f"{{{column}}}".join(t.replace("{", "{{").replace("}", "}}") for t in around)


def datasets(given: Given) -> Any:
    names = [name for name in str(given["prompt_data"]).split(",") if name]
    if len(names) == 1:
        return {**shared.of_load_dataset("prompts", names[0]), "prompts.data": "prompts"}
    raw = given["prompt_data_probs"]
    shares = (
        [1.0] * len(names) if raw in (None, "None") else [float(p) for p in str(raw).split(",")]
    )
    if len(shares) != len(names):
        raise RecipeError("--prompt_data_probs has another number of values than --prompt_data")
    keys: dict[str, Any] = {}
    weights = {}
    for name, share in zip(names, shares, strict=True):
        word = shared.word(name.rstrip("/").rpartition("/")[2])
        keys |= shared.of_load_dataset(word, name)
        weights[word] = share
    return {**keys, "prompts.data": weights}


def of_each_set(key: str, made: Value) -> Value:
    """A key of every data set of prompts."""

    def value(given: Given) -> Any:
        found = [k.split(".")[1] for k in datasets(given) if k.startswith("data.")]
        return {f"data.{name}.{key}": made(given) for name in found}

    return value


def split(given: Given) -> Any:
    keys = [k for k in datasets(given) if k.startswith("data.")]
    return {
        re.sub(r"(path|hub\.id)$", "hub.split" if k.endswith("hub.id") else "split", k): given[
            "prompt_split"
        ]
        for k in keys
        if k.endswith("hub.id") or given["prompt_split"] != "train"
    } or ABSENT


def limit(given: Given) -> Any:
    samples = int(given.number("max_samples"))
    if samples >= 1e8:
        return ABSENT
    return of_each_set("limit", lambda _: samples)(given)


def strategy(given: Given) -> Any:
    stage = int(given.number("zero_stage"))
    if stage == 0:
        return {"runtime.strategy": "ddp"}
    return {"runtime.strategy": "deepspeed", "runtime.zero_stage": stage}


def dtype(given: Given) -> Any:
    words = {"bf16": "bfloat16", "fp32": None}
    if given["param_dtype"] not in words:
        raise NoCounterpartError("rlframe computes in float32 or bfloat16")
    return words[given["param_dtype"]]


def finished(given: Given) -> Any:
    if given["stop_properly_penalty_coef"] in (None, "None"):
        return ABSENT
    found = given.number("stop_properly_penalty_coef")
    if found > 0:
        raise NoCounterpartError(
            "rlframe shuts the reward of a cut response out (eos_penalty, mode: replace) or takes a "
            "penalty off it (mode: subtract), and does not scale it"
        )
    return {
        "rewards.finished.type": "eos_penalty",
        "rewards.finished.mode": "replace",
        "rewards.finished.penalty": -found or 0.0,
    }


def entropy(given: Given) -> Any:
    if given["entropy_loss_coef"] in (None, "None") or given.number("entropy_loss_coef") == 0:
        return ABSENT
    return {
        "losses.entropy.type": "entropy_bonus",
        "losses.entropy.coefficient": given.number("entropy_loss_coef"),
    }


def ptx(given: Given) -> Any:
    if given["pretrain_data"] is None:
        raise NoCounterpartError(
            "without --pretrain_data nothing reads it; from 0.7.1 on OpenRLHF never does"
        )
    return {
        **shared.of_load_dataset("pretrain", str(given["pretrain_data"])),
        "losses.ptx.type": "ptx",
        "losses.ptx.gamma": given.number("ptx_coef"),
        "losses.ptx.data": "pretrain",
        "losses.ptx.examples_per_step": given.count("train_batch_size"),
    }


def ptx_keys(*names: str) -> Any:
    return lambda given: {k: v for k, v in ptx(given).items() if any(n in k for n in names)}


def adapters(name: str) -> Value:
    def value(given: Given) -> Any:
        if given.number("lora_rank") <= 0:
            raise NoCounterpartError("nothing reads it without --lora_rank")
        found = given[name]
        if name == "target_modules":
            return found if found == "all-linear" else [found] if isinstance(found, str) else found
        return given.count(name)

    return value


def ema(given: Given) -> Any:
    if not truth(given["enable_ema"] or False):
        raise NoCounterpartError("nothing reads it without --enable_ema")
    return given.number("ema_beta")


def microbatch(given: Given) -> Any:
    if not truth(given["use_dynamic_batch"] or False):
        raise NoCounterpartError("nothing reads it without --use_dynamic_batch")
    return given.count("train_max_tokens_per_gpu")


def longest(given: Given) -> Any:
    name = "generate_max_len" if "generate_max_len" in given else "max_len"
    return given.count(name if name in given else "generate_max_len")


def schedule(given: Given) -> Any:
    return chosen(
        "lr_scheduler",
        cosine_with_min_lr="cosine", cosine="cosine", linear="linear", constant="constant",
        constant_with_warmup="constant",
        reason="is not among rlframe's ppo.decay: constant, linear, cosine",
    )(given)  # fmt: skip

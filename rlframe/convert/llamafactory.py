"""LLaMA-Factory: what becomes of the keys of a YAML file with `stage: ppo`.

Its PPO is that of TRL 0.8.6 to 0.9.6, with a value head on the policy and an adaptive KL penalty.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rlframe.convert import shared
from rlframe.convert.option import (
    ABSENT,
    Given,
    NoCounterpartError,
    Option,
    Written,
    chosen,
    flag,
    none,
    number,
    to,
    truth,
    unless,
)
from rlframe.convert.shared import PLACEHOLDER, UPDATES
from rlframe.convert.source import Facts, Source
from rlframe.errors import RecipeError
from rlframe.text import lines


def _batch(given: Given) -> int:
    step = given.count("per_device_train_batch_size") * given.count("gradient_accumulation_steps")
    return step * given.count("ppo_buffer_size") * given.processes


def _names(given: Given) -> list[str]:
    found = given["dataset"]
    names = found if isinstance(found, list) else str(found).split(",")
    return [str(name).strip() for name in names if str(name).strip()]


def _datasets(given: Given) -> Any:
    keys: dict[str, Any] = {}
    names = _names(given)
    for name in names:
        keys[f"data.{shared.word(name)}.path"] = f"{given['dataset_dir'] or 'data'}/{name}.json"
    return {**keys, "prompts.data": _mixture(given)}


def _mixture(given: Given) -> Any:
    names = [shared.word(name) for name in _names(given)]
    if len(names) == 1:
        return names[0]
    raw = given["interleave_probs"]
    shares = [1.0] * len(names) if raw is None else [float(p) for p in str(raw).split(",")]
    if len(shares) != len(names):
        raise RecipeError("interleave_probs has another number of values than dataset")
    return dict(zip(names, shares, strict=True))


def _of_each_set(key: str, name: str) -> Any:
    def value(given: Given) -> Any:
        return {f"data.{shared.word(n)}.{key}": given.number(name) for n in _names(given)}

    return value


def _updates(given: Given) -> Any:
    if given["max_steps"] is not None and given.number("max_steps") > 0:
        return given.count("max_steps")
    if given["max_samples"] is None or given["dataset"] is None:
        raise NoCounterpartError(
            "without max_samples the number of updates depends on the data sets"
        )
    rows = given.count("max_samples") * len(_names(given))
    return max(1, math.ceil(given.number("num_train_epochs") * (rows // _batch(given))))


def _heldout(given: Given) -> Any:
    share = given.number("val_size")
    if not 0 <= share < 1:
        raise NoCounterpartError("a number of rows: write it as a share, data.NAME.heldout")
    return _of_each_set("heldout", "val_size")(given)


def _adapters(given: Given) -> bool:
    kind = given["finetuning_type"] or "lora"
    return bool(kind == "lora")


def _of_lora(make: Any) -> Any:
    def value(given: Given) -> Any:
        if not _adapters(given):
            raise NoCounterpartError("nothing reads it without finetuning_type: lora")
        return make(given)

    return value


def _kind(given: Given) -> Any:
    kind = given["finetuning_type"]
    if kind not in ("lora", "full"):
        raise NoCounterpartError(f"{kind}: rlframe trains all weights, or adapters (model.lora)")
    return ABSENT


def _targets(given: Given) -> Any:
    found = given["lora_target"]
    names = found if isinstance(found, list) else [n.strip() for n in str(found).split(",")]
    return "all-linear" if names == ["all"] else names


def _reward_type(given: Given) -> Any:
    kind = given["reward_model_type"]
    if kind == "full":
        return ABSENT
    if kind == "api":
        raise NoCounterpartError(
            "no reward in the box calls a server: write a function, {type: ./file.py:function}, in "
            "place of rewards.score"
        )
    raise NoCounterpartError(f"the reward model is an adapter. {shared.NO_ADAPTERS}")


def _reward_model(given: Given) -> Any:
    if given["reward_model_type"] == "api":
        raise NoCounterpartError("the address of a server: see reward_model_type")
    return given["reward_model"]


def _deepspeed(given: Given) -> Any:
    found = re.search(r"z(?:ero)?_?([0123])", str(given["deepspeed"]))
    stage = int(found[1]) if found else None
    if stage == 0:
        return {"runtime.strategy": "ddp"}
    keys: dict[str, Any] = {"runtime.strategy": "deepspeed"}
    keys |= {"runtime.zero_stage": stage} if stage else {}
    if stage and "offload" in str(given["deepspeed"]):
        keys["runtime.offload"] = "all" if stage == 3 else "optimizer"
    return keys


def _top_k(given: Given) -> Any:
    return int(given.number("top_k")) or None


KEYS = {
    # models
    "model_name_or_path": to("model.policy"),
    "ref_model": to("model.reference"),
    "reward_model": to("rewards.score.model", value=_reward_model,
        remark="it is asked in its own format, which a run says: rewards.score.input"),
    "reward_model_type": Option((), "a whole model, as rlframe has it", _reward_type, "lora"),
    "adapter_name_or_path": none(shared.NO_ADAPTERS),
    "ref_model_adapters": none(shared.NO_ADAPTERS),
    "reward_model_adapters": none(shared.NO_ADAPTERS),
    "quantization_bit": none(shared.NO_QUANTISATION),
    "quantization_method": none(shared.NO_QUANTISATION),
    "ref_model_quantization_bit": none(shared.NO_QUANTISATION),
    "reward_model_quantization_bit": none(shared.NO_QUANTISATION),
    "trust_remote_code": unless("trust_remote_code", None, False, reason=shared.NO_REMOTE_CODE),
    "model_revision": unless("model_revision", "main",
        reason="download the revision and give the path of its folder as model.policy"),
    "finetuning_type": Option((), "full trains all weights, and lora adapters (model.lora)", _kind,
        "lora"),
    "lora_rank": to("model.lora.rank", value=_of_lora(lambda given: given.count("lora_rank")),
        default=8),
    "lora_alpha": to("model.lora.alpha", default=None, value=_of_lora(
        lambda given: int(given["lora_alpha"] or 2 * given.count("lora_rank"))),
        remark="twice the rank, if it is left out"),
    "lora_target": to("model.lora.targets", value=_of_lora(_targets), default="all"),
    "lora_dropout": unless("lora_dropout", 0,
        reason="with dropout the ratio of new to old policy would not be 1 before the first step"),
    **{name: none("rlframe's adapters are plain LoRA, Hu et al. 2022") for name in (
        "additional_target", "loraplus_lr_ratio", "use_rslora", "use_dora", "pissa_init",
        "create_new_adapter")},
    # data
    "dataset": to("data.prompts.path", "prompts.data", value=_datasets,
        remark="dataset_info.json says which file a name is: check data.NAME.path, and the weights "
        "of several sets, which LLaMA-Factory mixes by their size"),
    "dataset_dir": to("data.prompts.path", value=lambda given: {
        key: v for key, v in _datasets(given).items() if key.startswith("data.")}),
    "interleave_probs": to("prompts.data", value=lambda given: {"prompts.data": _mixture(given)}),
    "mix_strategy": none("the weights of prompts.data say how sets are mixed"),
    "eval_dataset": none("held-out prompts are a share of the same data, data.NAME.heldout"),
    "template": none("chats are rendered in the tokenizer's own template; data.NAME.format: plain "
        "leaves prompts as they are"),
    "default_system": to("prompts.system"),
    "cutoff_len": to("prompts.max_tokens", "prompts.truncate", default=2048,
        value=lambda given: {"prompts.max_tokens": given.count("cutoff_len"),
                             "prompts.truncate": "right"},
        remark="longer prompts lose their end"),
    "max_samples": to("data.prompts.limit", value=_of_each_set("limit", "max_samples"),
        remark="the first rows of each set"),
    "val_size": to("data.prompts.heldout", value=_heldout),
    "overwrite_cache": none("data are cached by a hash of their content"),
    "preprocessing_num_workers": none("rlframe prepares data in one process, and keeps the result"),
    "preprocessing_batch_size": none("rlframe prepares data in one process, and keeps the result"),
    "tokenized_path": none("data are cached by a hash of their content"),
    "dataloader_num_workers": none("rows are read from a memory-mapped table"),
    # rollouts
    "max_new_tokens": to("rollout.max_new_tokens", value=number("max_new_tokens"), default=1024),
    "temperature": to("rollout.temperature", value=number("temperature"), default=0.95),
    "top_k": to("rollout.top_k", value=_top_k, default=50,
        remark="it changes what is sampled, and not the policy that is optimised"),
    "top_p": to("rollout.top_p", value=shared.filter_below_one("top_p"), default=0.7,
        remark="it changes what is sampled, and not the policy that is optimised"),
    "do_sample": unless("do_sample", True, reason="PPO learns from samples alone"),
    "num_beams": unless("num_beams", 1, reason="PPO learns from samples alone"),
    "repetition_penalty": unless("repetition_penalty", 1,
        reason="the policy that is trained is the one that is sampled"),
    "length_penalty": unless("length_penalty", 1, reason="only a beam search reads it"),
    "max_length": none("rollout.max_new_tokens is the longest response"),
    "skip_special_tokens": none("a reward reads the text without special tokens"),
    # PPO
    "stage": none("a recipe with a section `ppo` runs PPO"),
    "per_device_train_batch_size": to("rollout.prompts_per_update", value=_batch, default=8,
        remark="per_device_train_batch_size * gradient_accumulation_steps * ppo_buffer_size * "
            "processes"),
    "gradient_accumulation_steps": to("rollout.prompts_per_update", value=_batch, default=1,
        remark="a factor of the batch; micro-batches are cut by ppo.microbatch_tokens"),
    "freeze_trainable_layers": none("see finetuning_type"),
    "freeze_trainable_modules": none("see finetuning_type"),
    "ppo_buffer_size": to("rollout.prompts_per_update", "ppo.minibatches", default=1,
        value=lambda given: {"rollout.prompts_per_update": _batch(given),
                             "ppo.minibatches": given.count("ppo_buffer_size")},
        remark="a factor of the batch, and the number of optimiser steps per epoch"),
    "ppo_epochs": to("ppo.epochs", value=number("ppo_epochs"), default=4),
    "ppo_score_norm": to("rewards.score.transforms", value=lambda given: [
        {"type": "running_standardize"}] if truth(given["ppo_score_norm"]) else ABSENT,
        remark="statistics of all responses so far, as TRL's"),
    "ppo_target": to("kl.controller.target", value=number("ppo_target"), default=6.0,
        remark="in nats per response, rlframe's own unit"),
    "ppo_whiten_rewards": to("algorithm.whiten_rewards", value=flag("ppo_whiten_rewards"),
        remark="TRL whitens on each process alone, rlframe over all of them"),
    "num_train_epochs": to("ppo.updates", value=_updates, default=3.0,
        remark="epochs * rows / rollout.prompts_per_update, if each set has max_samples rows"),
    "max_steps": to("ppo.updates", value=_updates, remark="a step is a rollout"),
    # optimisation
    "learning_rate": to("ppo.learning_rate", value=number("learning_rate"), default=5e-5,
        remark="of the policy and of the value head on it"),
    "lr_scheduler_type": to("ppo.decay", default="linear", value=chosen("lr_scheduler_type",
        linear="linear", cosine="cosine", constant="constant", constant_with_warmup="constant",
        reason="is not among rlframe's ppo.decay: constant, linear, cosine")),
    "warmup_ratio": to("ppo.warmup_updates",
        value=shared.warmup_share("warmup_ratio", _updates), remark="a share of all updates"),
    "warmup_steps": to("ppo.warmup_updates", value=number("warmup_steps"), remark="in updates"),
    "weight_decay": to("ppo.weight_decay", value=number("weight_decay")),
    "max_grad_norm": to("ppo.max_grad_norm", value=number("max_grad_norm")),
    "seed": to("seed", value=number("seed"), default=42),
    "optim": unless("optim", "adamw_torch", "adamw_torch_fused", reason="rlframe's optimiser is AdamW"),
    "adam_beta1": unless("adam_beta1", 0.9, reason="AdamW has torch's betas, 0.9 and 0.999"),
    "adam_beta2": unless("adam_beta2", 0.999, reason="AdamW has torch's betas, 0.9 and 0.999"),
    **{name: unless(name, False, reason="rlframe's optimiser is AdamW") for name in (
        "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon")},
    # the machine
    "bf16": to("runtime.precision", value=shared.precision("bf16", "bfloat16"),
        remark="computes in bfloat16 and keeps float32 weights"),
    "pure_bf16": to("runtime.precision", value=shared.precision("pure_bf16", "bfloat16"),
        remark="rlframe keeps float32 weights"),
    "fp16": unless("fp16", False, reason="rlframe computes in float32 or bfloat16"),
    "deepspeed": to("runtime.strategy", "runtime.zero_stage", "runtime.offload", value=_deepspeed,
        remark="by the name of the file; its other keys go into runtime.deepspeed_config"),
    "save_steps": to("checkpoints.every", value=number("save_steps"), remark="in updates"),
    "save_total_limit": to("checkpoints.keep_last", value=number("save_total_limit")),
    "eval_steps": to("evaluation.every", value=number("eval_steps"), remark="in updates"),
    "eval_strategy": none("held-out prompts are answered before and after PPO, and each "
        "evaluation.every"),
    "per_device_eval_batch_size": none("held-out prompts are answered in batches of rlframe's own"),
    "gradient_checkpointing": none(shared.CHECKPOINTING),
    "disable_gradient_checkpointing": none(shared.CHECKPOINTING),
    "resume_from_checkpoint": none("rlframe resume RUN"),
    "do_train": none("rlframe train RECIPE"),
    "do_eval": none("held-out prompts are answered before and after PPO, and each evaluation.every"),
    "do_predict": none("held-out prompts are answered before and after PPO, and each evaluation.every"),
    "ddp_timeout": none("a reward has its own limit, rewards.NAME.time_limit_seconds"),
    "ddp_find_unused_parameters": none("there are no unused parameters"),
    "save_only_model": none(shared.CHECKPOINT_CONTENT),
    "save_strategy": none("checkpoints are written by time and by checkpoints.every"),
    **{name: none(shared.OUTPUT) for name in ("output_dir", "overwrite_output_dir", "logging_dir")},
    **{name: none(shared.TRACKING) for name in (
        "logging_steps", "plot_loss", "report_to", "run_name", "use_swanlab", "swanlab_project",
        "swanlab_run_name", "include_num_input_tokens_seen")},
    **{name: none("the hub's own variable HF_TOKEN holds it") for name in (
        "hf_hub_token", "ms_hub_token", "om_hub_token", "swanlab_api_key")},
    **{name: none(shared.ENGINE) for name in (
        "flash_attn", "enable_liger_kernel", "use_unsloth", "use_unsloth_gc", "upcast_layernorm",
        "rope_scaling", "shift_attn", "low_cpu_mem_usage", "use_fast_tokenizer", "use_kv_cache",
        "cache_dir", "resize_vocab", "packing", "image_max_pixels",
        "video_max_pixels")},
}  # fmt: skip
"""Keys of LLaMA-Factory's model, data, generating, finetuning and training arguments."""


def _read(text: str) -> list[Written]:
    try:
        data = YAML(typ="rt", pure=True).load(text)
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        place = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or error
        raise RecipeError(f"{place}it is not valid YAML: {problem}") from error
    if not isinstance(data, CommentedMap):
        raise RecipeError("it is no mapping of keys, as a YAML file of LLaMA-Factory is")
    stage = data.get("stage")
    if stage != "ppo":
        found = f"it has `stage: {stage}`" if stage is not None else "it has no `stage:`"
        raise RecipeError(
            f"{found}, and only `stage: ppo` is converted. For SFT and reward models see `sft` and "
            "`reward_model` in docs/recipe.md"
        )
    source = lines(text)
    found_options = []
    for key, value in data.items():
        line = data.lc.key(key)[0] + 1
        shown = source[line - 1].split(" #")[0].strip()
        plain = list(value) if isinstance(value, list) else value
        found_options.append(Written(str(key), plain, line, shown))
    return found_options


def _table(written: Sequence[Written]) -> Mapping[str, Option]:
    return KEYS


def _facts(given: Given) -> Facts:
    return {
        "rewards.score.type": ("reward_model", "LLaMA-Factory scores with a model"),
        "kl.controller.type": ("adaptive", "always, in LLaMA-Factory"),
        "kl.controller.initial": (0.2, "that of TRL, which LLaMA-Factory does not expose"),
        "model.critic.shared": (True, "the value head is on the policy's own trunk"),
    }


def _required(given: Given) -> Facts:
    return {
        **{key: fact for key, fact in shared.TO_FILL_IN.items() if key != "data.prompts.hub.id"},
        "data.prompts.path": (f"{PLACEHOLDER}prompts.json", "the file of prompts, or `hub:`"),
        "ppo.updates": (UPDATES,
            f"{given['num_train_epochs']} epochs * prompts / rollout.prompts_per_update"),
    }  # fmt: skip


SOURCE = Source(
    name="llamafactory",
    title="LLaMA-Factory",
    kind="a YAML file with `stage: ppo` (LLaMA-Factory)",
    recognises=lambda text: bool(re.search(r"^(stage|model_name_or_path)\s*:", text, re.MULTILINE)),
    read=_read,
    tables={"Keys of a YAML file with stage: ppo": KEYS},
    table=_table,
    facts=_facts,
    required=_required,
)

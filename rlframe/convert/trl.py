"""TRL since 0.12: what becomes of the options of PPOConfig, and how its files are read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlframe.convert import shared, shell, trl_script
from rlframe.convert import trl_values as make
from rlframe.convert.option import ABSENT, Given, Option, Written, none, number, to, unless
from rlframe.convert.shared import PLACEHOLDER, UPDATES
from rlframe.convert.source import Facts, Source
from rlframe.convert.trl_common import LOSS, MODELS, TRAINING
from rlframe.convert.trl_old import OLD

SHELL = re.compile(r"(^|/)\w*ppo\w*\.py$", re.IGNORECASE)

PPO = {
    "per_device_train_batch_size": to("rollout.prompts_per_update", value=make.batch, default=8,
        remark="per_device_train_batch_size * gradient_accumulation_steps * processes (up to 0.13 "
            "also * num_mini_batches)"),
    "gradient_accumulation_steps": to("rollout.prompts_per_update", value=make.batch, default=1,
        remark="a factor of the batch; micro-batches are cut by ppo.microbatch_tokens"),
    "total_episodes": to("ppo.updates", value=make.updates,
        remark="total_episodes / rollout.prompts_per_update, rounded up"),
    "num_train_epochs": none("ppo.updates counts rollouts: epochs * prompts / "
        "rollout.prompts_per_update"),
    "num_ppo_epochs": to("ppo.epochs", value=number("num_ppo_epochs"), default=4),
    "num_mini_batches": to("ppo.minibatches", value=number("num_mini_batches"), default=1,
        remark="from 0.14 on TRL makes one optimiser step per epoch, whatever this says (its issue "
            "5645); write 1 for the same numbers"),
    "local_rollout_forward_batch_size": to("rollout.generation_batch",
        value=number("local_rollout_forward_batch_size"),
        remark="responses sampled at a time; it changes memory and not the result"),
    "num_sample_generations": none("evaluation.table_rows answers are shown at each evaluation.every"),
    "response_length": to("rollout.max_new_tokens", value=number("response_length"), default=53),
    "temperature": to("rollout.temperature", value=number("temperature"), default=0.7),
    "stop_token": Option((), "responses always end at EOS; without stop_token TRL writes on to "
        "response_length", make.stop),
    "stop_token_id": unless("stop_token_id", None,
        reason="write the text of that token in rollout.stop_strings"),
    "missing_eos_penalty": to("rewards.finished.type", "rewards.finished.penalty",
        value=lambda given: ABSENT if given["missing_eos_penalty"] in (None, "None") else {
            "rewards.finished.type": "eos_penalty",
            "rewards.finished.penalty": given.number("missing_eos_penalty")},
        remark="taken off the score of a response that was cut off"),
    "kl_coef": to("kl.controller.coefficient", value=number("kl_coef"), default=0.05,
        remark="a fixed coefficient; {type: adaptive} holds the KL at a target instead"),
    "kl_estimator": to("kl.estimator", default="k1"),
    "ds3_gather_for_generation": none("weights are gathered for sampling under zero_stage 3"),
    "model_adapter_name": unless("model_adapter_name", None, reason=shared.NO_ADAPTERS),
    "ref_adapter_name": unless("ref_adapter_name", None, reason=shared.NO_ADAPTERS),
    "sanity_check": none("limit the data with data.prompts.limit"),
    **{name: none("an output of TRL, which its constructor overwrites")
       for name in ("world_size", "num_total_batches", "micro_batch_size", "local_batch_size",
                    "batch_size", "local_mini_batch_size", "mini_batch_size")},
    **LOSS, **MODELS, **TRAINING,
}  # fmt: skip
"""PPOConfig since TRL 0.12, and PPOv2Config before."""


CALLS = {
    **{f"load_dataset.{name}": none("name the data set in data.prompts, see docs/recipe.md")
       for name in ("data_dir", "data_files", "streaming", "cache_dir", "trust_remote_code", "token",
                    "num_proc")},
    "load_dataset.revision": to("data.prompts.hub.revision"),
    "from_pretrained.peft_config": none("adapters are model.lora"),
    "from_pretrained.trust_remote_code": unless("from_pretrained.trust_remote_code", False,
        reason=shared.NO_REMOTE_CODE),
    **{f"from_pretrained.{name}": none(shared.NO_QUANTISATION)
       for name in ("load_in_8bit", "load_in_4bit", "quantization_config")},
    "pipeline.task": none("rewards.score is a reward_model, which reads a classifier's logit"),
    "generation_kwargs.max_new_tokens": make.generation("max_new_tokens", "rollout.max_new_tokens",
        off=()),
    "generation_kwargs.temperature": make.generation("temperature", "rollout.temperature", off=()),
    "generation_kwargs.top_k": make.generation("top_k", "rollout.top_k", off=(0,)),
    "generation_kwargs.top_p": make.generation("top_p", "rollout.top_p", off=(1,)),
    "generation_kwargs.min_p": make.generation("min_p", "rollout.min_p", off=(0,)),
    "generation_kwargs.min_length": unless("generation_kwargs.min_length", -1, 0,
        reason="a response ends at EOS, however short it is"),
    "generation_kwargs.do_sample": unless("generation_kwargs.do_sample", True,
        reason="PPO learns from samples alone"),
    "generation_kwargs.repetition_penalty": unless("generation_kwargs.repetition_penalty", 1,
        reason="the policy that is trained is the one that is sampled"),
    "generation_kwargs.pad_token_id": none("no padding token is needed"),
    "generation_kwargs.eos_token_id": none("responses end at EOS, and at rollout.stop_strings"),
    "generation_kwargs.batch_size": none("responses sampled at a time are rollout.generation_batch"),
    "launch.num_processes": none(shared.LAUNCHER + "; it is a factor of rollout.prompts_per_update"),
}  # fmt: skip
"""Arguments of other calls in a script, and of the program that starts it."""


def _table(written: Sequence[Written]) -> dict[str, Option]:
    names = {option.name for option in written}
    table = OLD if len(names & OLD.keys()) > len(names & PPO.keys()) else PPO
    front = ("LoraConfig.", "from_pretrained.", "pipeline.", shell.LAUNCH)
    more = {name: none("of how the script loads or starts things, which rlframe decides itself")
            for name in names if name.startswith(front)}  # fmt: skip
    return {**table, **more, **CALLS}


def _old(given: Given) -> bool:
    return "kl_coef" not in given and given["init_kl_coef"] is not None


def _facts(given: Given) -> Facts:
    facts: Facts = {"rewards.score.type": ("reward_model", "TRL scores with a sequence classifier")}
    if _old(given):
        return facts | {
            "model.critic.shared": (True, "TRL's value head is on the policy's own trunk")
        }
    critic = given["value_model_path"] or given["reward_model_path"] or f"{PLACEHOLDER}reward-model"
    return facts | {
        "kl.controller.type": ("fixed", "TRL's coefficient never changes"),
        "model.critic.initial": (critic, "TRL's value model starts as the reward model"),
        "model.critic.head": ("keep", "with the reward model's head"),
    }


def _required(given: Given) -> Facts:
    epochs = given["num_train_epochs"] or 3
    return {
        **shared.TO_FILL_IN,
        "rollout.max_new_tokens": (64, "the longest response, in tokens"),
        "ppo.updates": (UPDATES, f"{epochs} epochs * prompts / rollout.prompts_per_update"),
    }  # fmt: skip


def _recognises(text: str) -> bool:
    script = re.search(r"\bPPO(v2)?Config\b|^\s*(from|import) trl\b", text, re.MULTILINE)
    return bool(script) or bool(re.search(r"\w*ppo\w*\.py\b", text) and "--" in text)


def _read(text: str) -> list[Written]:
    if re.search(r"^\s*(from \S+ import|import) ", text, re.MULTILINE):
        return trl_script.options(text)
    return shell.options_of(shell.find_command(text, SHELL, "a PPO script of TRL (...ppo.py)"))


SOURCE = Source(
    name="trl",
    title="TRL",
    kind="a Python script that makes a PPOConfig, or a command that runs TRL's ppo.py (TRL)",
    recognises=_recognises,
    read=_read,
    tables={
        "PPOConfig since TRL 0.12, and flags of its example scripts": PPO,
        "PPOConfig up to TRL 0.11": OLD,
        "Other calls in a script, and the command that starts it": CALLS,
    },
    table=_table,
    facts=_facts,
    required=_required,
    processes=("launch.num_processes", "launch.nproc_per_node", "launch.num_gpus"),
)

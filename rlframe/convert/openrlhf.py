"""OpenRLHF: what becomes of the flags of `openrlhf.cli.train_ppo` and `openrlhf.cli.train_ppo_ray`.

Version 0.10.2 gave every flag a dotted name: `openrlhf_names.py` has the old name of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rlframe.convert import openrlhf_values as make
from rlframe.convert import shared, shell
from rlframe.convert.openrlhf_names import DOTTED
from rlframe.convert.option import ABSENT, Given, Option, Written, none, number, to, truth, unless
from rlframe.convert.shared import UPDATES
from rlframe.convert.source import Facts, Source
from rlframe.errors import RecipeError

PROGRAM = re.compile(r"openrlhf[./]cli[./](\w+)")
TRAINS = ("train_ppo", "train_ppo_ray")

_CRITIC = ("model.critic.initial", "model.critic.head")
_CONTROLLER = ("kl.controller.type", "kl.controller.coefficient", "kl.controller.initial")
_TARGET = ("kl.controller.target", "kl.controller.unit")
_SETS = ("data.prompts.hub.id", "data.prompts.path", "prompts.data")
_LORA = ("model.lora.rank", "model.lora.alpha", "model.lora.targets")
_RAY = "of Ray and vLLM: rlframe's processes hold all models, and --processes N says how many there are"
_CORRECTION = (
    "the builtin sampler draws from the policy itself, so there is nothing to correct; for a "
    "filtered or another sampler see algorithm.importance_correction"
)
_FILTERING = (
    "rlframe leaves no group out: one whose responses all score the same has advantages of 0"
)

FLAGS = {
    # models
    "pretrain": to("model.policy"),
    "reward_pretrain": to("rewards.score.model", value=make.reward_model,
        remark="it is asked in its own format, which a run says: rewards.score.input"),
    "critic_pretrain": to(*_CRITIC, remark="with the head that it has",
        value=make.with_critic(lambda given: {
            "model.critic.initial": make.critic_model(given)})),
    "remote_rm_url": none("fill in rewards.score: a Python function is {type: ./file.py:function}, "
        "called as f(prompts, completions, **columns) under --allow-local-code; a server is called "
        "by a function"),
    "agent_func_path": none("rlframe samples one response per prompt turn; it has no agents"),
    "value_head_prefix": none("the name of a saved head is found out"),
    "save_value_network": none("the critic is saved in RUN/ppo beside the policy"),
    "normalize_reward": none("OpenRLHF reads mean and std from the reward model's config, and does "
        "nothing if they are not there; rlframe has statistics of the run: transforms: [{type: "
        "running_standardize}]"),
    "reward_clip_range": to("rewards.score.transforms", value=make.reward_clip, default=["-10", "10"],
        remark="OpenRLHF clips after the group's baseline is taken off, rlframe before"),
    "lora_rank": to(_LORA[0], default=0, value=lambda given: given.count("lora_rank")
        if given.number("lora_rank") > 0 else ABSENT),
    "lora_alpha": to(_LORA[1], value=make.adapters("lora_alpha"), default=16),
    "target_modules": to(_LORA[2], value=make.adapters("target_modules")),
    "lora_dropout": unless("lora_dropout", 0,
        reason="with dropout the ratio of new to old policy would not be 1 before the first step"),
    "load_in_4bit": none(shared.NO_QUANTISATION),
    # data
    "prompt_data": to(*_SETS, value=make.datasets),
    "prompt_data_probs": to("prompts.data",
        value=lambda given: {"prompts.data": make.datasets(given)["prompts.data"]}),
    "prompt_split": to("data.prompts.hub.split", "data.prompts.split", value=make.split),
    "input_key": to("data.prompts.columns.prompt", default="input",
        value=make.of_each_set("columns.prompt", lambda given: str(given["input_key"])),
        remark="a text or a list of messages"),
    "label_key": none("every column is handed to a reward function under its own name"),
    "input_template": to("prompts.template", value=make.template),
    "apply_chat_template": to("data.prompts.format",
        value=make.of_each_set("format", lambda given: "chat")),
    "max_samples": to("data.prompts.limit", value=make.limit, remark="the first rows of each set"),
    "prompt_max_len": to("prompts.max_tokens", "prompts.truncate", default=1024,
        value=lambda given: {"prompts.max_tokens": given.count("prompt_max_len"),
                             "prompts.truncate": "right"},
        remark="longer prompts lose their end, as in OpenRLHF"),
    "max_len": none("of prompt and response together: prompts.max_tokens and rollout.max_new_tokens "
        "bound each of them"),
    "pretrain_data": to("data.pretrain.hub.id", "data.pretrain.path", "losses.ptx.type",
        "losses.ptx.data",
        value=make.ptx_keys("data.", "type", ".data"), remark="text in the column `text`"),
    "pretrain_data_probs": none("name each set in a loss of its own, with its own gamma"),
    "pretrain_split": none("the split of a data set is data.pretrain.hub.split"),
    "ptx_coef": to("losses.ptx.gamma", "losses.ptx.examples_per_step",
        default=0.05,
        value=make.ptx_keys("gamma", "examples"), remark="both losses are means per token"),
    "eval_dataset": none("held-out prompts are a share of the same data, data.prompts.heldout"),
    "eval_split": none("held-out prompts are a share of the same data, data.prompts.heldout"),
    "eval_temperature": none("held-out prompts are answered at rollout.temperature"),
    "eval_n_samples_per_prompt": none("each held-out prompt is answered once"),
    "eval_steps": to("evaluation.every", value=shared.above_zero("eval_steps"), remark="in updates"),
    # rollouts
    "rollout_batch_size": to("rollout.prompts_per_update", default=1024,
        value=lambda given: given.count("rollout_batch_size")),
    "n_samples_per_prompt": to("rollout.samples_per_prompt", default=1,
        value=lambda given: given.count("n_samples_per_prompt")),
    "micro_rollout_batch_size": none(shared.MICROBATCHES + "; responses sampled at a time are "
        "rollout.generation_batch"),
    "generate_max_len": to("rollout.max_new_tokens", value=make.longest, default=1024),
    "temperature": to("rollout.temperature", value=number("temperature"), default=1.0),
    "top_p": to("rollout.top_p", value=shared.filter_below_one("top_p"),
        remark="it changes what is sampled, and not the policy that is optimised"),
    "dynamic_filtering": none(_FILTERING),
    "dynamic_filtering_reward_range": none(_FILTERING),
    "overlong_buffer_len": none("a penalty that grows with the length is a reward function of your "
        "own"),
    "overlong_penalty_factor": none("see --overlong_buffer_len"),
    "stop_properly_penalty_coef": to("rewards.finished.type", "rewards.finished.mode",
        "rewards.finished.penalty", value=make.finished, remark="the score of a cut response is "
        "replaced"),
    # the KL penalty
    "init_kl_coef": to(*_CONTROLLER, value=lambda given: {
        key: v for key, v in make.controller(given).items() if key in _CONTROLLER}, default=0.01,
        remark="with --kl_target the first coefficient, without it a fixed one"),
    "kl_target": to(*_TARGET, value=make.of_controller("target"),
        remark="OpenRLHF's KL is a mean per token: a target for a sum per response is larger by the "
            "length"),
    "kl_horizon": to("kl.controller.horizon", "kl.controller.unit", value=make.of_controller("horizon"),
        default=10000, remark="in responses"),
    "kl_estimator": to("kl.estimator", default="k1"),
    "use_kl_loss": to("kl.placement",
        value=lambda given: "loss" if truth(given["use_kl_loss"]) else None,
        remark="each token's KL is added to the loss and not taken off its reward"),
    # the algorithm
    "advantage_estimator": to("algorithm.advantages.type", "algorithm.advantages.divide_by_std",
        "algorithm.whiten_advantages", value=make.advantages, default="gae",
        remark="OpenRLHF takes the KL penalty off after the group's baseline, rlframe before: the "
            "totals that are compared include it"),
    "gamma": to("algorithm.advantages.gamma", value=make.gamma, default=1.0),
    "lambd": to("algorithm.advantages.lam", default=1.0,
        value=make.with_critic(lambda given: given.number("lambd")),
        remark="1 in later versions and 0.95 before, where the file leaves it out"),
    "no_advantage_std_norm": none("rlframe whitens advantages or does not, and has no mere shift of "
        "the mean: see algorithm.whiten_advantages"),
    "policy_loss_type": to("algorithm.policy_loss.type", "algorithm.reduction",
        value=lambda given: {"algorithm.policy_loss.type": "gspo", "algorithm.reduction": "sequence"}
        if given["policy_loss_type"] == "gspo" else {"algorithm.policy_loss.type": "clip"}),
    "eps_clip": to("algorithm.policy_loss.clip", "algorithm.policy_loss.clip_high", value=make.clips,
        default=0.2),
    "eps_clip_low_high": to("algorithm.policy_loss.clip", "algorithm.policy_loss.clip_high",
        value=make.two_clips),
    "dual_clip": to("algorithm.policy_loss.dual_clip", value=number("dual_clip")),
    "value_clip": to("algorithm.value_loss.clip", default=0.5,
        value=make.with_critic(lambda given: given.number("value_clip")),
        remark="0.5 in later versions and 0.2 before, where the file leaves it out"),
    "entropy_loss_coef": to("losses.entropy.type", "losses.entropy.coefficient", value=make.entropy,
        remark="0 only logs the entropy, which rlframe does anyway"),
    "aux_loss_coef": unless("aux_loss_coef", 0,
        reason="rlframe computes its own losses from the logits, and a router's is not among them"),
    "enable_vllm_is_correction": none(_CORRECTION),
    "vllm_is_truncated_threshold": none(_CORRECTION),
    "vllm_is_correction_type": none(_CORRECTION),
    "use_icepop": none(_CORRECTION),
    "freezing_actor_steps": unless("freezing_actor_steps", -1, 0,
        reason="the critic never trains alone: start it from the reward model, as here, or raise its "
        "learning rate"),
    # optimisation
    "num_episodes": to("ppo.updates", value=make.updates, default=1,
        remark="episodes * rollouts that --max_samples is enough for, if the data set has so many "
            "rows"),
    "max_epochs": to("ppo.epochs", value=lambda given: given.count("max_epochs"), default=1),
    "train_batch_size": to("ppo.minibatches", value=make.minibatches, default=128,
        remark="rollout_batch_size * n_samples_per_prompt / train_batch_size optimiser steps per "
            "epoch"),
    "micro_train_batch_size": none(shared.MICROBATCHES),
    "use_dynamic_batch": none("micro-batches are always cut by tokens, ppo.microbatch_tokens"),
    "train_max_tokens_per_gpu": to("ppo.microbatch_tokens", value=make.microbatch),
    "rollout_max_tokens_per_gpu": none("see ppo.microbatch_tokens"),
    "actor_learning_rate": to("ppo.learning_rate", value=number("actor_learning_rate"), default=1e-6),
    "critic_learning_rate": to("model.critic.learning_rate", default=9e-6,
        value=make.with_critic(lambda given: given.number("critic_learning_rate"))),
    "lr_scheduler": to("ppo.decay", value=make.schedule, default="cosine_with_min_lr",
        remark="rlframe's cosine ends at 0, OpenRLHF's at a tenth of the peak"),
    "lr_warmup_ratio": to("ppo.warmup_updates",
        value=shared.warmup_share("lr_warmup_ratio", make.updates), default=0.03,
        remark="a share of all updates"),
    "min_lr_ratio": none("rlframe's decay ends at 0; ppo.decay: constant does not decay"),
    "adam_betas": unless("adam_betas", ["0.9", "0.999"], reason="AdamW has torch's betas, 0.9 and "
        "0.999"),
    "adam_eps": unless("adam_eps", 1e-8, reason="AdamW has torch's epsilon, 1e-8"),
    "actor_optim": unless("actor_optim", "adam", reason="rlframe's optimiser is AdamW"),
    "critic_optim": unless("critic_optim", "adam", reason="rlframe's optimiser is AdamW"),
    "l2": to("ppo.weight_decay", value=number("l2")),
    "max_norm": to("ppo.max_grad_norm", value=number("max_norm")),
    "seed": to("seed", value=number("seed"), default=42),
    "full_determinism": none("a response depends on the seed alone, on any number of processes"),
    "enable_ema": none("ppo.ema is the average's decay; see --ema_beta"),
    "ema_beta": to("ppo.ema", value=make.ema, default=0.992,
        remark="per update; OpenRLHF averages at each optimiser step"),
    # the machine
    "zero_stage": to("runtime.strategy", "runtime.zero_stage", value=make.strategy, default=2),
    "bf16": to("runtime.precision", value=shared.precision("bf16", "bfloat16"),
        remark="computes in bfloat16 and keeps float32 weights"),
    "param_dtype": to("runtime.precision", value=make.dtype,
        remark="computes in bfloat16 and keeps float32 weights"),
    "adam_offload": to("runtime.offload",
        value=lambda given: "optimizer" if truth(given["adam_offload"]) else None),
    "ref_reward_offload": to("runtime.frozen",
        value=lambda given: "offload" if truth(given["ref_reward_offload"]) else None),
    "ref_offload": to("runtime.frozen",
        value=lambda given: "offload" if truth(given["ref_offload"]) else None),
    "gradient_checkpointing": none(shared.CHECKPOINTING),
    "gradient_checkpointing_use_reentrant": none(shared.CHECKPOINTING),
    "ring_attn_size": unless("ring_attn_size", 1, reason="rlframe does not split a sequence over GPUs"),
    "ring_head_stride": none("see --ring_attn_size"),
    "ds_tensor_parallel_size": unless("ds_tensor_parallel_size", 1,
        reason="rlframe does not split a layer over GPUs; zero_stage 3 shards the weights"),
    "save_steps": to("checkpoints.every", value=shared.above_zero("save_steps"), remark="in updates"),
    "max_ckpt_num": to("checkpoints.keep_last", value=lambda given: given.count("max_ckpt_num")),
    **{name: none(shared.OUTPUT) for name in ("save_path", "ckpt_path")},
    **{name: none(shared.CHECKPOINT_CONTENT) for name in (
        "save_hf_ckpt", "disable_ds_ckpt", "max_ckpt_mem", "load_checkpoint", "use_ds_universal_ckpt",
        "best_metric_key")},
    **{name: none(shared.TRACKING) for name in (
        "logging_steps", "use_wandb", "wandb_org", "wandb_group", "wandb_project", "wandb_run_name",
        "use_tensorboard", "perf")},
    **{name: none(_RAY) for name in (
        *(f"{model}_{part}" for model in ("actor", "critic", "ref", "reward")
          for part in ("num_nodes", "num_gpus_per_node")),
        "colocate_actor_ref", "colocate_critic_reward", "colocate_all_models", "vllm_num_engines",
        "vllm_tensor_parallel_size", "vllm_sync_backend", "vllm_sync_with_ray", "vllm_enable_sleep",
        "vllm_gpu_memory_utilization", "vllm_generate_batch_size", "rollout_tasks_per_gpu",
        "enable_prefix_caching", "enforce_eager", "deepspeed_enable_sleep", "async_train",
        "async_queue_size", "partial_rollout")},
    **{name: none(shared.ENGINE) for name in (
        "attn_implementation", "flash_attn", "packing_samples", "use_liger_kernel", "deepcompile",
        "zpg",
        "overlap_comm", "grad_accum_dtype", "disable_trace_cache", "disable_fast_tokenizer",
        "local_rank",
        "actor_init_on_gpu", "dataloader_num_workers", "use_ms")},
}  # fmt: skip
"""By the names that flags had up to 0.10.1."""


def _read(text: str) -> list[Written]:
    command = shell.find_command(text, PROGRAM, "openrlhf.cli.train_ppo or train_ppo_ray")
    found = PROGRAM.search(command.program.text)
    program = found[1] if found else ""
    if program not in TRAINS:
        raise RecipeError(
            f"line {command.program.line}: it runs openrlhf.cli.{program}, and only PPO is converted: "
            f"{' and '.join(TRAINS)}. For SFT and reward models see `sft` and `reward_model` in "
            "docs/recipe.md"
        )
    return [replace(o, name=DOTTED.get(o.name, o.name)) for o in shell.options_of(command)]


def _table(written: Sequence[Written]) -> dict[str, Option]:
    front = [o.name for o in written if o.name.startswith(shell.LAUNCH)]
    return {**FLAGS, **{name: none(shared.LAUNCHER) for name in front}}


def _facts(given: Given) -> Facts:
    facts: Facts = {"rewards.score.type": ("reward_model", "a sequence classifier")}
    if make.critic(given) and given["pretrain"] is not None:
        initial = make.critic_model(given)
        head = "normal" if initial == "policy" else "keep"
        facts["model.critic.initial"] = (initial, "OpenRLHF's choice of a critic")
        facts["model.critic.head"] = (head, "a new head on the policy, else the one that is there")
    return facts


def _required(given: Given) -> Facts:
    rounds = given["num_episodes"]
    return {
        **shared.TO_FILL_IN,
        "ppo.updates": (UPDATES, f"{rounds} episodes * prompts / rollout.prompts_per_update"),
    }  # fmt: skip


SOURCE = Source(
    name="openrlhf",
    title="OpenRLHF",
    kind="a command that runs openrlhf.cli.train_ppo or train_ppo_ray (OpenRLHF)",
    recognises=lambda text: bool(PROGRAM.search(text)),
    read=_read,
    tables={"Flags of openrlhf.cli.train_ppo and train_ppo_ray": FLAGS},
    table=_table,
    facts=_facts,
    required=_required,
)

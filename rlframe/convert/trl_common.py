"""TRL: what becomes of the options that all versions of PPOConfig, or all scripts, have."""

from __future__ import annotations

from rlframe.convert import shared
from rlframe.convert import trl_values as make
from rlframe.convert.option import ABSENT, flag, none, number, to, truth, unless

TRAINING = {
    "learning_rate": to("ppo.learning_rate", value=number("learning_rate"), default=3e-6,
        remark="of the policy, and of the critic unless model.critic.learning_rate is set"),
    "lr_scheduler_type": to("ppo.decay", value=make.decay, default="linear"),
    "warmup_ratio": to("ppo.warmup_updates",
        value=shared.warmup_share("warmup_ratio", make.updates), remark="a share of all updates"),
    "warmup_steps": to("ppo.warmup_updates", value=number("warmup_steps"),
        remark="TRL's schedule makes a step for each update"),
    "weight_decay": to("ppo.weight_decay", value=number("weight_decay")),
    "max_grad_norm": to("ppo.max_grad_norm", value=shared.above_zero("max_grad_norm"),
        remark="TRL's later PPOTrainer never reads it; rlframe clips"),
    "seed": to("seed", value=number("seed"), default=42),
    "bf16": to("runtime.precision", value=shared.precision("bf16", "bfloat16"),
        remark="computes in bfloat16 and keeps float32 weights"),
    "fp16": unless("fp16", None, False, "False", "false", reason="rlframe computes in float32 or "
        "bfloat16"),
    "gradient_checkpointing": none(shared.CHECKPOINTING),
    "gradient_checkpointing_kwargs": none(shared.CHECKPOINTING),
    "save_steps": to("checkpoints.every", value=make.save_every, remark="in updates"),
    "save_total_limit": to("checkpoints.keep_last", value=number("save_total_limit")),
    "save_strategy": none("checkpoints are written by time and by checkpoints.every"),
    "eval_strategy": none("held-out prompts are answered before and after PPO, and each "
        "evaluation.every"),
    "eval_steps": to("evaluation.every", value=number("eval_steps"), remark="in updates"),
    "deepspeed": to("runtime.strategy", value=lambda given: "deepspeed",
        remark="give its stage as runtime.zero_stage, or the file as runtime.deepspeed_config"),
    "output_dir": none(shared.OUTPUT),
    "overwrite_output_dir": none(shared.OUTPUT),
    "logging_dir": none(shared.OUTPUT),
    "logging_steps": none(shared.TRACKING),
    "logging_strategy": none(shared.TRACKING),
    "logging_first_step": none(shared.TRACKING),
    "report_to": none(shared.TRACKING),
    "run_name": none(shared.TRACKING),
    "exp_name": none(shared.TRACKING),
    "push_to_hub": none("the result is a plain model in RUN/ppo/policy, which `hf upload` takes"),
    "hub_token": none("the hub's own variable HF_TOKEN holds it"),
    "hub_model_id": none("the result is a plain model in RUN/ppo/policy, which `hf upload` takes"),
    "remove_unused_columns": none("every column is kept for rewards and templates, and none is in "
        "the way"),
    "optim": unless("optim", "adamw_torch", "adamw_torch_fused", reason="rlframe's optimiser is AdamW"),
    "adam_beta1": unless("adam_beta1", 0.9, reason="AdamW has torch's betas, 0.9 and 0.999"),
    "adam_beta2": unless("adam_beta2", 0.999, reason="AdamW has torch's betas, 0.9 and 0.999"),
    "adam_epsilon": unless("adam_epsilon", 1e-8, reason="AdamW has torch's epsilon, 1e-8"),
    "max_steps": none("TRL's PPOTrainer never reads it; rlframe's number of rollouts is ppo.updates"),
    "per_device_eval_batch_size": none("held-out prompts are answered in batches of rlframe's own"),
    "resume_from_checkpoint": none("rlframe resume RUN"),
    "dataloader_num_workers": none("rows are read from a memory-mapped table"),
    "ddp_find_unused_parameters": none("there are no unused parameters"),
}  # fmt: skip
"""Options of transformers.TrainingArguments."""

LOSS = {
    "gamma": to("algorithm.advantages.gamma", value=number("gamma"), default=1.0),
    "lam": to("algorithm.advantages.lam", value=number("lam"), default=0.95),
    "cliprange": to("algorithm.policy_loss.clip", value=number("cliprange"), default=0.2),
    "cliprange_value": to("algorithm.value_loss.clip", value=number("cliprange_value"), default=0.2),
    "vf_coef": to("algorithm.value_loss.coefficient", value=number("vf_coef"), default=0.1),
    "whiten_rewards": to("algorithm.whiten_rewards", value=flag("whiten_rewards"),
        remark="TRL whitens on each process alone, rlframe over all of them"),
}  # fmt: skip
"""Options of PPO's losses, which all versions of TRL share."""

MODELS = {
    "dataset_name": to("data.prompts.hub.id", "data.prompts.path", "prompts.data",
        value=lambda given: {**shared.dataset("prompts", str(given["dataset_name"])),
                             "prompts.data": "prompts"},
        remark="column `prompt`; another one is named in data.prompts.columns.prompt"),
    "dataset_config": to("data.prompts.hub.config", "data.prompts.path",
        value=make.where_hub("dataset_config", "config")),
    "dataset_train_split": to("data.prompts.hub.split", "data.prompts.split", value=make.split),
    "dataset_test_split": none("held-out prompts are a share of the same data, data.prompts.heldout"),
    "dataset_num_proc": none("rlframe prepares data in one process, and keeps the result"),
    "dataset_text_field": to("data.prompts.columns.prompt"),
    "model_name_or_path": to("model.policy", value=make.model_name,
        remark="TRL's example reads the tokenizer here, and the policy from sft_model_path"),
    "sft_model_path": to("model.policy"),
    "ref_model_path": to("model.reference",
        value=lambda given: None if given["ref_model_path"] == given["sft_model_path"]
        else given["ref_model_path"]),
    "reward_model_path": to("rewards.score.model",
        remark="it is asked in its own format, which a run says: rewards.score.input"),
    "value_model_path": to("model.critic.initial"),
    "model_revision": unless("model_revision", "main",
        reason="download the revision and give the path of its folder as model.policy"),
    "trust_remote_code": unless("trust_remote_code", None, False, "False", "false",
        reason=shared.NO_REMOTE_CODE),
    "torch_dtype": none("weights are float32; runtime.precision decides what is computed in bfloat16"),
    "dtype": none("weights are float32; runtime.precision decides what is computed in bfloat16"),
    "attn_implementation": none(shared.ENGINE),
    "use_peft": to("model.lora.rank",
        value=lambda given: (given["lora_r"] or 16) if truth(given["use_peft"]) else ABSENT),
    "lora_r": make.adapters("lora_r", "model.lora.rank"),
    "lora_alpha": make.adapters("lora_alpha", "model.lora.alpha"),
    "lora_target_modules": to("model.lora.targets", value=make.targets),
    "lora_dropout": unless("lora_dropout", 0, None,
        reason="with dropout the ratio of new to old policy would not be 1 before the first step"),
    "lora_modules_to_save": unless("lora_modules_to_save", None, reason="rlframe trains adapters "
        "alone"),
    "lora_task_type": unless("lora_task_type", "CAUSAL_LM", reason="PPO trains a causal model"),
    "load_in_8bit": unless("load_in_8bit", False, "False", reason=shared.NO_QUANTISATION),
    "load_in_4bit": unless("load_in_4bit", False, "False", reason=shared.NO_QUANTISATION),
}  # fmt: skip
"""Models and data: flags of TRL's example scripts, or what a script passes to `from_pretrained`,
`load_dataset`, `pipeline` and `LoraConfig`."""

"""TRL up to 0.11: what becomes of the options of PPOConfig, whose loop is in the script."""

from __future__ import annotations

from rlframe.convert import shared
from rlframe.convert import trl_values as make
from rlframe.convert.option import Option, chosen, none, number, to
from rlframe.convert.trl_common import LOSS, MODELS, TRAINING

OLD = {
    "batch_size": to("rollout.prompts_per_update", value=make.old_batch, default=128,
        remark="batch_size * processes"),
    "mini_batch_size": to("ppo.minibatches", value=make.old_minibatches, default=128,
        remark="batch_size / (mini_batch_size * gradient_accumulation_steps) optimiser steps per "
            "epoch"),
    "forward_batch_size": none("deprecated in TRL: it replaced mini_batch_size"),
    "gradient_accumulation_steps": to("ppo.minibatches", value=make.old_minibatches, default=1,
        remark="a factor of what one optimiser step takes"),
    "ppo_epochs": to("ppo.epochs", value=number("ppo_epochs"), default=4),
    "steps": to("ppo.updates", value=make.old_updates,
        remark="steps / rollout.prompts_per_update; the loop of the script decides how many are made"),
    "init_kl_coef": to("kl.controller.type", "kl.controller.initial", "kl.controller.coefficient",
        "kl.controller.target", "kl.controller.horizon", value=make.controller, default=0.2,
        remark="of the adaptive controller, in nats per response, unless adap_kl_ctrl is false"),
    "adap_kl_ctrl": to("kl.controller.type",
        value=lambda given: {"kl.controller.type": make.controller(given)["kl.controller.type"]},
        default=True, remark="true is adaptive, false is fixed"),
    "target": to("kl.controller.target", value=make.only_adaptive("target"), default=6.0,
        remark="in nats per response, rlframe's own unit"),
    "horizon": to("kl.controller.horizon", value=make.only_adaptive("horizon"), default=10000,
        remark="in responses, as rlframe's"),
    "kl_penalty": to("kl.estimator", default="kl", value=chosen("kl_penalty", kl="k1", abs="abs",
        mse="k2", full="full", reason="is no estimator; TRL has kl, abs, mse and full")),
    "use_score_scaling": to("rewards.score.transforms", value=make.scaling,
        remark="statistics of all responses so far, as TRL's"),
    "use_score_norm": to("rewards.score.transforms", value=make.scaling,
        remark="with use_score_scaling, the mean is taken off too"),
    "score_clip": to("rewards.score.transforms", value=make.scaling, remark="after the scaling"),
    "early_stopping": Option((), "see ppo.stop_approx_kl", make.early_stop),
    "target_kl": none("only early_stopping reads it; see ppo.stop_approx_kl"),
    "ratio_threshold": none("rlframe skips a step whose loss is not finite, and no other; "
        "algorithm.policy_loss.dual_clip bounds the ratio"),
    "model_name": none("a name for the tracker; the policy is what the script opens"),
    "query_dataset": none("a name for the tracker"),
    "reward_model": none("a name for the tracker; the reward is what the script computes"),
    "task_name": none("a name for the tracker"),
    "log_with": none(shared.TRACKING),
    "tracker_kwargs": none(shared.TRACKING),
    "tracker_project_name": none(shared.TRACKING),
    "project_kwargs": none(shared.TRACKING),
    "accelerator_kwargs": none("start rlframe with --processes, or under `accelerate launch`"),
    "push_to_hub_if_best_kwargs": none("checkpoints.keep_best keeps the best checkpoint"),
    "compare_steps": none("checkpoints.keep_best keeps the best checkpoint"),
    "optimize_cuda_cache": none("memory is released where it is short"),
    "optimize_device_cache": none("memory is released where it is short"),
    "is_peft_model": none("an output of TRL; adapters are model.lora"),
    "is_encoder_decoder": none("an output of TRL; rlframe trains causal models"),
    **LOSS, **MODELS, **TRAINING,
    "learning_rate": to("ppo.learning_rate", value=number("learning_rate"), default=1.41e-5,
        remark="of the policy and of the value head on it"),
    "lr_scheduler_type": to("ppo.decay", value=lambda given: "constant", default="constant",
        remark="constant, unless the script passes a scheduler of its own"),
    "seed": to("seed", value=number("seed")),
}  # fmt: skip
"""PPOConfig up to TRL 0.11, whose loop is in the script."""

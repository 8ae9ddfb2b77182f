"""The PPO run of a recipe, put together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from rlframe.compose.components import auxiliary_data, coefficient_of
from rlframe.compose.probe import check_policy
from rlframe.compose.project import Project
from rlframe.compose.rollouts import Rollouts
from rlframe.engine.advantages import estimated
from rlframe.engine.average import Average
from rlframe.engine.batching import Schedule
from rlframe.engine.experience import Crediting
from rlframe.engine.judge import Judge, Judgement, WeightedReward
from rlframe.engine.kl_control import KLControl
from rlframe.engine.learner import (
    Learner,
    LearningSettings,
    learning_rate_factor,
)
from rlframe.engine.metrics import Clock
from rlframe.engine.objective import Objective
from rlframe.engine.ppo import Run
from rlframe.engine.sharing import share
from rlframe.models import loading, lora
from rlframe.models.actor_critic import ActorCritic, Critic, SharedCritic
from rlframe.models.policy import Policy
from rlframe.recipe.schema import PPO, NewModel, Recipe
from rlframe.registry.relay import Relay
from rlframe.runs.directory import RunDirectory
from rlframe.runs.display import Display
from rlframe.runs.evaluation import Watch
from rlframe.runs.saving import Saver
from rlframe.stages.ppo import Aligned, Recorder, align
from rlframe.types import Rollout


def alignment(
    project: Project, model: Any, files: RunDirectory, display: Display, saver: Saver
) -> Aligned:
    """Build the PPO run of a project around a language model, and run it or go on with it."""
    parts = PPOParts(project, model)
    recipe, ppo = project.recipe, parts.ppo
    for path, component in parts.components.items():
        for note in component.notes():
            display.say(f"{path}: {note}")
    recorder = Recorder(
        directory=files,
        display=display,
        runtime=project.runtime,
        training=parts.training,
        models=parts.models,
        tokenizer=project.tokenizer,
        components=parts.components,
        learner=parts.learner,
        judge=parts.judge,
        relay=parts.relay,
        watch=Watch(parts.rollouts.heldout, parts.judge.heldout, project.runtime.gather),
        whole=parts.whole,
        penalty=parts.penalty,
        updates=ppo.updates,
        evaluate_every=recipe.evaluation.every,
        saver=saver,
        average=parts.average,
    )
    return align(
        parts.run,
        recorder,
        table_rows=recipe.evaluation.table_rows,
        resolved=project.loaded.resolved(),
    )


def check_adapters(project: Project) -> None:
    """Look for the layers that are to have adapters, in a model without weights.

    Raises:
      SetupError: there is no peft.
      RecipeError: there is no such layer.
    """
    policy, section = project.recipe.model.policy, project.recipe.model.lora
    if section is None:
        return
    if isinstance(policy, NewModel):
        with torch.device("meta"):
            model = loading.new_language_model(
                policy.architecture, project.tokenizer, dtype=project.dtype, seed=0
            )
    else:
        model = project.models.pretrained("model.policy", policy).skeleton("causal")
    lora.check(model, section.targets)


class PPOParts:
    """The objects of a PPO run, made once and shared."""

    def __init__(self, project: Project, model: Any) -> None:
        recipe = project.recipe
        assert recipe.ppo is not None
        assert recipe.kl is not None
        self.project, self.ppo, self.kl = project, recipe.ppo, recipe.kl
        self.penalty = self.kl.placement == "reward"
        self.plugins = [project.instance("hooks", name) for name in recipe.hooks]
        self.relay = Relay(self.plugins)
        self.clock = Clock()
        critic = self._critic(model)  # first: it starts from the model without adapters
        if recipe.model.lora is not None:
            lora.add(model, **recipe.model.lora.model_dump(), base=self._base(), seed=recipe.seed)
        self.policy = self._policy("model.policy", model)
        check_policy(self.policy, name="model.policy")
        self.reference = self._reference(model)
        self.models = ActorCritic(self.policy, critic)
        self.training = project.runtime.train(
            self.models,
            partial(_optimizer, recipe=recipe, ppo=self.ppo),
            max_grad_norm=self.ppo.max_grad_norm,
        )
        self.rewards = [
            WeightedReward(
                project.instance("rewards", name),
                entry.weight,
                entry.time_limit_seconds,
                entry.normalize,
            )
            for name, entry in recipe.rewards.items()
        ]
        self.average = (
            None
            if self.ppo.ema is None
            else Average(self.training, decay=self.ppo.ema, main=project.runtime.main)
        )
        self.losses = [project.instance("losses", name) for name in recipe.losses]
        self.controller = project.instance("kl", "controller")
        self.estimator = project.instance("advantages")
        self.learner = self._learner()
        self.rollouts = Rollouts(project, self.policy, self.reference)
        self.judge = Judge(
            self.rewards,
            self.relay,
            sample_reference=self.rollouts.as_reference,
            reduce=project.runtime.sum,
            seed=recipe.seed,
            rank=project.runtime.rank,
        )

    @property
    def components(self) -> dict[str, Any]:
        """Everything whose state a checkpoint keeps."""
        return {
            **{f"rewards.{r.instance.name}": r.instance.component for r in self.rewards},
            **{f"losses.{loss.name}": loss.component for loss in self.losses},
            "kl.controller": self.controller.component,
            "advantages": self.estimator.component,
            **{f"hooks.{plugin.name}": plugin.component for plugin in self.plugins},
        }

    # Models

    def _policy(self, path: str, model: Any) -> Policy:
        return Policy(
            model,
            temperature=self.project.recipe.rollout.temperature,
            chunk=self.ppo.logits_chunk,
            profile=self.project.profiles.of(path, model),
            vocabulary=self.project.profiles.vocabulary,
        )

    def _base(self) -> str | None:
        """Where the model lies that PPO starts from; a new one that was not fine-tuned nowhere."""
        recipe = self.project.recipe
        if recipe.sft is not None:
            return self.project.model_path("stage:sft")
        return recipe.model.policy if isinstance(recipe.model.policy, str) else None

    def _reference(self, model: Any) -> Policy:
        frozen = self.project.models.reference()
        if frozen is None and lora.adapted(model):
            return lora.WithoutAdapters(self.policy)
        if frozen is None:
            frozen = copy.deepcopy(model)
        name = self.project.recipe.model.reference
        same = name is None or name.startswith("stage:")
        path = "model.policy" if same else "model.reference"
        if name is not None:
            check_policy(self._policy(path, frozen.to(self.project.runtime.device)), name=path)
        return self._policy(path, self.project.context.prepare(frozen))

    def _critic(self, model: Any) -> Critic | SharedCritic:
        section, seed = self.project.recipe.model.critic, self.project.recipe.seed
        if section.shared:
            weight = model.get_input_embeddings().weight
            width = model.config.get_text_config().hidden_size
            return SharedCritic(
                loading.value_head(width, head=section.head, like=weight, seed=seed)
            )
        return Critic(self.project.models.critic(model))

    # The run

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Whole weights on every rank, and the precision of the computation."""
        with ExitStack() as entered:
            with self.clock.phase("gather"):
                entered.enter_context(self.training.whole())
                entered.enter_context(self.project.runtime.resident())
            entered.enter_context(self.project.runtime.autocast())
            yield

    def run(self, recorder: Recorder, start: int = 0) -> Run:
        """Everything that `engine.ppo.train` needs, from update `start` on."""
        ppo, runtime = self.ppo, self.project.runtime
        return Run(
            updates=range(start, ppo.updates),
            whole=self.whole,
            act=self.rollouts.act,
            judge=self.judge,
            share=self._share,
            plan=self._plan,
            credit=Crediting(
                models=self.models,
                reference=self.reference,
                advantages=self._advantages,
                reduce=runtime.sum,
                estimator=self.kl.estimator,
                penalty=self.penalty,
                whiten_rewards=ppo.whiten_rewards,
                whiten_advantages=ppo.whiten_advantages,
            ),
            learn=self.learner,
            control=KLControl(
                self.controller, self.relay, self.kl.minimum, self.kl.maximum, runtime.gather
            ),
            record=recorder,
            tell=self.relay.tell,
            clock=self.clock,
        )

    def _share(self, rollout: Rollout, judgement: Judgement) -> tuple[Rollout, Judgement]:
        runtime = self.project.runtime
        if runtime.world_size == 1:
            return rollout, judgement
        return share(rollout, judgement, gather=runtime.gather, rank=runtime.rank)

    def _plan(self, rollout: Rollout) -> Schedule:
        section = self.project.recipe.rollout
        return Schedule(
            rollout.samples,
            rollout.sequences.lengths.tolist(),
            total=section.prompts_per_update * section.samples_per_prompt,
            minibatches=self.ppo.minibatches,
            budget=self.learner.budget,
            key=(self.project.recipe.seed, rollout.update),
            most=lambda counts: [int(n) for n in self.project.runtime.max(torch.tensor(counts))],
        )

    def _advantages(
        self, rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return estimated(self.relay, self.estimator, rewards, values, mask)

    def _learner(self) -> Learner:
        ppo, runtime = self.ppo, self.project.runtime
        active = tuple(loss for loss in self.losses if coefficient_of(loss) != 0)
        return Learner(
            self.training,
            schedule=partial(
                learning_rate_factor,
                updates=ppo.updates,
                warmup=ppo.warmup_updates,
                decay=ppo.decay,
            ),
            objective=Objective(
                relay=self.relay,
                auxiliary=active,
                clip=ppo.clip,
                value_clip=ppo.value_clip,
                value_coefficient=ppo.value_coefficient,
                kl_loss=None if self.penalty else self.kl.estimator,
            ),
            auxiliary=[auxiliary_data(loss, self.project) for loss in active],
            runtime=runtime,
            settings=LearningSettings(
                epochs=ppo.epochs,
                microbatch_tokens=ppo.microbatch_tokens,
                stop_approx_kl=ppo.stop_approx_kl,
                max_bad_steps=ppo.max_bad_steps,
            ),
        )


def _optimizer(models: Any, *, recipe: Recipe, ppo: PPO) -> torch.optim.Optimizer:
    """AdamW over policy and critic, each with its own peak learning rate."""
    rates = {
        "policy": ppo.learning_rate,
        "critic": recipe.model.critic.learning_rate or ppo.learning_rate,
    }
    groups = [
        {
            "params": [p for p in module.parameters() if p.requires_grad],
            "lr": rates[name],
            "peak_lr": rates[name],
        }
        for name, module in (("policy", models.policy), ("critic", models.critic))
    ]
    return torch.optim.AdamW(groups, weight_decay=ppo.weight_decay, fused=True)

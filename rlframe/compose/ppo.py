"""The PPO run of a recipe, put together."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch

from rlframe.api.component import Instance
from rlframe.compose.components import auxiliary_data, coefficient_of
from rlframe.compose.probe import check_policy
from rlframe.compose.project import Project
from rlframe.compose.sampler_probe import check_sampler
from rlframe.compose.sampling import needs_logprobs, policy_sampler, reference_sampler
from rlframe.engine.advantages import CreditAssignment
from rlframe.engine.batching import Scheduler
from rlframe.engine.checkpoint import OptimizerMemory, PolicyWeights
from rlframe.engine.ema import EMA
from rlframe.engine.evaluation import Models
from rlframe.engine.experience import Correction, ExperienceBuilder
from rlframe.engine.generation import RolloutGenerator
from rlframe.engine.heldout import HeldoutEvaluator
from rlframe.engine.kl_control import KLControl
from rlframe.engine.metrics import Clock
from rlframe.engine.metrics_logger import MetricsLogger
from rlframe.engine.objective import Objective
from rlframe.engine.ppo import Run
from rlframe.engine.rebalancing import Rebalancer
from rlframe.engine.scoring import RewardScorer, WeightedReward
from rlframe.engine.states import ComponentStates
from rlframe.engine.streams import Shuffled
from rlframe.engine.updater import PolicyUpdater, UpdateSettings, learning_rate_factor
from rlframe.models import loading, lora
from rlframe.models.actor_critic import ActorCritic, Critic, SharedCritic
from rlframe.models.policy import Policy
from rlframe.recipe.schema import PPO, NewModel, Recipe
from rlframe.registry.relay import Relay
from rlframe.runs.checkpointer import Checkpointer
from rlframe.runs.directory import RunDirectory
from rlframe.runs.display import Display
from rlframe.runs.saving import Saver
from rlframe.stage_table import REFERENCE, running


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
    """The objects of a PPO run, made once and shared.

    Args:
      project: the recipe and what it names.
      model: the language model that PPO starts from.
    """

    def __init__(self, project: Project, model: Any) -> None:
        recipe = project.recipe
        assert recipe.ppo is not None
        assert recipe.kl is not None
        self.project, self.ppo, self.kl = project, recipe.ppo, recipe.kl
        self.penalty = self.kl.placement == "reward"
        self.plugins = [project.instance("hooks", name) for name in recipe.hooks]
        self.relay = project.relay = Relay(self.plugins)
        self.clock = Clock()
        self.losses = [project.instance("losses", name) for name in recipe.losses]
        self.controller = project.instance("kl", "controller")
        self.algorithm = recipe.algorithm
        self.estimator = project.instance("algorithm", "advantages")
        self.policy_loss = project.instance("algorithm", "policy_loss")
        self.value_loss = (
            None
            if self.algorithm.value_loss is None
            else project.instance("algorithm", "value_loss")
        )
        self.credit = CreditAssignment(self.estimator, self.relay)
        self.models = self._models(model)
        self.ema = self._ema()
        self.updater = self._updater()
        self.generator = self._generator()
        self.scorer = self._scorer()

    @property
    def components(self) -> dict[str, Any]:
        """Everything whose state a checkpoint keeps, by recipe path."""
        return {
            **{f"rewards.{part.name}": part.component for part in self.scorer.instances},
            **{f"losses.{loss.name}": loss.component for loss in self.losses},
            "kl.controller": self.controller.component,
            "rollout.sampler": self.generator.sampler.component,
            **{f"algorithm.{part.name}": part.component for part in self._parts()},
            **{f"hooks.{plugin.name}": plugin.component for plugin in self.plugins},
        }

    def _parts(self) -> list[Instance[Any]]:
        """The components of the algorithm."""
        parts = (self.estimator, self.policy_loss, self.value_loss)
        return [part for part in parts if part is not None]

    # Models

    def _models(self, model: Any) -> Models:
        recipe, runtime = self.project.recipe, self.project.runtime
        # First: the critic starts from the model without adapters.
        critic = self._critic(model) if self.credit.needs.critic else None
        if recipe.model.lora is not None:
            lora.add(model, **recipe.model.lora.model_dump(), base=self._base(), seed=recipe.seed)
        policy = self._policy("model.policy", model)
        check_policy(policy, name="model.policy")
        check_sampler(self.project, policy)
        reference = self._reference(policy)
        trained = ActorCritic(policy, critic)
        training = runtime.train(
            trained,
            partial(_optimizer, recipe=recipe, ppo=self.ppo),
            max_grad_norm=self.ppo.max_grad_norm,
        )
        return Models(
            trained=trained,
            reference=reference,
            training=training,
            runtime=runtime,
            clock=self.clock,
            estimator=self.kl.estimator,
            bootstrap=self.credit.needs.last_values,
        )

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
        trained = [stage for stage in running(recipe) if stage.result == "policy"]
        if trained:
            return self.project.model_path(trained[-1].reference)
        return recipe.model.policy if isinstance(recipe.model.policy, str) else None

    def _reference(self, policy: Policy) -> Policy:
        model = policy.model
        frozen = self.project.models.reference()
        if frozen is None and lora.adapted(model):
            return lora.WithoutAdapters(policy)
        if frozen is None:
            frozen = copy.deepcopy(model)
        name = self.project.recipe.model.reference
        same = name is None or name.startswith(REFERENCE)
        path = "model.policy" if same else "model.reference"
        if name is not None:
            check_policy(self._policy(path, frozen.to(self.project.runtime.device)), name=path)
        return self._policy(path, self.project.context.prepare(frozen))

    def _critic(self, model: Any) -> Critic | SharedCritic:
        section, seed = self.project.recipe.model.critic, self.project.recipe.seed
        assert section is not None
        if section.shared:
            weight = model.get_input_embeddings().weight
            width = model.config.get_text_config().hidden_size
            return SharedCritic(
                loading.value_head(width, head=section.head, like=weight, seed=seed)
            )
        return Critic(self.project.models.critic(model))

    def _ema(self) -> EMA | None:
        if self.ppo.ema is None:
            return None
        training, main = self.models.training, self.project.runtime.main
        return EMA(training, decay=self.ppo.ema, main=main)

    # The run

    def run(self, files: RunDirectory, display: Display, saver: Saver) -> Run:
        """Everything that `engine.ppo.train` needs."""
        ppo, recipe, runtime = self.ppo, self.project.recipe, self.project.runtime
        return Run(
            updates=ppo.updates,
            generator=self.generator,
            scorer=self.scorer,
            rebalancer=Rebalancer(runtime.gather, runtime.rank, runtime.world_size),
            scheduler=self._scheduler(),
            models=self.models,
            experience=ExperienceBuilder(
                credit=self.credit,
                reduce=runtime.sum,
                penalty=self.penalty,
                whiten_rewards=self.algorithm.whiten_rewards,
                whiten_advantages=bool(self.algorithm.whiten_advantages),
                correction=Correction.of(
                    self.algorithm.importance_correction, self.algorithm.importance_limit
                ),
            ),
            updater=self.updater,
            control=KLControl(
                self.controller,
                self.relay,
                self.kl.minimum,
                self.kl.maximum,
                gather=runtime.gather,
                reduce=runtime.sum,
            ),
            heldout=HeldoutEvaluator(
                self.models,
                self.generator,
                self.scorer,
                runtime.gather,
                files,
                self.relay,
                every=recipe.evaluation.every,
            ),
            metrics=(metrics := self._metrics(files, display)),
            checkpoints=self._checkpointer(files, saver, metrics),
            observers=self.relay,
            clock=self.clock,
            gather=runtime.gather,
        )

    def _metrics(self, files: RunDirectory, display: Display) -> MetricsLogger:
        return MetricsLogger(
            files,
            display,
            self.relay,
            runtime=self.project.runtime,
            training=self.models.training,
            clock=self.clock,
            updates=self.ppo.updates,
            penalty=self.penalty,
        )

    def _checkpointer(
        self, files: RunDirectory, saver: Saver, metrics: MetricsLogger
    ) -> Checkpointer:
        training, runtime = self.models.training, self.project.runtime
        return Checkpointer(
            files,
            saver,
            self.relay,
            weights=PolicyWeights(training, self.models.trained, self.project.tokenizer, self.ema),
            optimizer=OptimizerMemory(training),
            kept={
                "updater": self.updater,
                "scorer": self.scorer,
                "metrics": metrics,
                "observers": self.relay,
                "components": ComponentStates(self.components, runtime.gather, runtime.rank),
            },
            steps=self.ppo.updates,
        )

    def _scheduler(self) -> Scheduler:
        section, runtime = self.project.recipe.rollout, self.project.runtime
        return Scheduler(
            total=section.prompts_per_update * section.samples_per_prompt,
            minibatches=self.ppo.minibatches,
            seed=self.project.recipe.seed,
            most=lambda counts: [int(n) for n in runtime.max(torch.tensor(counts))],
        )

    def _generator(self) -> RolloutGenerator:
        recipe, (train, heldout) = self.project.recipe, self.project.prompts
        return RolloutGenerator(
            sampler=policy_sampler(self.project, self.models.trained.policy, self.relay),
            reference_sampler=reference_sampler(self.project, self.models.reference, self.relay),
            prompts=Shuffled(train, key=(recipe.seed, "prompts")),
            heldout_prompts=heldout[: recipe.evaluation.prompts],
            prompts_per_update=recipe.rollout.prompts_per_update,
            samples_per_prompt=recipe.rollout.samples_per_prompt,
            runtime=self.project.runtime,
        )

    def _scorer(self) -> RewardScorer:
        recipe, runtime = self.project.recipe, self.project.runtime
        return RewardScorer(
            [
                WeightedReward(
                    self.project.instance("rewards", name),
                    entry.weight,
                    entry.time_limit_seconds,
                    transforms=tuple(
                        self.project.instance("rewards", name, "transforms", number)
                        for number, _ in enumerate(entry.transforms)
                    ),
                    gates=entry.gates,
                    on_none=entry.on_none,
                )
                for name, entry in recipe.rewards.items()
            ],
            self.relay,
            sample_reference=self.generator.of_reference,
            runtime=runtime,
            updates=self.ppo.updates,
            seed=recipe.seed,
            logprobs=needs_logprobs(self.project.loaded),
        )

    def _updater(self) -> PolicyUpdater:
        ppo, runtime = self.ppo, self.project.runtime
        active = tuple(loss for loss in self.losses if coefficient_of(loss) != 0)
        return PolicyUpdater(
            self.models.training,
            schedule=partial(
                learning_rate_factor,
                updates=ppo.updates,
                warmup=ppo.warmup_updates,
                decay=ppo.decay,
            ),
            objective=Objective(
                relay=self.relay,
                policy=self.policy_loss,
                value=self.value_loss,
                value_coefficient=getattr(self.algorithm.value_loss, "coefficient", 0.0),
                reduction=self.algorithm.reduction,
                max_new_tokens=self.project.recipe.rollout.max_new_tokens,
                auxiliary=active,
                kl_loss=None if self.penalty else self.kl.estimator,
            ),
            auxiliary=[auxiliary_data(loss, self.project) for loss in active],
            runtime=runtime,
            settings=UpdateSettings(
                epochs=ppo.epochs,
                microbatch_tokens=ppo.microbatch_tokens,
                stop_approx_kl=ppo.stop_approx_kl,
                max_bad_steps=ppo.max_bad_steps,
            ),
            ema=self.ema,
        )


def _optimizer(models: Any, *, recipe: Recipe, ppo: PPO) -> torch.optim.Optimizer:
    """AdamW over policy and critic, each with its own peak learning rate."""
    rates = {
        "policy": ppo.learning_rate,
        "critic": getattr(recipe.model.critic, "learning_rate", None) or ppo.learning_rate,
    }
    groups = [
        {
            "params": [p for p in module.parameters() if p.requires_grad],
            "lr": rates[name],
            "peak_lr": rates[name],
        }
        for name, module in (("policy", models.policy), ("critic", models.critic))
        if module is not None
    ]
    return torch.optim.AdamW(groups, weight_decay=ppo.weight_decay, fused=True)

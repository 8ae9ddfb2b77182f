"""The models that a recipe names: all of them looked at before the first stage, each loaded when it is
needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from rlframe.compose.lengths import start_of
from rlframe.errors import Problems, RecipeError
from rlframe.models import loading
from rlframe.models.pretrained import Pretrained
from rlframe.recipe.document import dotted
from rlframe.recipe.references import initials
from rlframe.recipe.schema import NewModel
from rlframe.stage_table import REFERENCE, Stage, referred, running

if TYPE_CHECKING:
    from rlframe.compose.project import Project


class Models:
    """Policy, reference, critic and the trunk of a reward model, as a recipe names them.

    Args:
      project: its recipe and tokenizer.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._opened: dict[str, Pretrained] = {}
        self._tokenizers: dict[Stage, PreTrainedTokenizerBase] = {}

    def pretrained(self, at: str, name: str) -> Pretrained:
        """A saved model, looked at once.

        Args:
          at: the recipe's path.
          name: a path or hub id.
        """
        if at not in self._opened:
            self._opened[at] = Pretrained(name, at=at)
        return self._opened[at]

    # Before the first stage

    def check(self, problems: Problems) -> list[str]:
        """Look at every saved model; what is wrong goes to `problems`.

        Returns:
          What should be said about them.
        """
        notes: list[str] = []
        for at, name, options in self._named():
            with problems.collected():
                saved = self.pretrained(at, name)
                notes += saved.check(**options)
                if options["head"] == "sequence":
                    loading.score_head(saved.skeleton("sequence", labels=1), at=at)
                project = self._project
                if at == "model.policy":
                    notes += self._new_rows(at, saved, project.tokenizer)
                elif at in self._starts():
                    notes += self._new_rows(at, saved, self.tokenizer_of(self._starts()[at]))
                else:
                    notes += saved.check_vocabulary(project.tokenizer, added=project.added_tokens)
        with problems.collected():
            self._check_critic_of_stage()
        return notes

    def _new_rows(
        self, at: str, saved: Pretrained, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[str, ...]:
        """A remark on tokens that a model's own tokenizer has and its embedding does not."""
        rows = saved.config.get_text_config().vocab_size
        new = [token for token, number in tokenizer.get_vocab().items() if number >= rows]
        new = sorted(set(new) - self._project.added_tokens)
        if not new:
            return ()
        return (
            f"{at}: the model's embedding has {rows} rows, and none for {len(new)} of the tokenizer's "
            f"tokens, such as {new[0]!r}. Theirs are new and random, and mean nothing before "
            "something has trained them",
        )

    def _check_critic_of_stage(self) -> None:
        """A critic reads the policy's tokens, whatever the reward model that it starts from does."""
        recipe = self._project.recipe
        stage = referred(getattr(recipe.model.critic, "initial", None))
        if stage is None:
            return
        theirs = self.tokenizer_of(stage).get_vocab()
        if any(theirs.get(t) != n for t, n in self._project.tokenizer.get_vocab().items()):
            raise RecipeError(
                "model.critic.initial: the reward model of this recipe starts from "
                f"{getattr(recipe, stage.name).initial!r}, which reads other "
                "tokens than the policy, and a critic reads the policy's. Leave `initial` out, or "
                "start both from models with one tokenizer"
            )

    def _starts(self) -> dict[str, Stage]:
        """Recipe path of the model that it starts from -> stage, of those that train another model
        than the policy.
        """
        stages = running(self._project.recipe)
        return {start_of(stage): stage for stage in stages if stage.result == "scorer"}

    def tokenizer_of(self, stage: Stage) -> PreTrainedTokenizerBase:
        """That of the model which a stage trains: its own, if it starts from another than the policy.

        The policy's where that model lies without a tokenizer.
        """
        if stage not in self._tokenizers:
            self._tokenizers[stage] = self._tokenizer_of(stage)
        return self._tokenizers[stage]

    def _tokenizer_of(self, stage: Stage) -> PreTrainedTokenizerBase:
        at, initial = start_of(stage), self._initial(stage)
        if initial == "policy":
            return self._project.tokenizer
        saved = self.pretrained(at, initial)
        if not saved.has_tokenizer:
            saved.check_vocabulary(self._project.tokenizer, added=self._project.added_tokens)
            return self._project.tokenizer
        tokenizer = saved.tokenizer
        if tokenizer.eos_token_id is None:
            raise RecipeError(
                f"{at}: the tokenizer of {initial!r} has no EOS token, with which the texts that it "
                "learns from would end"
            )
        return tokenizer

    def _initial(self, stage: Stage) -> str:
        """What a stage starts from: the policy, or a model that its section names."""
        return initials(self._project.recipe).get((stage.name, "initial"), "policy")

    def _named(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(recipe path, name, how it is loaded) of each saved model that a stage reads."""
        recipe = self._project.recipe
        scalar = {"head": "sequence", "labels": 1}
        if isinstance(recipe.model.policy, str):
            yield "model.policy", recipe.model.policy, {"head": "causal"}
        for path, name in initials(recipe).items():
            if name != "policy":
                yield dotted(path), name, {**scalar, "new_head": True}
        if recipe.ppo is None:
            return
        reference, critic = recipe.model.reference, recipe.model.own_critic
        if reference is not None and not _of_a_stage(reference):
            yield "model.reference", reference, {"head": "causal"}
        if critic is not None and critic.initial != "policy" and not _of_a_stage(critic.initial):
            new_head = critic.head != "keep"
            yield "model.critic.initial", critic.initial, {**scalar, "new_head": new_head}

    # When they are needed

    def policy(self, tuned: Path | None = None) -> Any:
        """The policy as the recipe names it, or as a finished fine-tuning left it."""
        project = self._project
        policy = project.recipe.model.policy if tuned is None else str(tuned)
        if isinstance(policy, NewModel):
            return loading.new_language_model(
                policy.architecture,
                project.tokenizer,
                dtype=project.dtype,
                seed=project.recipe.seed,
            )
        return self._language_model(policy, "model.policy")

    def reference(self) -> Any | None:
        """A reference of its own; None where it is the policy as PPO starts."""
        name = self._project.recipe.model.reference
        return None if name is None else self._language_model(name, "model.reference")

    def _language_model(self, name: str, at: str) -> Any:
        project = self._project
        return loading.load_language_model(
            project.model_path(name), project.tokenizer, dtype=project.dtype, at=at
        )

    def critic(self, policy: Any) -> Any:
        """A critic of its own, on a copy of the policy's trunk or as it was saved."""
        section = self._project.recipe.model.critic
        assert section is not None
        return self._scalar(policy, section.initial, head=section.head, at="model.critic.initial")

    def start(self, stage: Stage, policy: Any) -> Any:
        """What a stage trains: the policy itself, or a model with one output, whose head is new."""
        if stage.result != "scorer":
            return policy
        return self._scalar(
            policy,
            self._initial(stage),
            head="normal",
            at=start_of(stage),
            tokenizer=self.tokenizer_of(stage),
        )

    def _scalar(
        self,
        policy: Any,
        name: str,
        *,
        head: loading.Head,
        at: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Any:
        project, seed = self._project, self._project.recipe.seed
        if name == "policy":
            return loading.scalar_model_from(policy, head=head, seed=seed)
        return loading.load_scalar_model(
            project.model_path(name),
            tokenizer or project.tokenizer,
            head=head,
            dtype=project.dtype,
            seed=seed,
            at=at,
        )


def _of_a_stage(name: str) -> bool:
    return name.startswith(REFERENCE)

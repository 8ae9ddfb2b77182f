"""How the policy and the reference of a recipe are run: found out before the first stage trains."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from rlframe.compose.probe import profile_by, profile_of
from rlframe.errors import RecipeError
from rlframe.models.profile import Profile
from rlframe.models.vocabulary import Vocabulary, vocabulary_of
from rlframe.recipe.references import initials
from rlframe.stage_table import REFERENCE

if TYPE_CHECKING:
    from rlframe.compose.project import Project


class Profiles:
    """The profile of each language model that a recipe trains or samples from.

    Args:
      project: its recipe, prompts and processes.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._found: dict[str, Profile] = {}

    def probe(self) -> list[str]:
        """Probe every architecture; the same on all ranks.

        Returns:
          What a user should know about how models are run.

        Raises:
          RecipeError: an architecture cannot be run right, or not as the recipe wants it.
        """
        project = self._project
        for path in self._paths():
            found = profile_of(
                project.lengths.config(path),
                length=project.lengths.longest_text,
                name=self._name(path),
                samples=project.recipe.ppo is not None,
                scalar=path == "model.policy" and self._starts_others(),
            )
            if found is not None:
                self._found[path] = found
        project.runtime.agree("how the models are run", tuple(self._found.items()))
        self._check_recipe()
        said = {f"{path}: {p.sentence}" for path, p in self._found.items() if p.sentence}
        return sorted(said)

    def of(self, path: str, model: Any) -> Profile:
        """The profile of the model at a path of the recipe.

        Args:
          path: `model.policy` or `model.reference`.
          model: is probed itself where no small one of its architecture could be.
        """
        if path not in self._found:
            samples = self._project.recipe.ppo is not None
            self._found[path] = profile_by(model, name=self._name(path), samples=samples)
            self._check_recipe()
        return self._found[path]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The ids that have a token: what is sampled, and what probabilities are over."""
        return vocabulary_of(self._project.tokenizer)

    def _paths(self) -> list[str]:
        reference = self._project.recipe.model.reference
        named = reference is not None and not reference.startswith(REFERENCE)
        return ["model.policy", *(["model.reference"] if named else [])]

    def _name(self, path: str) -> str:
        recipe = self._project.recipe
        named = recipe.model.policy if path == "model.policy" else recipe.model.reference
        return f"{path}: {named!r}" if isinstance(named, str) else f"{path}: the new model"

    def _starts_others(self) -> bool:
        """Whether a critic or a reward model begins with the policy's trunk."""
        recipe = self._project.recipe
        critic = recipe.model.own_critic
        own = recipe.ppo is not None and critic is not None and critic.initial == "policy"
        return own or "policy" in initials(recipe).values()

    def _check_recipe(self) -> None:
        """What the recipe wants of the policy that its architecture does not have."""
        recipe, found = self._project.recipe, self._found.get("model.policy")
        if (
            recipe.ppo is not None
            and recipe.model.critic is not None
            and recipe.model.critic.shared
            and found is not None
            and found.whole
        ):
            raise RecipeError(
                "model.critic.shared: the critic reads what the policy's trunk gives its head, and in "
                f"this architecture they cannot be taken apart ({self._name('model.policy')}). Leave "
                "`shared` out, or use another model"
            )
        sft = recipe.sft
        if sft is not None and sft.pack and found is not None and not found.packs:
            raise RecipeError(
                "sft.pack: examples in one row would see each other, since this architecture does not "
                f"take positions that start again for a border ({self._name('model.policy')}). "
                "Leave `pack` out"
            )

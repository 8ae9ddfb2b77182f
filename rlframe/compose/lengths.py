"""How many tokens each model of a recipe reads, and whether the data fits, before any training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlframe.api.lengths import context_tokens
from rlframe.errors import RecipeError
from rlframe.models import loading
from rlframe.recipe.document import dotted
from rlframe.recipe.references import initials
from rlframe.recipe.schema import NewModel
from rlframe.stage_table import Stage, referred

if TYPE_CHECKING:
    from rlframe.compose.project import Project


class Lengths:
    """The configs of a recipe's models, and the tokens that these read.

    Args:
      project: its recipe, tokenizer and data.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._configs: dict[str, Any] = {}

    def config(self, path: str) -> Any:
        """The config of the model at a path of the recipe, such as `model.critic.initial`.

        Raises:
          RecipeError: it cannot be opened.
        """
        if path not in self._configs:
            self._configs[path] = self._opened(path, self._named(path))
        return self._configs[path]

    def _named(self, path: str) -> Any:
        recipe = self._project.recipe
        return {
            "model.policy": recipe.model.policy,
            "model.reference": recipe.model.reference or "policy",
            "model.critic.initial": getattr(recipe.model.critic, "initial", "policy"),
            **{dotted(at): name for at, name in initials(recipe).items()},
        }[path]

    def _opened(self, path: str, name: Any) -> Any:
        if isinstance(name, NewModel):
            return loading.policy_config(name.architecture, self._project.tokenizer)
        stage = referred(name)
        if path != "model.policy" and (name == "policy" or stage is not None):
            return self.config("model.policy" if stage is None else start_of(stage))
        return self._project.models.pretrained(path, name).config

    def tokens(self, path: str) -> int | None:
        """Most tokens that the model at a path of the recipe reads; None if nothing limits them."""
        return context_tokens(self.config(path))

    @property
    def shortest(self) -> tuple[str, int] | None:
        """(path, tokens) of the model of PPO that reads least, of those that read whole texts."""
        recipe = self._project.recipe
        paths = ["model.policy", "model.reference"]
        if recipe.model.own_critic is not None:
            paths.append("model.critic.initial")
        limits = {path: limit for path in paths if (limit := self.tokens(path)) is not None}
        return min(limits.items(), key=lambda item: item[1]) if limits else None

    @property
    def longest_text(self) -> int | None:
        """Tokens of the longest prompt and response that are sampled; None without PPO."""
        recipe = self._project.recipe
        if recipe.ppo is None:
            return None
        longest = max(len(prompt.ids) for part in self._project.prompts for prompt in part)
        return longest + recipe.rollout.max_new_tokens

    def check_fits(self, stage: Stage, longest: int) -> None:
        """Every example of a supervised stage fits into what its model reads.

        Args:
          stage: as the table has it.
          longest: tokens of its longest example, cut to its `max_tokens`.

        Raises:
          RecipeError: one does not.
        """
        name, path = stage.name, start_of(stage)
        limit, most = self.tokens(path), getattr(self._project.recipe, name).max_tokens
        if limit is not None and longest > limit:
            raise RecipeError(
                f"{name}.max_tokens: {most} lets through an example of {longest} tokens, and the "
                f"model ({path}) reads {limit} tokens. Set `{name}.max_tokens: {limit}` or less"
            )


def start_of(stage: Stage) -> str:
    """The recipe's path of the model whose weights a stage begins with, or of which it is a copy."""
    return f"{stage.name}.initial" if stage.result == "scorer" else "model.policy"

"""Whether weights and model are one: nothing is random, nothing of the trunk is left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rlframe.errors import RecipeError, listed

_SHOWN = 3  # names of weights in a message


class Fit:
    """How the weights of a folder and a model go together, as transformers tells.

    Args:
      model: with or without weights.
      weights: of the folder, by name.
      info: transformers' loading info.
      new_head: what stands on the trunk need not be there.
    """

    def __init__(
        self, model: Any, weights: Mapping[str, Tensor], info: Mapping[str, Any], *, new_head: bool
    ) -> None:
        self.model, self.weights = model, weights
        self._trunk = f"{model.base_model_prefix}."
        self._parts = {name for name, _ in model.base_model.named_children()}
        missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
        if new_head:
            missing = [name for name in missing if self._in_trunk(name)]
            mismatched = [entry for entry in mismatched if self._in_trunk(entry[0])]
        self.missing, self.mismatched = missing, mismatched
        self.unused = sorted(info["unexpected_keys"])

    def _in_trunk(self, name: str) -> bool:
        """Whether a name is that of a weight of the trunk, saved with its prefix or without."""
        return name.startswith(self._trunk) or name.partition(".")[0] in self._parts

    def check(self, path: str) -> None:
        """Refuse what is not whole.

        Raises:
          RecipeError: what is missing, has another shape, or belongs to a trunk of another config.
        """
        kind = type(self.model).__name__
        if self.missing:
            raise RecipeError(
                f"{path} lacks weights of a {kind}, which would be random: {some(self.missing)}. "
                f"{self._guess()}"
            )
        if self.mismatched:
            name, saved, wanted = self.mismatched[0]
            raise RecipeError(
                f"the weights in {path} are not those of its config: {name} has the shape "
                f"{list(saved)} in the file and {list(wanted)} by the config "
                f"({len(self.mismatched)} weights differ). Put the config back that belongs to the "
                "weights"
            )
        over = [
            name
            for name in self.unused
            if self._in_trunk(name) and name.endswith((".weight", ".bias"))
        ]
        if over:
            raise RecipeError(
                f"the weights in {path} are more than its config makes: {some(over)} would be left "
                "out, and the result would not be the model that was saved. Put the config back that "
                "belongs to the weights, or save the model again with save_pretrained"
            )

    def _guess(self) -> str:
        """Why weights may be missing, and what to do."""
        whole = f"Save the whole model: model.save_pretrained(...) of a {type(self.model).__name__}"
        firsts = {name.partition(".")[0] for name in self.weights}
        if len(firsts) == 1 and len(self.unused) == len(self.weights):
            (first,) = firsts
            return (
                f"Every name in the file begins with {f'{first}.'!r}, which a wrapper puts there: save "
                "the model inside of it with save_pretrained"
            )
        heads = [name for name in self.missing if not self._in_trunk(name)]
        if heads != self.missing:
            return whole
        shape = self.model.get_parameter(heads[0]).shape
        alike = [n for n in self.unused if n in self.weights and self.weights[n].shape == shape]
        if alike:
            return (
                f"{alike[0]} has the shape of {heads[0]}: rename it, if that is what it is. {whole}"
            )
        others = [name for name in self.unused if not self._in_trunk(name)]
        if others and "ForCausalLM" not in type(self.model).__name__:
            return (
                f"It has the head of another model, {some(others)}. Name a trained classifier; a "
                "critic may have a new head instead (`head: zero` or `normal`)"
            )
        if others:
            return f"It has the head of another model, {some(others)}. {whole}"
        return f"The trunk was saved alone, without its head. {whole}"


def some(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return listed(names[:_SHOWN]) + more

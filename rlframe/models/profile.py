"""How the models of one architecture are run so that their numbers are right; a probe finds it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rlframe.models.cache import Everything, GrowingCache, Memory, OwnCache


@dataclass(frozen=True)
class Profile:
    """How next tokens and log-probabilities are computed. The default is right for most architectures.

    `build.probe.profile_of` chooses, and refuses an architecture for which nothing is right.
    """

    cache: Literal["growing", "own", "none"] = "growing"
    """rlframe's cache, the architecture's own, or none: everything is read again for each token."""
    padded: bool = True
    """Prompts of different lengths are read together, padded on the left; else only equal lengths."""
    drops: bool = True
    """Responses that have ended leave the batch; else they are carried along."""
    whole: bool = False
    """The head cannot be used apart from the trunk, so logits of all positions exist at once."""
    packs: bool = True
    """Positions that start again at 0 separate the texts of one row."""

    def memory(self, model: Any, *, capacity: int) -> Memory:
        """An empty memory.

        Args:
          model: a transformers `...ForCausalLM`.
          capacity: tokens of prompt and response together.
        """
        if self.cache == "growing":
            return GrowingCache(capacity)
        if self.cache == "none":
            return Everything()
        return OwnCache(model, model if self.whole else model.base_model, drops=self.drops)

    @property
    def sentence(self) -> str | None:
        """What a user should know about its speed and memory; None if there is nothing."""
        slow = {
            "none": "every token is sampled by reading the whole text again, which takes long for "
            "long responses, since this architecture has no cache that gives the right numbers",
            "own": "sampled with the architecture's own cache",
        }
        said = [slow[self.cache]] if self.cache in slow else []
        if not self.padded:
            said.append("only prompts of the same number of tokens are sampled together")
        if self.whole:
            said.append("the logits of all positions of a micro-batch are in memory at once")
        return "; ".join(said) or None

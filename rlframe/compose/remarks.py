"""What is said once before the first stage: nothing is wrong, but somebody might expect otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from transformers import AutoConfig

from rlframe.compose.project import Project
from rlframe.compose.sampling import sampling_remark
from rlframe.recipe.conflicts import DROPOUT, ROUTER
from rlframe.recipe.schema import NewModel
from rlframe.stage_table import running


def remarks(project: Project) -> Iterator[str]:
    """One line each.

    Args:
      project: checked.
    """
    shape = _shape(project)
    yield from _router(shape)
    if project.recipe.ppo is not None:
        sampling = sampling_remark(project)
        if sampling is not None:
            yield sampling
        yield from _dropout(project, shape)
        yield from _heldout(project)


def _shape(project: Project) -> dict[str, Any]:
    """The policy's config, as transformers reads it."""
    policy = project.recipe.model.policy
    if isinstance(policy, NewModel):
        given = {key: value for key, value in policy.architecture.items() if key != "model_type"}
        config = AutoConfig.for_model(str(policy.architecture.get("model_type")), **given)
    else:
        config = project.models.pretrained("model.policy", policy).config
    found: dict[str, Any] = config.get_text_config().to_dict()
    return found


def _router(shape: dict[str, Any]) -> Iterator[str]:
    weights = {key: shape[key] for key in ROUTER[1:] if shape.get(key)}
    if weights:
        yield (
            f"the policy is a mixture of experts, and the loss that balances its router "
            f"({_told(weights)} in its config) is part of no stage: rlframe computes its own "
            f"losses from the policy's logits"
        )


def _dropout(project: Project, shape: dict[str, Any]) -> Iterator[str]:
    rates = {
        key: value
        for key, value in shape.items()
        if DROPOUT.search(key) and isinstance(value, int | float) and value > 0
    }
    if rates:
        stages = [stage.name for stage in running(project.recipe) if stage.result is not None]
        where = f"acts in {' and '.join(stages)} alone" if stages else "does not act"
        yield (
            f"the policy's dropout ({_told(rates)}) {where}: PPO computes without it, or the ratio "
            f"of new to old policy would be random"
        )


def _heldout(project: Project) -> Iterator[str]:
    wanted, name = project.recipe.evaluation.prompts, project.recipe.prompts
    assert name is not None
    _, heldout = project.prompts
    if len(heldout) < wanted:
        yield (
            f"evaluation.prompts is {wanted}, but {len(heldout)} prompts are held out: all of them "
            f"are used. More are held out with data.{name.data}.heldout"
        )
    texts = Counter(prompt.text for prompt in heldout[:wanted])
    repeated = sum(count - 1 for count in texts.values())
    if repeated:
        text, count = texts.most_common(1)[0]
        yield (
            f"{repeated} of the {texts.total()} held-out prompts repeat the text of another, which "
            f"then weighs more in every evaluation: {text[:80]!r} occurs {count} times"
        )


def _told(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in values.items())

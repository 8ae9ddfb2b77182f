"""`rlframe plugins check NAME`."""

from __future__ import annotations

import copy
import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlframe.cli import completion
from rlframe.cli.options import AllowLocalCode
from rlframe.errors import PluginError, RecipeError, did_you_mean
from rlframe.registry.discovery import KINDS, Registry
from rlframe.registry.local import is_local
from rlframe.registry.offers import Offer
from rlframe.text import cell, console, say, table

if TYPE_CHECKING:
    from rlframe.api.component import Component
    from rlframe.testing.check import Result

KIND_WORDS = {
    "reward": "reward_providers",
    "kl": "kl_controllers",
    "loss": "auxiliary_losses",
    "transform": "reward_transforms",
    "advantage": "advantage_estimators",
    "policy_loss": "policy_losses",
    "value_loss": "value_losses",
    "sampler": "samplers",
    "generator": "data_generators",
    "hook": "hooks",
}
"""What people call a kind on the command line -> its name in the registry."""


ComponentName = Annotated[
    str,
    typer.Argument(
        help="What a recipe writes in `type:`: NAME, DISTRIBUTION/NAME or ./file.py:Class. A name "
        f"of several kinds is written as KIND:NAME; KIND is one of {', '.join(KIND_WORDS)}.",
        autocompletion=completion.components,
    ),
]


def check_plugin(
    name: ComponentName,
    config: Annotated[
        list[str] | None,
        typer.Option(help="A key of its config, as in target_tokens=20. May be repeated."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Leave out a check, as in fixed_point='it has none'. May be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    allow_local_code: AllowLocalCode = False,
) -> None:
    """See whether a component keeps the contract of its kind: the checks of its author's tests."""
    registry = Registry(local_code=allow_local_code)
    kind, offer = find(registry, name)
    component = registry.load(kind, name if is_local(name) else offer.qualified)
    # Imported here: `--help` and `plugins list` answer without torch.
    from rlframe.testing.checks import CHECKS
    from rlframe.testing.run import check_component
    from rlframe.testing.subject import Subject

    if kind not in CHECKS:
        raise PluginError(f"{offer} is a {KINDS[kind][1]}, for which the kit has no checks")
    with redirect_stdout(sys.stderr):  # what a component prints must not stand in the JSON
        try:
            subject = Subject(component, _keys(component, config or []))
            results = check_component(subject, skip=_reasons(skip or []))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--skip") from error
    _print_json(offer, subject.options, results) if as_json else _print_table(offer, results)
    raise typer.Exit(1 if any(result.outcome == "failed" for result in results) else 0)


def find(registry: Registry, name: str) -> tuple[str, Offer]:
    """The one component that a name means, whatever its kind.

    Raises:
      PluginError: there is none, or one of several kinds each.
    """
    if is_local(name):
        kind = registry.kind_in_file(name)
        return kind, registry.find(kind, name)
    word, colon, bare = name.rpartition(":")
    if colon:
        kind = KIND_WORDS.get(word, word)
        if kind not in KINDS:
            raise PluginError(
                f"there is no kind {word!r}.{did_you_mean(word, KIND_WORDS)} "
                f"Kinds: {', '.join(KIND_WORDS)}"
            )
        return kind, registry.find(kind, bare)
    known = [offer for kind in KINDS for offer in registry.offers(kind)]
    named = {offer.kind for offer in known if bare in (offer.name, offer.qualified)}
    if not named and "/" in bare:  # perhaps its distribution is spelt another way
        named = {kind for kind in KINDS if _offered(registry, kind, bare)}
    if not named:
        spellings = [offer.qualified if "/" in bare else offer.name for offer in known]
        raise PluginError(
            f"there is no component called {bare!r}.{did_you_mean(bare, spellings)} "
            "See `rlframe plugins list` for what is installed in this environment"
        )
    if len(named) > 1:
        short = {kind: word for word, kind in KIND_WORDS.items()}
        words = [f"{short.get(kind, kind)}:{bare}" for kind in KINDS if kind in named]
        raise PluginError(f"{bare!r} is of several kinds; write one of: {', '.join(words)}")
    (kind,) = named
    return kind, registry.find(kind, bare)


def _offered(registry: Registry, kind: str, name: str) -> bool:
    try:
        registry.find(kind, name)
    except PluginError:
        return False
    return True


def _keys(component: type[Component[Any]], given: list[str]) -> dict[str, Any]:
    """The component's example with `key.path=value` laid over it, as over a recipe."""
    from rlframe.recipe.compose import override
    from rlframe.recipe.document import Document
    from rlframe.testing.examples import example_config

    document = Document(copy.deepcopy(dict(example_config(component))))
    for text in given:
        try:
            override(document, text, f"--config {text!r}")
        except RecipeError as error:
            raise RecipeError(f"--config {text!r}: {error}") from error
    return document.data


def _reasons(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    return {name: reason for name, _, reason in pairs}


def _print_json(offer: Offer, config: dict[str, Any], results: list[Result]) -> None:
    report = {
        "component": offer.qualified,
        "kind": offer.kind,
        "version": offer.version,
        "config": config,
        "passed": all(result.outcome != "failed" for result in results),
        "checks": [vars(result) for result in results],
    }
    say(json.dumps(report, default=str))


def _print_table(offer: Offer, results: list[Result]) -> None:
    columns, title = ("check", "outcome", "what there is to say"), f"{KINDS[offer.kind][1]} {offer}"
    shown = table(*columns, title=title, whole=columns[:2])
    colours = {"ok": "green", "failed": "red", "skipped": "yellow"}
    for result in results:
        outcome = cell(result.outcome, style=colours[result.outcome])
        # The first line of a failure names the component and the check, which stand beside it.
        message = (
            result.message.partition("\n")[2] if result.outcome == "failed" else result.message
        )
        shown.add_row(cell(result.check), outcome, cell(message))
    console(width=140).print(shown)
    counts = {outcome: sum(r.outcome == outcome for r in results) for outcome in colours}
    say(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))

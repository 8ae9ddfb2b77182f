"""A file of another program as a recipe and a report. Which program it is, its content says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlframe.convert import llamafactory, openrlhf, trl
from rlframe.convert.option import (
    ABSENT,
    NOT_LITERAL,
    Given,
    NoCounterpartError,
    Option,
    Row,
    Settings,
    Written,
)
from rlframe.convert.source import Source
from rlframe.convert.writing import (
    default_of,
    nested,
    recipe_text,
    refusals,
    same,
    without_defaults,
)
from rlframe.errors import RecipeError, did_you_mean
from rlframe.registry.discovery import Registry

SOURCES: Mapping[str, Source] = {
    source.name: source for source in (trl.SOURCE, openrlhf.SOURCE, llamafactory.SOURCE)
}
"""The programs whose files can be converted, by the name that `--from` takes."""


@dataclass
class Conversion:
    """A recipe, and what became of every option of the file that it was made from."""

    source: Source
    text: str
    """The recipe."""
    rows: list[Row]
    """One for each option of the file, in its order."""
    assumed: list[Row]
    """The defaults of the program that the recipe has to spell out."""
    facts: dict[str, str]
    """Keys that no option decides -> why they are so."""
    missing: dict[str, str]
    """Keys that have to be filled in -> what to write there."""
    refused: list[str] = field(default_factory=list)
    """What rlframe would say of the recipe as it is."""

    @property
    def unknown(self) -> list[Row]:
        """The options that were not understood."""
        return [row for row in self.rows if row.outcome == "unknown"]


def convert_file(
    text: str, name: str, *, program: str | None = None, processes: int = 1
) -> Conversion:
    """Convert the text of a file.

    Args:
      text: of the file.
      name: of the file, for messages.
      program: a name of SOURCES; found out if left out.
      processes: how many processes the run had; a command line that says so takes precedence.

    Raises:
      RecipeError: the file is not of that program, or a value in it cannot be read.
    """
    source = SOURCES[program] if program else recognised(text, name)
    try:
        written = [_without_secret(option) for option in source.read(text)]
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from error
    table = source.table(written)
    defaults = {key: option.default for key, option in table.items()}
    counted = [str(option.value) for option in written if option.name in source.processes]
    if counted and counted[-1].isdigit():
        processes = int(counted[-1])
    given = Given(written, defaults, processes=max(processes, 1))
    try:
        return _converted(source, table, given, written)
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from error


_SECRETS = (
    "use_wandb",
    "hf_hub_token",
    "ms_hub_token",
    "om_hub_token",
    "hub_token",
    "swanlab_api_key",
)
"""Options that hold a key or token, which no recipe or report may show."""


def _without_secret(option: Written) -> Written:
    if option.name in _SECRETS and isinstance(option.value, str):
        return replace(option, text=option.text.replace(option.value, "***"))
    return option


def recognised(text: str, name: str) -> Source:
    """The program that a file is written for.

    Raises:
      RecipeError: it is of none of them.
    """
    if not text.strip():
        raise RecipeError(f"{name} is empty: there is nothing to convert")
    for source in SOURCES.values():
        if source.recognises(text):
            return source
    kinds = "; ".join(source.kind for source in SOURCES.values())
    raise RecipeError(
        f"{name} is not recognised. What can be converted: {kinds}. If it is one of these, say which "
        f"with --from {'|'.join(SOURCES)}"
    )


def _converted(
    source: Source, table: Mapping[str, Option], given: Given, written: Sequence[Written]
) -> Conversion:
    settings, registry = Settings(), Registry()
    facts = source.facts(given)
    for key, (value, _) in facts.items():
        settings.set(key, value, "")
    outcomes = {
        name: _outcome(option, name, given, settings, _origin(source, given, name))
        for name, option in table.items()
        if name in given or option.default is not ABSENT
    }
    missing = {}
    for key, (value, advice) in source.required(given).items():
        if not _is_set(key, settings):
            settings.set(key, value, "")
            missing[key] = advice
    tree = nested(settings.values)
    rows = [_row(option, table, given, outcomes, tree, registry) for option in written]
    assumed = []
    for name, keys in outcomes.items():
        if name not in given.written and not isinstance(keys, str):
            option = Written(name, given[name], 0, f"{name}={given[name]}")
            row = _message(option, table[name], keys, tree, registry)
            assumed += [row] if row.outcome == "converted" else []
    kept = without_defaults(settings.values, registry)
    comments = {key: ", ".join(origins) for key, origins in settings.origins.items()}
    comments |= {key: f"fill in: {advice}" for key, advice in missing.items()}
    comments |= {key: why for key, (_, why) in facts.items() if not comments.get(key)}
    text = recipe_text(kept, comments, _head(source, rows))
    reasons = {key: why for key, (_, why) in facts.items() if why and key in kept}
    return Conversion(source, text, rows, assumed, reasons, missing, refusals(text))


def _is_set(key: str, settings: Settings) -> bool:
    """Whether the recipe has a key, or, of a data set, any data set."""
    data = key.startswith("data.")
    return any(k == key or (data and k.endswith((".path", ".hub.id"))) for k in settings.values)


def _origin(source: Source, given: Given, name: str) -> str:
    if name in given:
        return given.written[name].text
    return f"{name} {given[name]}, {source.title}'s default"


def _outcome(
    option: Option, name: str, given: Given, settings: Settings, origin: str
) -> dict[str, Any] | str:
    """The keys that an option sets, or why it sets none."""
    try:
        value = given[name] if option.value is None else option.value(given)
    except NoCounterpartError as error:
        return str(error)
    except (TypeError, ValueError, OverflowError) as error:  # of a value that is no number or list
        written = given.written.get(name)
        place = f"line {written.line}: {written.text}" if written else name
        raise RecipeError(
            f"{place}: this value means nothing here. Correct it in the file"
        ) from error
    if value is ABSENT or not option.to:
        return {}
    several = isinstance(value, dict) and all("." in key for key in value)
    keys = value if several else {option.to[0]: value}
    for key, inner in keys.items():
        settings.set(key, inner, origin)
    return dict(keys)


def _row(
    option: Written,
    table: Mapping[str, Option],
    given: Given,
    outcomes: Mapping[str, dict[str, Any] | str],
    tree: Mapping[str, Any],
    registry: Registry,
) -> Row:
    rule = table.get(option.name)
    if rule is None:
        known = [*table, *given.written]
        guess = did_you_mean(option.name, [k for k in known if k != option.name])
        return Row(option, "unknown", f"there is no such option.{guess}")
    last = given.written[option.name]
    if last is not option:
        return Row(option, "none", f"line {last.line} gives it again, and the last one counts")
    if option.value is NOT_LITERAL:
        if not rule.to:
            return Row(option, "none", rule.remark)
        return Row(
            option,
            "unknown",
            "the file computes this value, and nothing of it is run. Write the value in its place, or "
            f"set {' or '.join(rule.to)} in the recipe",
        )
    return _message(option, rule, outcomes[option.name], tree, registry)


def _message(
    option: Written,
    rule: Option,
    outcome: dict[str, Any] | str,
    tree: Mapping[str, Any],
    registry: Registry,
) -> Row:
    if isinstance(outcome, str):
        return Row(option, "none", outcome)
    if not outcome and rule.value is None:
        return Row(option, "none", rule.remark)
    if not outcome:
        return Row(option, "default", "rlframe does the same by default")
    news = [
        key for key, value in outcome.items() if not same(value, default_of(key, tree, registry))
    ]
    shown = ", ".join(f"{key}: {_shown(outcome[key])}" for key in news or outcome)
    message = f"{shown}{f'; {rule.remark}' if rule.remark else ''}"
    return Row(option, "converted" if news else "default", message)


def _shown(value: Any) -> str:
    """A value as a recipe has it, in a few words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _head(source: Source, rows: Sequence[Row]) -> list[str]:
    lost = [row for row in rows if row.outcome == "unknown"]
    head = [
        f"Converted from {source.title} by `rlframe convert`; what each key comes from is behind it."
    ]
    head += ["Check it with `rlframe validate`; docs/coming-from.md says what differs."]
    if lost:
        head += ["", "Not understood, and left out:"]
        head += [f"  line {row.option.line}: {row.option.text}" for row in lost]
    return [*head, ""] if lost else head

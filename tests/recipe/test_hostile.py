"""Recipes that nobody writes, and that must not keep a command: each is answered within two seconds.

Time is that of the processor, so that a busy machine does not matter.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from rlframe.errors import RlframeError, did_you_mean
from rlframe.recipe import load_recipe
from rlframe.recipe.schema import Recipe
from rlframe.registry.discovery import KINDS, Registry

SECONDS = 2.0
PLAIN = "version: 1\n"


def bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merges(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    for n in range(1, levels):
        lines.append(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: [*a{n - 1}, *a{n - 1}]}}")
    return "\n".join(lines)


def references(levels: int, *, text: bool) -> str:
    lines = ["x0: [a, b, c, d]" if not text else "x0: abcdefghij"]
    for n in range(1, levels):
        one = f"${{ref:x{n - 1}}}"
        lines.append(
            f"x{n}: '{one * 10}'" if text else f"x{n}: ['{one}', '{one}', '{one}', '{one}']"
        )
    return "\n".join(lines)


def keys(count: int, value: str = "1", indent: str = "") -> str:
    return "".join(f"{indent}key_number_{n}: {value}\n" for n in range(count))


TEXTS = {
    "90,000 unknown keys": keys(90_000),
    "unknown keys up to the limit": keys(1_400),
    "unknown keys in a section": "ppo:\n" + keys(1_400, indent=" "),
    "rewards that nobody offers": "rewards:\n" + keys(1_000, "{type: lenght}", " "),
    "losses whose data is not there": "losses:\n" + keys(350, "{type: ptx, data: d, gamma: 1}", " "),
    "data sets whose files are not there": "data:\n" + keys(1_000, "{path: no.jsonl}", " "),
    "10 MB of a comment": f"# {'x' * 10_000_000}\n",
    "10 MB of a list": f"requires: [{'a, ' * 3_000_000}]\n",
    "a list up to the limit": f"requires: [{'a, ' * 80_000}]\n",
    "a long key": f"{'k' * 200_000}: 1\n",
    "a long word in place of a number": f"seed: {'x' * 200_000}\n",
    "a long requirement": f"requires: ['{'a' * 200_000}']\n",
    "brackets in brackets": f"x: {'[' * 100_000}{']' * 100_000}\n",
    "braces in braces": f"x: {'{a: ' * 20_000}{'}' * 20_000}\n",
    "indentation without end": "".join(f"{' ' * n}a:\n" for n in range(600)),
    "an alias bomb": bomb(12, 9),
    "a bomb of merge keys": merges(25),
    "references to references": references(16, text=False),
    "references to references, as text": references(10, text=True),
    "a number of 4,000 digits": f"seed: {'9' * 4_000}\n",
    "a number of 100,000 digits": f"seed: {'9' * 100_000}\n",
}  # fmt: skip


def answered(path: Path, *overrides: str) -> str:
    begun = time.process_time()
    with pytest.raises(RlframeError) as error:
        load_recipe(path, overrides)
    assert time.process_time() - begun < SECONDS
    return str(error.value)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_hostile_file_is_answered_within_two_seconds(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(PLAIN + text)
    assert len(answered(path)) < 100_000


def test_a_file_without_an_end_is_answered() -> None:
    assert "a recipe has at most 256 KiB" in answered(Path("/dev/zero"))


def test_files_that_extend_two_others_each_are_counted(tmp_path: Path) -> None:
    (tmp_path / "0.yaml").write_text(PLAIN)
    for n in range(1, 30):
        (tmp_path / f"{n}.yaml").write_text(f"extends: [{n - 1}.yaml, {n - 1}.yaml]\n")
    assert "extends at most 100 files" in answered(tmp_path / "29.yaml")


def test_a_guess_about_a_very_long_word_is_not_made() -> None:
    begun = time.process_time()
    assert did_you_mean("x" * 1_000_000, ["x" * 999_999, "short"]) == ""
    assert time.process_time() - begun < 0.1


def test_of_many_mistakes_a_hundred_are_told(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(PLAIN + keys(500))
    message = answered(path).split("\n")
    assert len(message) == 101
    assert message[-1].startswith("and 10")  # of those that were looked at


# Numbers


def numeric(model: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the keys of a model that take a number."""
    for name, field in model.model_fields.items():
        parts = str(field.annotation)
        inner = _models(field.annotation)
        if not inner and ("int" in parts or "float" in parts):
            yield (*before, name)
        for part in inner:
            yield from numeric(part, (*before, name))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models(part)]


HOSTILE = (
    "1e23",
    "9223372036854775808",
    "1e308",
    "-1e308",
    f"1{'0' * 400}",
    "-9223372036854775809",
)


@pytest.mark.parametrize("path", sorted(set(numeric(Recipe))), ids=".".join)
def test_no_integer_of_a_recipe_is_beyond_64_bits(path: tuple[str, ...]) -> None:
    *_, key = path
    owner = next(m for m in _all_models(Recipe, path[:-1]) if key in m.model_fields)
    kind = str(owner.model_fields[key].annotation)
    if "float" in kind or "int" not in kind:
        return
    for text in HOSTILE:
        value = float(text) if "e" in text else int(text)
        with pytest.raises(ValidationError) as error:
            owner.model_validate({key: value})
        assert any(found["loc"][:1] == (key,) for found in error.value.errors()), text


def _all_models(model: type[BaseModel], path: tuple[str, ...]) -> list[type[BaseModel]]:
    found = [model]
    for key in path:
        found = [
            inner
            for here in found
            if key in here.model_fields
            for inner in _models(here.model_fields[key].annotation)
        ]
    return found


@pytest.mark.parametrize(
    "override",
    [
        "rollout.prompts_per_update=1e23",
        "rollout.prompts_per_update=2000000000",
        "rollout.samples_per_prompt=2000000000",
        "rollout.max_new_tokens=1000000000",
        "rollout.generation_batch=1000000000000",
        "prompts.first_words=1000000000",
        "ppo.epochs=1e9",
        "ppo.minibatches=1000000000",
        "evaluation.prompts=1e18",
        "runtime.threads=1000000",
        "data.reviews.generator.rows=1000000000000",
        "model.policy.tokenizer.vocab_size=1000000000",
        "model.lora={rank: 1000000000}",
        "sft={data: reviews, epochs: 1e23}",
        "sft={data: reviews, batch_size: 1000000000}",
        "rewards.short.time_limit_seconds=1e300",
        "losses={ptx: {type: ptx, data: reviews, gamma: 1, examples_per_step: 1000000000}}",
        "ppo.updates=1e300",
        "seed=1e23",
    ],
)
def test_a_number_that_would_fill_the_memory_is_refused(tiny_recipe: Any, override: str) -> None:
    message = answered(tiny_recipe(), override)
    assert "input should be less than" in message or "should be a valid integer" in message


def test_integers_of_plugins_have_64_bits_too() -> None:
    registry = Registry()
    offers = itertools.chain.from_iterable(registry.offers(kind) for kind in KINDS)
    for offer in (offer for offer in offers if offer.distribution == "rlframe"):
        config = registry.load(offer.kind, offer.name).Config
        for name, field in config.model_fields.items():
            if field.annotation is int:
                whole: Any = TypeAdapter(config)
                with pytest.raises(ValidationError) as error:
                    whole.validate_python({name: 2**63})
                assert any(found["loc"] == (name,) for found in error.value.errors())

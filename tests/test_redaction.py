"""No value of the environment, and no credentials of a URL, in anything that is written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe
from rlframe.recipe.compose import compose
from rlframe.redaction import conceal, digest_of_secret, lacks_credentials, redacted

SECRET = "sk-Zx9/ü'\"quoted-0123456789"
WORD = "hunter2x"
TOKEN = "ghp_q8w7e6r5t4"

PLUGIN = """
from pydantic import SecretStr
from rlframe.api import PluginConfig, RewardProvider


class JudgeConfig(PluginConfig):
    api_key: SecretStr
    header: str
    url: str
    strict: bool = False
    fail: bool = False


class Judge(RewardProvider[JudgeConfig]):
    def score(self, batch):
        assert self.config.api_key.get_secret_value() in self.config.header
        assert "q8w7e6r5t4" in self.config.url
        if self.config.fail:
            raise ValueError(f"401 Unauthorized: {self.config.header} at {self.config.url}")
        return [float(len(text)) for text in batch.response_texts]
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "https://user:tok@host/x?a=1&api_key=abc&k=2#f",
            "https://***@host/x?a=1&api_key=***&k=2#f",
        ),
        ("https://user:p@ss@host/", "https://***@host/"),
        ("git+ssh://token@host/repo", "git+ssh://***@host/repo"),
        ("redis://:pw@host:1/0", "redis://***@host:1/0"),
        ("http://h/?hf_token=abc then", "http://h/?hf_token=*** then"),
        ("http://h/?Signature=a%2Fb&x=1", "http://h/?Signature=***&x=1"),
        ("https://${env:T}@h/?key=${env:K}", "https://${env:T}@h/?key=${env:K}"),
        ("https://host/a@b?monkey=1&keyboard=2", "https://host/a@b?monkey=1&keyboard=2"),
        ("mail a@b.c: key=1", "mail a@b.c: key=1"),
    ],
)
def test_credentials_of_a_url_are_taken_out_and_nothing_else(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert lacks_credentials(shown) == ("***" in shown)
    assert not lacks_credentials(text)


def test_a_value_is_replaced_in_every_form_in_which_it_is_quoted() -> None:
    conceal(SECRET, "${env:KEY}")
    for form in (SECRET, json.dumps(SECRET), repr(SECRET), f"<{SECRET}>"):
        assert "0123456789" not in redacted(form)
        assert "${env:KEY}" in redacted(form)


@pytest.mark.parametrize("value", ["cuda", "123456789", "1e-5", os.getcwd()])
def test_short_words_numbers_and_paths_stay_in_text(value: str) -> None:
    conceal(value, "${env:X}")
    assert redacted(f"it is {value}.") == f"it is {value}."


def test_equal_secrets_have_equal_hashes_which_cost_time() -> None:
    assert digest_of_secret("a") == digest_of_secret("a") != digest_of_secret("b")


def recipe_with(tiny_recipe: Callable[..., Path], folder: Path, **more: object) -> Path:
    (folder / "judge.py").write_text(PLUGIN)
    return tiny_recipe(
        rewards={
            "judge": {
                "type": f"{folder}/judge.py:Judge",
                "api_key": "${env:RLFRAME_KEY}",
                "header": "Bearer ${ref:rewards.judge.api_key}",
                "url": f"https://user:{TOKEN}@localhost/?token=${{env:RLFRAME_WORD}}",
                **more,
            }
        },
        seed="${env:RLFRAME_SEED}",
    )


def rlframe(*words: object, cwd: Path, **variables: str) -> str:
    environment = {**os.environ, **variables}
    command = [sys.executable, "-m", "rlframe", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


def leaks(text: str) -> list[str]:
    return [s for s in (SECRET, "0123456789", WORD, TOKEN, "q8w7e6r5t4", "8675309") if s in text]


def test_no_secret_reaches_a_run_directory_or_the_terminal(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Planted as a value, inside text, through a reference, in a URL and in its query."""
    given = {"RLFRAME_KEY": SECRET, "RLFRAME_WORD": WORD, "RLFRAME_SEED": "8675309"}
    recipe = recipe_with(tiny_recipe, tmp_path)
    local, run = "--allow-local-code", tmp_path / "run"
    url = f"rewards.judge.url=https://u:{TOKEN}@localhost/?api_key={WORD}"
    said = rlframe("train", recipe, url, local, "--output", run, cwd=tmp_path, **given)
    assert said.startswith("0\n"), said
    assert not leaks(said)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert not leaks(path.read_bytes().decode(errors="replace")), path
    resolved = (run / "recipe.resolved.yaml").read_text()
    for kept in (
        "api_key: ${env:RLFRAME_KEY}",
        "Bearer ${env:RLFRAME_KEY}",
        "https://***@localhost",
    ):
        assert kept in resolved
    for command in (
        ("show", recipe),
        ("show", recipe, "--resolved", local),
        ("show", recipe, "--provenance", url),
        ("show", recipe, "--json"),
        ("validate", recipe, local, "seed=x"),
        ("validate", recipe, local, "rewards.judge.strict=${env:RLFRAME_KEY}"),
        ("validate", recipe, local, "prompts.data=${env:RLFRAME_WORD}"),
        ("train", recipe, local, "rewards.judge.fail=true", "--output", tmp_path / "failed"),
    ):
        assert not leaks(rlframe(*command, cwd=tmp_path, **given)), command
    manifest = json.loads((tmp_path / "failed" / "manifest.json").read_text())
    assert (
        "401 Unauthorized: Bearer ${env:RLFRAME_KEY} at https://***@localhost" in manifest["error"]
    )
    for path in (tmp_path / "failed").rglob("*.*"):
        assert not leaks(path.read_bytes().decode(errors="replace")), path


def test_the_digest_covers_the_value_and_not_the_name_of_its_variable(
    tiny_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for name, value in (("A", "first one"), ("B", "first one"), ("B", "second one")):
        monkeypatch.setenv(name, value)
        path = tiny_recipe(prompts={"data": "reviews", "first_words": 4}, requires=[])
        overrides = [f"model.reference='${{env:{name}}}'"]
        loaded = load_recipe(path, overrides)
        assert loaded.resolved()["model"]["reference"] == f"${{env:{name}}}"
        digests.append(loaded.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_resolved_recipe_says_the_same_again(
    tiny_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A literal `${`, which the resolved recipe has to escape, and a reference to a variable."""
    monkeypatch.setenv("RLFRAME_NAME", "some/model")
    words = [
        "model.reference='a$${b}'",
        "reward_model=null",
        "model.pad_token='${env:RLFRAME_NAME}'",
    ]
    loaded = load_recipe(tiny_recipe(), words)
    assert loaded.recipe.model.reference == "a${b}"
    again = tmp_path / "again.yaml"
    again.write_text(json.dumps(loaded.resolved()))
    assert load_recipe(again).recipe.model == loaded.recipe.model
    assert load_recipe(again).digest == loaded.digest


def test_a_url_that_has_lost_its_credentials_is_not_used(tiny_recipe: Callable[..., Path]) -> None:
    with pytest.raises(
        RecipeError, match=r"model.reference: the credentials of this URL were not kept"
    ):
        load_recipe(tiny_recipe(), ["model.reference='https://***@host/x'"])


def test_a_secret_field_takes_no_literal(
    tiny_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlframe.registry.discovery import Registry

    monkeypatch.setenv("RLFRAME_KEY", SECRET)
    monkeypatch.setenv("RLFRAME_WORD", WORD)
    monkeypatch.setenv("RLFRAME_SEED", "7")
    recipe = recipe_with(tiny_recipe, tmp_path)
    registry = Registry(local_code=True)
    load_recipe(recipe, registry=registry)
    with pytest.raises(
        RecipeError, match=r"rewards.judge.api_key: a secret has no place in a recipe"
    ):
        load_recipe(recipe, ["rewards.judge.api_key=abc"], registry=registry)


def test_references_between_keys_carry_what_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLFRAME_KEY", SECRET)
    path = tmp_path / "r.yaml"
    path.write_text(
        "a: {k: 'x ${env:RLFRAME_KEY} $${y}', l: ['${env:RLFRAME_KEY}']}\n"
        "b: ${ref:a}\nc: 'and ${ref:b.k}'\nn: 3\nd: ${ref:n}\n"
    )
    document = compose(path)
    document.check()
    assert document.data["b"] == {"k": f"x {SECRET} ${{y}}", "l": [SECRET]}
    assert document.data["c"] == f"and x {SECRET} ${{y}}"
    shown = document.shown(document.data)
    assert shown["b"] == {"k": "x ${env:RLFRAME_KEY} $${y}", "l": ["${env:RLFRAME_KEY}"]}
    assert shown["c"] == "and x ${env:RLFRAME_KEY} $${y}"
    assert shown["d"] == 3
    path.write_text(json.dumps(shown))
    assert compose(path).data == document.data

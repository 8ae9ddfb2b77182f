"""`rlframe plugins show NAME`: what one wants to know before naming a component in a recipe."""

import json

import pytest

from rlframe.api.component import API_VERSION
from rlframe.builtin.kl import Adaptive
from rlframe.registry.discovery import KINDS, Registry

LOCAL = '''
from typing import Literal
from pydantic import Field
from rlframe.api import PluginConfig, RewardProvider


class Config(PluginConfig):
    words: list[str] = Field(min_length=1, description="what is [bold]liked[/bold] \\x1b[31m")
    share: float | None = Field(0.5, ge=0, lt=1)
    mode: Literal["any", "all"] = "any"


class Liked(RewardProvider[Config]):
    """Counts words."""

    def score(self, batch):
        return [0.0] * len(batch)


class Plain(RewardProvider):
    def score(self, batch):
        return [0.0] * len(batch)
'''


def shown(rlframe, *arguments):
    ended = rlframe("plugins", "show", *arguments, "--json")
    assert (ended.code, ended.err) == (0, "")
    return json.loads(ended.out)


def test_a_component_is_shown_with_its_origin_its_words_and_its_keys(rlframe):
    found = shown(rlframe, "adaptive")
    assert (found["kind"], found["distribution"], found["api"]) == (
        "kl_controllers",
        "rlframe",
        list(API_VERSION),
    )
    assert found["file"].endswith("builtin/kl.py")
    assert found["documentation"].startswith("Steer beta")
    assert {key["name"] for key in found["keys"]} == set(Adaptive.Config.model_fields)
    keys = {key["name"]: key for key in found["keys"]}
    assert keys["target"]["required"]
    assert keys["horizon"] == {
        "name": "horizon",
        "type": "integer above 0",
        "required": False,
        "default": 10000,
        "description": "responses; shorter reacts faster",
    }


@pytest.mark.parametrize(
    "name",
    [f"{kind}:{o.qualified}" for kind in KINDS for o in Registry().offers(kind) if not o.blocked],
)
def test_everything_installed_can_be_shown(rlframe, name):
    ended = rlframe("plugins", "show", name)
    assert (ended.code, ended.err) == (0, ""), ended.err
    for key in shown(rlframe, name)["keys"]:
        assert key["name"] in ended.out


def test_a_local_file_is_shown_and_its_text_is_no_markup(rlframe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(LOCAL)
    assert rlframe("plugins", "show", "./mine.py:Liked").code == 4
    ended = rlframe("plugins", "show", "./mine.py:Liked", "--allow-local-code")
    assert ended.code == 0
    assert "what is [bold]liked[/bold] \\u001b[31m" in " ".join(ended.out.split())
    assert "Beside these, any reward takes" in ended.out
    types = {
        k["name"]: k["type"]
        for k in shown(rlframe, "./mine.py:Liked", "--allow-local-code")["keys"]
    }
    assert types == {
        "words": "list of text",
        "share": "number at least 0, below 1 or null",
        "mode": '"any" or "all"',
    }
    plain = rlframe("plugins", "show", "./mine.py:Plain", "--allow-local-code")
    assert "It has no keys of its own." in plain.out


def test_a_name_that_nothing_has_is_answered_with_a_guess(rlframe):
    ended = rlframe("plugins", "show", "lenght")
    assert (ended.code, ended.out) == (4, "")
    assert "Did you mean 'length'?" in ended.err

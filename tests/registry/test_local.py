"""A component in a file of the user's own: found, allowed, hashed, and what is wrong with it said."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest

from rlframe.errors import PluginError
from rlframe.registry.discovery import Registry

SOURCE = """
from rlframe.api import PluginConfig, RewardProvider

class Shout(RewardProvider[PluginConfig]):
    def score(self, batch):
        return [float(text.isupper()) for text in batch.response_texts]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    return tmp_path


def refused(name: str, *, kind: str = "reward_providers", local_code: bool = True) -> str:
    with pytest.raises(PluginError) as caught:
        Registry(local_code=local_code).load(kind, name)
    return str(caught.value)


@pytest.mark.parametrize("form", ["./mine.py:Shout", "{folder}/mine.py:Shout"])
def test_a_file_is_loaded_with_its_hash(folder: Path, form: str) -> None:
    registry = Registry(local_code=True)
    name = form.format(folder=folder)
    component = registry.load("reward_providers", name)
    assert component.__name__ == "Shout"
    offer = registry.find("reward_providers", name)
    assert offer.distribution == "local file"
    assert offer.version == hashlib.sha256(SOURCE.encode()).hexdigest()[:12]
    assert pickle.loads(pickle.dumps(component)) is component


def test_code_in_a_file_needs_leave() -> None:
    assert "add --allow-local-code" in refused("./mine.py:Shout", local_code=False)


def test_what_is_wrong_with_a_file_is_said(folder: Path) -> None:
    assert "it defines: shout" in refused("./mine.py:Shoot").lower()
    assert "Did you mean 'Shout'?" in refused("./mine.py:Shoot")
    assert "write ./file.py:Name" in refused("./mine.py")
    assert "cannot be read" in refused("./other.py:Shout")
    assert "not a subclass of KLController" in refused("./mine.py:Shout", kind="kl_controllers")
    (folder / "broken.py").write_text("import a_module_that_is_not_there\n")
    message = refused("./broken.py:X")
    assert "ModuleNotFoundError: No module named 'a_module_that_is_not_there'" in message
    assert "broken.py:1]" in message
    (folder / "torn.py").write_text("\ndef (\n")
    assert "torn.py:2]" in refused("./torn.py:X")


def test_a_changed_file_is_another_module(folder: Path) -> None:
    first = Registry(local_code=True).load("reward_providers", "./mine.py:Shout")
    (folder / "mine.py").write_text(SOURCE + "\n# changed\n")
    second = Registry(local_code=True).load("reward_providers", "./mine.py:Shout")
    assert first is not second


def test_a_plugin_written_for_an_earlier_rlframe_is_told_the_new_name(folder: Path) -> None:
    (folder / "older.py").write_text("from rlframe.hooks import RewardProvider\n")
    assert "`rlframe.hooks` is now `rlframe.api`" in refused("./older.py:Mine")

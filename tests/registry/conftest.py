import importlib
import sys

import pytest

from tests.cli.broken import distribution


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution for the length of a test; see `distribution` for what it can be told."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)

    def installed(name, **what):
        file = distribution(site, name, **what)
        importlib.invalidate_caches()
        return file

    yield installed
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(site)):
            del sys.modules[name]
    importlib.invalidate_caches()

"""One shortened run of the pipeline on real text, where the data is at hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "pros_cons.jsonl"


@pytest.mark.skipif(not DATA.is_file(), reason="the data is not part of the repository")
def test_each_stage_learns_on_real_reviews() -> None:
    """The bounds of the full benchmark are in tests/benchmarks/pros_cons.py; this is a tenth of it."""
    path = ROOT / "tests" / "benchmarks" / "pros_cons.py"
    spec = importlib.util.spec_from_file_location("pros_cons", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = benchmark.run(0, DATA, short=True)
    assert found["sft/perplexity"] < 60
    assert found["reward_model/accuracy"] > 0.85
    assert found["ppo/vader_first"] < 0.3
    assert found["ppo/vader_last"] > found["ppo/vader_first"] + 0.15
    assert 0 < found["ppo/kl_last"] < 12
    assert found["ppo/distinct_last"] > 0.9

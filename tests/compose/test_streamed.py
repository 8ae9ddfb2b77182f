"""A run whose auxiliary loss streams its data, with the code of docs/plugins.md, is resumed exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlframe.compose import run_recipe
from rlframe.engine.stream_reader import TRIED
from rlframe.errors import PluginError, RecipeError, RunError
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from rlframe.runs.resuming import Allowance
from rlframe.runs.trees import load_tree
from tests.compose.test_resume import Ends
from tests.compose.test_run import Notes, lasting

ROOT = Path(__file__).parents[2]
ROWS, PER_STEP, UPDATES = 11, 3, 5

DATASET = """

class Streamed(PTXFromFile):
    examples_per_step = 3

    def examples(self):
        from datasets import load_dataset

        dataset = load_dataset("json", data_files=self.config.file, split="train", streaming=True)
        return Rows(dataset, self.context.tokenize)
"""
FILE = """

class Streamed(PTXFromFile):
    examples_per_step = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with texts; a pass ends in the middle of a step."""
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"lens {n} is {'very ' * (n % 4)}good, the zip {n * n}"} for n in range(ROWS)]
    write(texts)


def write(rows: list[Any]) -> None:
    Path("texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def guide() -> str:
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs/plugins.md").read_text(), re.DOTALL)
    return "".join(text for text in found if "class Lines" in text or "class Rows" in text)


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Callable[..., Path]:
    """A recipe with the loss `Streamed` of a source in its file."""

    def make(source: str = FILE) -> Path:
        Path("mine.py").write_text(guide() + source)
        return tiny_recipe(
            losses={"mine": {"type": "./mine.py:Streamed", "file": "texts.jsonl", "gamma": 0.5}},
            ppo={"updates": UPDATES, "epochs": 1, "learning_rate": 1e-3, "minibatches": 2},
            checkpoints={"every": 2},
        )

    return make


def registry() -> Registry:
    return Registry(local_code=True)


def train(recipe: Path, directory: str, *overrides: str, display: Any = None) -> Path:
    loaded = load_recipe(recipe, overrides, registry=registry())
    run_recipe(loaded, Path(directory), display or Notes(), registry=registry())
    return Path(directory)


def resume(directory: Path, display: Any = None) -> None:
    allowance = Allowance()
    loaded = load_recipe(allowance.begun(directory), [], registry=registry())
    run_recipe(loaded, directory, display or Notes(), registry=registry(), resume=allowance)


def results(directory: Path) -> tuple[Any, ...]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    weights = [
        (directory / "ppo" / m / "model.safetensors").read_bytes() for m in ("policy", "critic")
    ]
    return weights, lasting(rows)


def stream_in(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = load_tree(checkpoint / "state")["kept"]["updater"]["streams"]["mine"]
    return state


@pytest.mark.parametrize("source", [FILE, DATASET], ids=["a file", "an IterableDataset"])
def test_it_is_resumed_bit_for_bit_wherever_it_was_ended(
    recipe: Callable[..., Path], source: str
) -> None:
    """After a checkpoint, before one is written, and where a pass ends amid a step."""
    calm = train(recipe(source), "calm")
    with pytest.raises(KeyboardInterrupt):
        train(recipe(source), "ended", display=Ends("ppo", 3))
    state = stream_in(Path("ended/checkpoints/ppo/000002"))
    read = 2 * 2 * PER_STEP  # two updates of two steps
    assert (state["passes"], state["number"]) == divmod(read, ROWS)
    for step in (4, 5):
        with pytest.raises(KeyboardInterrupt):
            resume(Path("ended"), display=Ends("ppo", step))
    resume(Path("ended"))
    assert results(Path("ended")) == results(calm)
    last = stream_in(calm / "ppo")
    assert last["passes"] * ROWS + last["number"] == UPDATES * 2 * PER_STEP


def test_what_was_read_shows_in_the_weights(recipe: Callable[..., Path]) -> None:
    """Else resuming could lose the cursor and nobody would see it."""
    first = train(recipe(), "first")
    rows = [json.loads(line) for line in Path("texts.jsonl").read_text().splitlines()]
    write([*rows[:-1], {"text": "another text, which is read once"}])
    assert results(train(recipe(), "second"))[0] != results(first)[0]


@pytest.mark.parametrize("tried", [TRIED, (0, 1)], ids=["at the beginning", "amid the run"])
def test_a_line_that_is_none_is_told_with_loss_number_and_place(
    recipe: Callable[..., Path], tried: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlframe.compose.components.TRIED", tried)
    rows = Path("texts.jsonl").read_text().splitlines()
    Path("texts.jsonl").write_text("\n".join([*rows[:7], "{", *rows[8:]]) + "\n")
    line = guide().splitlines().index("                yield self.tokenize(json.loads(line))") + 1
    message = (
        r"auxiliary loss 'mine' of type \./mine\.py:Streamed .*: its stream, at number 7 of pass 1, "
        rf"raised JSONDecodeError in `__iter__`: .*mine\.py:{line}\]"
    )
    kind = PluginError if tried == TRIED else RunError
    with pytest.raises(kind, match=message) as caught:
        train(recipe(), "run")
    assert type(caught.value) is kind


def test_an_empty_file_is_a_mistake_of_the_recipe(recipe: Callable[..., Path]) -> None:
    write([])
    with pytest.raises(RecipeError, match=r"losses\.mine: the loss .* has no examples to train on"):
        train(recipe(), "run")


def test_a_buffer_whose_content_no_state_has_is_refused(recipe: Callable[..., Path]) -> None:
    shuffled = DATASET.replace("Rows(dataset,", "Rows(dataset.shuffle(seed=0, buffer_size=6),")
    with pytest.raises(PluginError, match=r"losses\.mine: .*not resumed where it was"):
        train(recipe(shuffled), "run")

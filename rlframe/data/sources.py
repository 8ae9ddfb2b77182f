"""Rows of files, folders and the hub, all of them mapped into memory instead of read into it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlframe.data.arrow import ArrowRows, file_rows
from rlframe.data.files import data_file, located
from rlframe.data.rows import Joined, Lazy
from rlframe.errors import RecipeError, RlframeError, did_you_mean, listed
from rlframe.types import Row


def read_rows(path: str | Path | Sequence[str], *, split: str | None = None) -> Lazy[Row]:
    """The rows of files and folders, one after the other.

    Args:
      path: a name or a pattern, or several. A folder is one that `Dataset.save_to_disk` wrote, or is
        laid out as a data set of the hub is.
      split: of the folders: its name; `train`, or the only one, if left out.

    Raises:
      RecipeError: something cannot be read; names the file and the line.
      SetupError: the cache cannot be written.
    """
    places = located(path)
    if split is not None and not any(place.is_dir() for place in places):
        raise RecipeError(
            f"split: only a folder has splits, and {listed(map(str, places))} is none"
        )
    return joined(rows for place in places for rows in _rows_at(place, split))


def joined(parts: Iterable[Lazy[Row]]) -> Lazy[Row]:
    """Sequences of rows, one after the other."""
    found = list(parts)
    return found[0] if len(found) == 1 else Joined(found)


def _rows_at(place: Path, split: str | None) -> Iterator[Lazy[Row]]:
    if not place.is_dir():
        yield file_rows(data_file(place))
    elif (place / "dataset_dict.json").exists() or (place / "state.json").exists():
        yield _saved(place, split)
    else:
        splits = _splits_of(place)
        for name in splits[_chosen(split, splits, place)]:
            yield file_rows(data_file(Path(name)))


def _saved(folder: Path, split: str | None) -> ArrowRows:
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` has written."""
    import datasets

    with _loading(f"{folder}: the saved data set"):
        found = datasets.load_from_disk(str(folder))
    if isinstance(found, datasets.DatasetDict):
        found = found[_chosen(split, found, folder)]
    elif split is not None:
        raise RecipeError(f"split: {folder} holds one data set without splits; leave `split` out")
    return ArrowRows(found, str(folder))


def _splits_of(folder: Path) -> dict[str, list[str]]:
    """Split -> its files, by the rules of the hub: names of files and folders, or the README's."""
    import datasets

    with _loading(f"{folder}: the folder"):
        found = datasets.load_dataset_builder(str(folder.resolve())).config.data_files
    return {str(name): list(files) for name, files in (found or {}).items()}


def _chosen(split: str | None, splits: Iterable[str], folder: Path) -> str:
    known = list(map(str, splits))
    wanted = split or (known[0] if len(known) == 1 else "train")
    if wanted in known:
        return wanted
    asked = f"no split {split!r}.{did_you_mean(split, known)}" if split else "no split 'train'."
    raise RecipeError(f"split: {folder} has {asked} It has {listed(known)}")


def hub_rows(name: str, *, config: str | None, split: str, revision: str | None) -> Lazy[Row]:
    """The rows of a data set of the Hugging Face hub, or of its cache on this machine.

    Raises:
      RecipeError: it cannot be loaded; carries the library's own words.
    """
    import datasets

    with _loading(f"hub data set {name!r}"):
        found: Any = datasets.load_dataset(name, config, split=split, revision=revision)
    return ArrowRows(found, name)


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Load with the library: without its progress bars, and with its errors as one of ours."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logger = logging.getLogger("huggingface_hub")  # it warns of a README that is no data set's card
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except RlframeError:
        raise
    except Exception as error:  # the library raises a dozen unrelated classes
        raise RecipeError(f"{what} cannot be loaded: {error}") from error
    finally:
        logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()

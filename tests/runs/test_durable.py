"""What keeps files whole, and what is said where a disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rlframe.runs.directory import installed_version
from rlframe.runs.durable import disk_is_full, files_below, make_directory, size_of


def raised_from(error: Exception, cause: BaseException | None) -> Exception:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "no room"), True),
        (OSError(errno.EDQUOT, "no room"), True),
        (OSError(errno.EACCES, "not allowed"), False),
        (ValueError("28"), False),
        (RuntimeError(f"torch: {os.strerror(errno.ENOSPC)} (28)"), True),  # as libraries say it
        (RuntimeError("torch: something else"), False),
        (raised_from(RuntimeError("saving"), OSError(errno.ENOSPC, "no room")), True),
        (raised_from(RuntimeError("saving"), OSError(errno.EIO, "broken")), False),
        (None, False),
    ],
    ids=repr,
)
def test_a_full_disk_is_known_by_its_number_or_in_words(
    error: BaseException | None, full: bool
) -> None:
    assert disk_is_full(error) == full


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "2 KiB"),
        (1024**2 - 1024, "1023 KiB"),
        (12 * 1024**2, "12 MiB"),
        (1.5 * 1024**3, "1.5 GiB"),
        (2048 * 1024**3, "2048.0 GiB"),
    ],
)
def test_a_size_is_told_in_the_unit_in_which_it_reads_best(count: float, message: str) -> None:
    assert size_of(count) == message


def test_files_are_found_at_every_depth(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")  # which is there
    for name in ("top", "a/one", "a/b/two"):
        (tmp_path / name).write_text("")
    found = {path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path)}
    assert found == {"top", "a/one", "a/b/two"}


def test_a_distribution_that_is_not_installed_has_no_version() -> None:
    assert installed_version("a-distribution-that-nobody-wrote") is None
    assert installed_version("torch") is not None

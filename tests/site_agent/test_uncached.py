"""Files written past the page cache hold what was written, whatever its size."""

import os
from pathlib import Path

import numpy as np
import pytest

from site_agent.uncached import UncachedFile


@pytest.mark.parametrize("sizes", [(), (1,), (4096, 4096), (5, 4 * 2**20, 3), (9 * 2**20 + 1,)])
def test_a_file_holds_the_bytes_it_was_given_and_no_more(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    generator = np.random.default_rng(0)
    parts = [generator.integers(0, 256, size).astype(np.uint8) for size in sizes]
    with UncachedFile(tmp_path / "file") as file:
        for part in parts:
            file.write(part.data)
    assert (tmp_path / "file").read_bytes() == b"".join(part.tobytes() for part in parts)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileExistsError):
        UncachedFile(tmp_path / "file")


def test_a_file_system_that_cannot_write_past_the_cache_is_written_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("site_agent.uncached.os.O_DIRECT", os.O_DIRECTORY, raising=False)  # refused
    with UncachedFile(tmp_path / "file") as file:
        file.write(memoryview(b"content"))
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_disk_that_fails_is_told_and_nothing_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _content: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("site_agent.uncached.os.write", full)
    with (
        pytest.raises(OSError, match="No space left"),
        UncachedFile(tmp_path / "file") as file,
    ):
        file.write(memoryview(bytes(9 * 2**20)))

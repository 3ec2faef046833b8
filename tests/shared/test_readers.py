from pathlib import Path

import pytest

from shared import readers


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(readers.ReaderError, match="no such folder"):
        readers.read_images(tmp_path / "none", size_px=8, low_hu=-1000, high_hu=1000)


def test_without_a_reader_the_extra_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "entry_points", lambda **_: [])
    with pytest.raises(readers.ReaderError, match=r"fedstill\[train\]"):
        readers.read_images(tmp_path, size_px=8, low_hu=-1000, high_hu=1000)

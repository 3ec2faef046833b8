from pathlib import Path

import pytest

from shared import readers


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(readers.ReaderError, match="is not a folder"):
        readers.read_images(tmp_path / "none", size_px=8, low=-1000, high=1000, modality="CT")


def test_without_a_reader_the_extra_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "entry_points", lambda **_: [])
    with pytest.raises(readers.ReaderError, match=r"fedstill\[train\]"):
        readers.read_images(tmp_path, size_px=8, low=-1000, high=1000, modality="CT")


def test_what_a_reader_says_of_a_folder_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Point:
        def load(self) -> object:
            def read(folder: Path, **_: float) -> list[object]:
                raise ValueError(f"{folder}: nothing but localisers")

            return read

    monkeypatch.setattr(readers, "entry_points", lambda **_: [Point()])
    with pytest.raises(readers.ReaderError, match="nothing but localisers") as caught:
        readers.read_images(tmp_path, size_px=8, low=-1000, high=1000, modality="CT")
    assert str(caught.value).count(str(tmp_path)) == 1

import hashlib
import threading
from pathlib import Path

import pytest

from aggregator import store
from aggregator.store import BlobStore


def test_a_blob_is_named_by_its_content(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    name = blobs.put(b"content")
    assert name == hashlib.sha256(b"content").hexdigest()
    assert blobs.path(name).read_bytes() == b"content"
    assert blobs.has(name)
    assert not blobs.has("0" * 64)


def test_a_second_put_writes_nothing(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    before = blobs.path(blobs.put(b"content")).stat()
    after = blobs.path(blobs.put(b"content")).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_failed_put_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        BlobStore(tmp_path).put(b"content")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_many_writers_of_one_blob(tmp_path: Path) -> None:
    content = b"x" * 100_000
    threads = [threading.Thread(target=lambda: BlobStore(tmp_path).put(content)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in files] == [content]


def test_chunks_are_bounded() -> None:
    assert 2**10 <= store.CHUNK_BYTES <= 2**22

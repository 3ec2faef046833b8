import hashlib
import threading
from pathlib import Path

import pytest

from aggregator import store
from aggregator.store import BlobStore, StoreError


def test_a_blob_is_named_by_its_content(storage: Path | str) -> None:
    blobs = BlobStore(storage)
    assert not blobs.has(hashlib.sha256(b"content").hexdigest())
    for content in (b"content", b"", bytes(range(256)) * 4000):
        name = blobs.put(content)
        assert name == hashlib.sha256(content).hexdigest()
        assert blobs.has(name)
        assert b"".join(blobs.read(name)) == content
        assert b"".join(BlobStore(storage).read(name)) == content
    assert not blobs.has("0" * 64)


def test_a_folder_says_where_a_blob_lies(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path))
    name = blobs.put(b"content")
    assert blobs.path(name) == tmp_path / name[:2] / name
    assert (tmp_path / name[:2] / name).read_bytes() == b"content"


def test_a_bucket_has_no_path(bucket: str) -> None:
    assert BlobStore(bucket).path("0" * 64) is None


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (5, 5), (299_990, 300_000), (1, 290_001), (7, None)]
)
def test_a_part_is_read(storage: Path | str, start: int, end: int | None) -> None:
    blobs, content = BlobStore(storage), bytes(range(250)) * 1200
    name = blobs.put(content)
    chunks = list(blobs.read(name, start=start, end=end))
    assert b"".join(chunks) == content[start:end]
    assert all(len(chunk) <= store.CHUNK_BYTES for chunk in chunks)


def test_more_than_a_block_is_read_in_order(
    storage: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK_BYTES", 1000)
    blobs, content = BlobStore(storage), b"".join(b"%06d" % n for n in range(1000))
    assert b"".join(blobs.read(blobs.put(content), start=3)) == content[3:]


def test_what_is_missing_is_said_before_the_first_byte(storage: Path | str) -> None:
    blobs = BlobStore(storage)
    with pytest.raises(StoreError, match="missing"):
        blobs.read("0" * 64)
    name = blobs.put(b"content")
    with pytest.raises(StoreError, match="shorter"):
        list(blobs.read(name, end=8))


def test_a_second_put_writes_nothing(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    path = tmp_path / blobs.put(b"content")[:2] / blobs.put(b"content")
    before = path.stat()
    blobs.put(b"content")
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_blob_that_rotted_is_written_again(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    name = blobs.put(b"content")
    path = tmp_path / name[:2] / name
    path.write_bytes(b"contemt")
    assert blobs.put(b"content") == name
    assert path.read_bytes() == b"content"


def test_what_was_written_is_read_back(
    storage: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = BlobStore(storage)
    monkeypatch.setattr(store, "write_durably", lambda path, content: _write(path, b"other"))
    put = blobs._filesystem.pipe_file
    monkeypatch.setattr(blobs._filesystem, "pipe_file", lambda key, _: put(key, b"other"))
    with pytest.raises(StoreError, match="other bytes"):
        blobs.put(b"content")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


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


def test_a_reader_that_goes_away_leaves_no_open_file(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    chunks = blobs.read(blobs.put(b"content"))
    del chunks  # an open file would warn, and a warning fails


def test_chunks_are_bounded() -> None:
    assert 2**10 <= store.CHUNK_BYTES <= 2**22


def test_a_storage_that_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises(StoreError, match=r"s3://none/a: a blob or the bucket is missing"):
        BlobStore("s3://none/a").put(b"content")
    with pytest.raises(StoreError, match=r"zz://a.*fedstill\[s3\]"):
        BlobStore("zz://a")

import pytest

from shared import durable
from site_agent.outbox import Outbox

DIGEST = "ab" * 32


def test_what_is_stored_is_found_again(tmp_path):
    outbox = Outbox(tmp_path / "outbox")
    assert outbox.stored(contract_digest=DIGEST, round=1) is None
    assert outbox.answered() == 0
    outbox.store(b"answer", contract_digest=DIGEST, round=1)
    again = Outbox(tmp_path / "outbox")
    assert again.stored(contract_digest=DIGEST, round=1) == b"answer"
    assert again.stored(contract_digest=DIGEST, round=2) is None
    assert again.stored(contract_digest="cd" * 32, round=1) is None
    assert again.answered() == 1
    assert again.stored(contract_digest=DIGEST, round=1, attempt=2) is None
    again.store(b"later", contract_digest=DIGEST, round=1, attempt=2)
    assert again.stored(contract_digest=DIGEST, round=1, attempt=2) == b"later"
    assert again.stored(contract_digest=DIGEST, round=1) == b"answer"
    assert again.answered() == 2


def test_nobody_else_may_read_it(tmp_path):
    Outbox(tmp_path / "outbox").store(b"answer", contract_digest=DIGEST, round=1)
    for path in (tmp_path / "outbox").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_disk_that_fails_leaves_no_answer(tmp_path, monkeypatch):
    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    outbox = Outbox(tmp_path)
    monkeypatch.setattr(durable.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        outbox.store(b"answer", contract_digest=DIGEST, round=1)
    monkeypatch.undo()
    assert outbox.stored(contract_digest=DIGEST, round=1) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

import os

import numpy as np
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


def test_answers_are_counted_from_a_moment_on(tmp_path):
    outbox = Outbox(tmp_path)
    for round in (1, 2):
        outbox.store(b"answer", contract_digest=DIGEST, round=round)
        os.utime(next(tmp_path.glob(f"*/{round:05d}.*")), (100.0 * round, 100.0 * round))
    assert [outbox.answered(since=moment) for moment in (0, 100, 101, 201)] == [2, 2, 1, 0]


def test_the_last_weights_are_those_of_a_descent_that_was_answered(tmp_path):
    outbox, other = Outbox(tmp_path), "cd" * 32
    weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert outbox.last_weights(contract_digest=DIGEST, before=9) is None
    for round in (1, 2, 3):
        outbox.keep_weights(weights[round - 1], contract_digest=DIGEST, round=round)
    # Round 2 in its second attempt; round 3 was never answered.
    outbox.store(b"answer", contract_digest=DIGEST, round=1)
    outbox.store(b"answer", contract_digest=DIGEST, round=2, attempt=2)
    round, kept = Outbox(tmp_path).last_weights(contract_digest=DIGEST, before=9)
    assert round == 2
    np.testing.assert_array_equal(kept, weights[1])
    assert outbox.last_weights(contract_digest=DIGEST, before=2)[0] == 1
    assert outbox.last_weights(contract_digest=DIGEST, before=1) is None
    assert outbox.last_weights(contract_digest=other, before=9) is None
    assert outbox.answered() == 2

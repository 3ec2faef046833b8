import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from shared import durable
from site_agent import audit as audit_module
from site_agent.audit import GENESIS, AuditError, AuditLog

LINES = 12


@pytest.fixture
def log(tmp_path):
    made = AuditLog(tmp_path / "audit")
    for number in range(LINES):
        made.append("answered", round=number + 1, contract="ab" * 32, norm=0.5 + number)
    return made


def test_a_log_is_a_chain_that_verifies_and_holds_all_its_heads(tmp_path):
    log = AuditLog(tmp_path / "audit")
    assert log.verify().head == GENESIS
    heads = [log.append("started", version="1"), log.append("refused", code="policy")]
    verdict = AuditLog(tmp_path / "audit").verify()
    assert (verdict.lines, verdict.head, verdict.faults) == (2, heads[1], ())
    assert [not log.verify(head).faults for head in (*heads, "ab" * 32, GENESIS)] == [
        *(True, True),
        *(False, False),
    ]
    lines = list(log.lines())
    assert [(line.sequence, line.event) for line in lines] == [(1, "started"), (2, "refused")]
    assert lines[1].fields == {"code": "policy"}


def test_nobody_else_may_read_it(log):
    assert log.folder.stat().st_mode & 0o777 == 0o700
    for path in log.folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_equal_lines_have_other_hashes_each_time(tmp_path):
    first, second = (AuditLog(tmp_path / name).append("stopped") for name in "ab")
    assert first != second


def mutations(lines, chance):
    """One damage of each kind, at places that ``chance`` draws; what is left of the lines."""
    at = chance.randrange(len(lines))
    other = chance.choice([n for n in range(len(lines)) if n != at])
    line = bytearray(lines[at])
    line[chance.randrange(len(line))] ^= 1 << chance.randrange(8)
    yield "flipped", [*lines[:at], bytes(line), *lines[at + 1 :]]
    yield "dropped", [*lines[:at], *lines[at + 1 :]]
    swapped = list(lines)
    swapped[at], swapped[other] = swapped[other], swapped[at]
    yield "reordered", swapped
    yield "truncated", lines[:at]
    yield "doubled", [*lines[: at + 1], *lines[at:]]
    said = json.loads(lines[at])
    said["fields"]["round"] = 99
    rewritten = json.dumps(said, separators=(",", ":"), sort_keys=True).encode()
    yield "rewritten", [*lines[:at], rewritten, *lines[at + 1 :]]


def test_any_damage_is_found_and_none_where_there_is_none(log):
    chance, content = random.Random(0), log.path.read_bytes()
    lines = content.split(b"\n")[:-1]
    tried = 0
    for _ in range(200):
        for kind, left in mutations(lines, chance):
            log.path.write_bytes(b"".join(line + b"\n" for line in left))
            assert log.verify().faults, kind
            tried += 1
        cut = chance.randrange(len(content))
        log.path.write_bytes(content[:cut])
        assert log.verify().faults, f"cut at {cut}"
        # Positive control: what was written verifies, as often as it is written again.
        log.path.write_bytes(content)
        assert not log.verify().faults
    assert tried == 1200


def test_a_whole_shorter_log_is_found_by_a_head_kept_elsewhere(log):
    told = log.verify().head
    shorter = AuditLog(log.folder.with_name("other"))
    for number in range(LINES - 1):
        shorter.append("answered", round=number + 1)
    assert not shorter.verify().faults, "by itself it is a sound log"
    assert "not the one it was of" in shorter.verify(told).faults[0]


@pytest.mark.parametrize("kept", [None, b"{}", b'{"sequence":3,"head":"' + b"0" * 64 + b'"}'])
def test_a_lost_or_changed_head_is_found_and_stops_what_comes_next(log, kept):
    log.head_path.unlink() if kept is None else log.head_path.write_bytes(kept)
    assert log.verify().faults
    with pytest.raises(AuditError, match=r"head\.json"):
        log.append("answered")


def test_a_log_that_was_cut_or_removed_is_not_gone_on_with(log):
    content = log.path.read_bytes()
    for left in (content[: content.rindex(b"\n", 0, -1) + 1], b"", content[:-1]):
        log.path.write_bytes(left)
        with pytest.raises(AuditError, match="site-agent audit verify"):
            log.append("answered")
        assert log.path.read_bytes() == left, "nothing is mended that is evidence"


def test_a_torn_last_line_costs_nothing_that_was_acknowledged(log):
    head, content = log.verify().head, log.path.read_bytes()
    whole = content.split(b"\n")[-2]
    for torn in (whole[:1], whole[:-1], whole, b"x" * 10_000):
        log.path.write_bytes(content + torn)
        verdict = log.verify(head)
        assert (verdict.faults, verdict.torn_bytes) == ((), len(torn))
        log.append("stopped")
        verdict = log.verify(head)
        assert (verdict.faults, verdict.torn_bytes, verdict.lines) == ((), 0, LINES + 1)
        log.path.write_bytes(content)
        kept = {"sequence": LINES, "head": head}
        log.head_path.write_text(json.dumps(kept))


@pytest.mark.parametrize("so_far", [0, 1, 3])
def test_a_crash_between_line_and_head_is_gone_on_from(tmp_path, monkeypatch, so_far):
    log = AuditLog(tmp_path)
    for _ in range(so_far):
        log.append("stopped")

    def crash(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit_module, "write_durably", crash)
    with pytest.raises(OSError, match="No space"):
        log.append("answered")
    monkeypatch.undo()
    assert not log.verify().faults
    log.append("repeated")
    verdict = log.verify()
    assert (verdict.lines, verdict.faults) == (so_far + 2, ())


def test_a_line_is_acknowledged_only_once_it_is_on_the_disk(tmp_path, monkeypatch):
    log, synced = AuditLog(tmp_path), []
    real = os.fsync
    monkeypatch.setattr(audit_module.os, "fsync", lambda fd: synced.append(fd) or real(fd))
    log.append("started")
    assert len(synced) >= 3  # the line; the head and its folder

    def fail(_descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        log.append("stopped")


@pytest.mark.slow
def test_whatever_was_acknowledged_survives_being_killed_at_any_instant(tmp_path):
    program = (
        "import sys; from pathlib import Path; from site_agent.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "while True: print(log.append('answered', round=1), flush=True)"
    )
    chance, told = random.Random(0), []
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "audit")], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        told.append(writer.stdout.readline().decode().strip())
        time.sleep(chance.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        *whole, _torn = writer.stdout.read().decode().split("\n")
        told += whole
        writer.wait()
        writer.stdout.close()
        log = AuditLog(tmp_path / "audit")
        verdict = log.verify(told[-1])
        assert not verdict.faults
        assert verdict.lines >= len(told)
    assert all(not log.verify(head).faults for head in told)

import errno
import os
import subprocess
import sys
import threading

import pytest

from site_agent.importer.spool import BadUidError, FullError, Spool, SpoolError, TooLargeError


def put(spool, uid, content=b"content"):
    with spool.part() as part:
        part.write(content)
        return part.keep(uid)


def files(spool):
    return sorted(path.name for path in spool.folder.iterdir())


def test_an_object_comes_once_and_its_name_says_nothing(open_spool):
    spool = open_spool()
    assert not spool.holds("1.2.3")
    assert put(spool, "1.2.3", b"first")
    assert spool.holds("1.2.3")
    assert not put(spool, "1.2.3", b"second")
    (name,) = files(spool)
    assert "1.2.3" not in name
    assert (spool.folder / name).read_bytes() == b"first"
    assert open_spool().holds("1.2.3"), "after a restart"


def test_names_depend_on_the_key(tmp_path, open_spool):
    other = Spool(tmp_path / "other", key=b"o" * 32, quota_bytes=10**6, max_object_bytes=10**6)
    put(open_spool(), "1.2.3")
    put(other, "1.2.3")
    assert files(open_spool()) != files(other)


def test_files_are_private(open_spool):
    spool = open_spool()
    put(spool, "1.2.3")
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in spool.folder.iterdir())


def test_the_group_reads_where_it_is_allowed_to_and_never_others(tmp_path):
    limits = {"key": b"k" * 32, "quota_bytes": 10**6, "max_object_bytes": 10**6}
    spool = Spool(tmp_path / "spool", **limits, group_reads=True)
    put(spool, "1.2.3")
    assert spool.folder.stat().st_mode & 0o777 == 0o750
    assert [path.stat().st_mode & 0o777 for path in spool.folder.iterdir()] == [0o640]
    for mode, group_reads in ((0o755, True), (0o770, True), (0o750, False)):
        spool.folder.chmod(mode)
        with pytest.raises(SpoolError, match="chmod 7"):
            Spool(tmp_path / "spool", **limits, group_reads=group_reads)


def test_a_reader_sees_nothing_before_it_is_whole(open_spool):
    spool = open_spool()
    with spool.part() as part:
        part.write(b"half")
        part.flush()
        assert all(name.startswith(".") for name in files(spool))
    assert files(spool) == []


def test_an_object_has_a_bound(open_spool):
    spool = open_spool(max_object_bytes=100)
    assert put(spool, "1.1", b"x" * 100)
    with pytest.raises(TooLargeError):
        put(spool, "1.2", b"x" * 101)
    assert len(files(spool)) == 1


def test_the_spool_has_a_bound_and_what_is_refused_takes_no_room(open_spool):
    spool = open_spool(quota_bytes=250)
    for number in range(10):
        if number < 2:
            assert put(spool, f"1.{number}", b"x" * 100)
        else:
            with pytest.raises(FullError):
                put(spool, f"1.{number}", b"x" * 100)
    assert put(spool, "1.77", b"x" * 50)
    with pytest.raises(FullError):
        put(open_spool(quota_bytes=250), "1.88", b"x")


def test_a_full_disk_is_a_full_spool(open_spool, monkeypatch):
    spool = open_spool()

    def full(_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FullError):
        put(spool, "1.2.3")
    assert files(spool) == []


@pytest.mark.parametrize("uid", ["", "..", "../1.2", "1.2/3", "1" * 65, "1.2\n", "JANE", "١.٢"])
def test_what_is_no_uid_is_refused(open_spool, uid):
    with pytest.raises(BadUidError):
        put(open_spool(), uid)


def test_parts_of_a_killed_process_go_and_those_of_a_living_one_stay(open_spool):
    spool = open_spool()
    script = (
        "import os, sys; from pathlib import Path; from site_agent.importer.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), key=b'k', quota_bytes=10**6, max_object_bytes=10**6)\n"
        "with spool.part() as part:\n"
        "    part.write(b'half'); part.flush(); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(spool.folder)], check=False)
    assert done.returncode == -9
    assert len(files(spool)) == 1, "the kill left its part"
    with spool.part() as part:
        part.write(b"alive")
        open_spool()
        assert files(spool) == [part.path.name]
        assert part.keep("1.2.3")


def test_many_at_once_store_one_object_once(open_spool):
    spool = open_spool()
    threads = [
        threading.Thread(target=put, args=(spool, f"1.{number % 3}", b"x" * 1000))
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files(spool)) == 3


def test_a_folder_that_others_may_read_is_refused(tmp_path, open_spool):
    (tmp_path / "spool").mkdir(mode=0o755)
    with pytest.raises(SpoolError, match="chmod 700"):
        open_spool()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path, open_spool):
    (tmp_path / "spool").write_bytes(b"")
    with pytest.raises(SpoolError, match=r"importer\.spool"):
        open_spool()

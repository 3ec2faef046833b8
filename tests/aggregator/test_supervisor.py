import itertools
import threading
import time
from pathlib import Path

import pytest

from aggregator import supervisor
from aggregator.supervisor import Service, Supervisor
from shared.processes import Process, ProcessError, spawn


def test_a_program_that_ends_is_started_again_even_if_that_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", 0.01)
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.05)
    stop, starts = threading.Event(), 0

    def start() -> list[Process]:
        nonlocal starts
        starts += 1
        if starts == 2:
            raise ProcessError("the port is taken")
        if starts == 3:
            stop.set()
        return [spawn(["false"] if starts == 1 else ["sleep", "60"], log=tmp_path / "program.log")]

    kept = Supervisor([Service("program", start)], log=tmp_path / "up.log")
    kept.begin()
    try:
        kept.watch(stop)
        assert kept.alive() == {"program": True}
        assert kept.restarts == {"program": 1}
        kept.replace("program")
        assert (kept.alive(), starts) == ({"program": True}, 4)
    finally:
        kept.end()
    assert kept.alive() == {"program": False}
    assert "program: the port is taken" in (tmp_path / "up.log").read_text()


def test_one_that_keeps_ending_is_tried_ever_later_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", 0.1)
    monkeypatch.setattr(supervisor, "MAX_RESTART_AFTER_S", 0.4)
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.02)
    began, times, others = time.monotonic(), list[float](), 0

    def ending() -> list[Process]:
        times.append(time.monotonic() - began)
        return [spawn(["false"], log=tmp_path / "ending.log")]

    def steady() -> list[Process]:
        nonlocal others
        others += 1
        return [spawn(["sleep", "0.3" if others == 1 else "60"], log=tmp_path / "steady.log")]

    kept = Supervisor([Service("a", ending), Service("b", steady)], log=tmp_path / "up.log")
    stop, errands = threading.Event(), 0

    def errand() -> None:
        nonlocal errands
        errands += 1
        if len(times) >= 5:
            stop.set()

    kept.begin()
    try:
        kept.watch(stop, errands=[errand])
    finally:
        kept.end()
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(gap >= at_least for gap, at_least in zip(gaps, (0.1, 0.2, 0.4, 0.4), strict=True))
    assert kept.restarts["b"] == 1
    assert errands > 10


def test_programs_of_one_service_end_and_begin_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", 0.01)
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.05)
    stop, starts = threading.Event(), list[list[Process]]()

    def start() -> list[Process]:
        lasts = "0.3" if not starts else "60"
        programs = [["sleep", "60"], ["sleep", lasts]]
        starts.append([spawn(one, log=tmp_path / f"{n}.log") for n, one in enumerate(programs)])
        if len(starts) == 2:
            stop.set()
        return starts[-1]

    kept = Supervisor([Service("pair", start)], log=tmp_path / "up.log")
    kept.begin()
    try:
        kept.watch(stop)
        first, second = starts
        assert [one.poll() is None for one in first] == [False, False], "the steady one too"
        assert [one.poll() for one in second] == [None, None]
    finally:
        kept.end()
    assert all(one.poll() is not None for one in second)

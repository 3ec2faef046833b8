import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from site_agent.monitoring import monitored
from site_agent.preflight import machine
from site_agent.settings import SiteSettings

NewSite = Callable[..., SiteSettings]
GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "used", "free_gib"),
    [("max", 0, 8), (6 * GIB, 2 * GIB, 4), (20 * GIB, 0, 8), (1, 2, 0)],
)
def test_memory_is_what_machine_and_control_group_leave(
    tmp_path: Path, limit: object, used: int, free_gib: int
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    free = machine.available_memory(tmp_path / "meminfo", tmp_path)
    assert free == free_gib * GIB
    assert machine.available_memory(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(
    ("free", "verdict"),
    [(0, "failed"), (2 * GIB, "warning"), (9 * GIB, "good"), (None, "unjudged")],
)
def test_little_memory_is_told(
    monkeypatch: pytest.MonkeyPatch, free: int | None, verdict: str
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: free)
    assert machine.memory().verdict == verdict


@pytest.mark.parametrize(
    ("free", "verdict"), [(0, "failed"), (2 * GIB, "warning"), (9 * GIB, "good")]
)
def test_a_full_disk_is_told(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert machine.disk(new_site(1)).verdict == verdict


def test_no_gpu_is_fine_and_one_that_is_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.gpu().verdict in ("good", "warning")  # a GPU may be there without a driver
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H")
    for free, verdict in ((GIB // 2, "warning"), (8 * GIB, "good")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 9 * GIB))
        assert machine.gpu().verdict == verdict


def test_a_gradient_is_taken_and_what_stops_one_is_told_without_its_text(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_site(1)
    found = machine.gradient(settings)
    assert found.verdict == "good" and " s on " in found.problem

    def fail(**_: object) -> None:
        raise RuntimeError("CANARY^JANE")

    monkeypatch.setattr("shared.gradients.patient_parts", fail)
    found = machine.gradient(settings)
    assert found.verdict == "failed" and "RuntimeError" in found.problem
    assert "CANARY" not in found.problem + found.fix
    monkeypatch.undo()
    monkeypatch.setattr(machine, "SLOW_S", -1)
    assert machine.gradient(settings).verdict == "warning"


def test_without_a_cohort_there_is_no_gradient(new_site: NewSite) -> None:
    assert machine.gradient(new_site(1, patients=0)).verdict == "unjudged"


def test_the_metrics_port_is_free_ours_or_taken(new_site: NewSite) -> None:
    settings = new_site(1)
    assert machine.metrics(settings).verdict == "good"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = int(taken.getsockname()[1])
        settings = settings.model_copy(update={"metrics_port": port})
        found = machine.metrics(settings)
        assert (found.verdict, "metrics_port" in found.fix) == ("failed", True)
    assert "free" in machine.metrics(settings).problem
    with monitored(settings):
        # Another site's, for all that this one's files say.
        assert machine.metrics(settings).verdict == "failed"
        settings.contact_path.parent.mkdir(exist_ok=True)
        settings.contact_path.touch()
        found = machine.metrics(settings)
        assert (found.verdict, "this site's" in found.problem) == ("good", True)

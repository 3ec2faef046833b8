"""The demo's own parts: folder, contract, memory, narration, report, errors."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from deploy.demo.federation import DemoError, Federation, free_ports
from deploy.demo.memory import INTERVAL_S, MemoryWatch, kind_of, sample
from deploy.demo.narration import Narrator
from deploy.demo.play import CONTRACT, LOCK, fresh_folder, write_contract
from deploy.demo.report import build_report, print_report, write_report
from shared.contract import read_contract


def figure(mean: float, std: float) -> dict[str, float]:
    return {"mean": mean, "std": std, "n": 3}


FIGURES = {
    "rows": {
        name: {"psnr": figure(psnr, 0.05), "ssim": figure(psnr / 40, 0.001)}
        for name, psnr in (("input", 28.0), ("prior", 30.0), ("distilled", 31.5), ("full", 32.0))
    },
    "gap_closed": 0.75,
    "gain_over_best_null": 0.5,
    "share_recovered": None,
}
RESULT = {
    "rounds": 6,
    "sites": {"hospital-a": {"releases": 10, "bytes_up": 2**21, "bytes_down": 2**20}},
    "seconds": {"anchor": 12.0},
}
RELEASE = {"name": "demo-ct", "version": 1, "digest": "ab" * 32, "url": "http://x/", "run": "/r"}


def report() -> dict[str, object]:
    return build_report(
        figures=FIGURES,
        result=RESULT,
        release=RELEASE,
        seconds={"images": 1.0, "total": 99.0},
        peak_mib={"worker": 900.0, "total": 3000.0},
        simulated=True,
    )


def test_the_report_has_the_promised_keys(tmp_path: Path) -> None:
    write_report(tmp_path / "report.json", report())
    read = json.loads((tmp_path / "report.json").read_text())
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]
    assert set(read) == {
        *("simulated", "rows", "best_null", "gap_closed", "gain_over_best_null", "gain_interval"),
        *("worth_of_hospital_data", "share_recovered", "share_recovered_interval", "rounds"),
        *("sites", "seconds", "peak_rss_mib", "release", "verified"),
    }
    assert set(read["release"]) == {"name", "version", "digest", "url"}
    assert read["seconds"] == {"images": 1.0, "total": 99.0, "run.anchor": 12.0}
    assert read["rows"]["distilled"]["psnr"] == {"mean": 31.5, "std": 0.05, "n": 3}


def test_where_the_gate_refused_the_report_names_no_release() -> None:
    refused = build_report(
        figures=FIGURES, result=RESULT, release=None, seconds={}, peak_mib={}, simulated=True
    )
    assert refused["release"] is None
    assert refused["verified"] is False


def test_the_table_shows_the_rows_that_are_there() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_report(console, report(), patients="9 simulated patients")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "9 simulated patients" in text
    assert "31.50 ± 0.05" in text
    assert "textured" not in text
    assert "75%" in text
    assert "+0.50 dB" in text
    assert "share_recovered" not in text
    assert "hospital-a: 10 mean gradients left it, 2.0 MiB" in text


def test_a_second_demo_in_the_same_folder_is_told_so(tmp_path: Path) -> None:
    with (
        fresh_folder(tmp_path / "demo"),
        pytest.raises(DemoError, match=rf"a demo is running in .*process {os.getpid()}"),
        fresh_folder(tmp_path / "demo"),
    ):
        pass


def test_the_folder_is_emptied_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.dcm").write_bytes(b"kept")
    with fresh_folder(tmp_path / "demo") as folder:
        (folder / "report.json").write_text("old")
        (folder / "sub").mkdir()
        (folder / "sub" / "link").symlink_to(tmp_path / "images")
        (folder / "link").symlink_to(tmp_path / "images")
    with fresh_folder(tmp_path / "demo") as folder:
        assert [entry.name for entry in folder.iterdir()] == [LOCK]
    assert (tmp_path / "images" / "1.dcm").read_bytes() == b"kept"


def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DemoError, match="not empty and not a demo's"), fresh_folder(tmp_path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_contract_takes_the_public_prior_where_there_is_one(tmp_path: Path) -> None:
    for public, prior in ((False, "phantom"), (True, "both")):
        contract = read_contract(write_contract(CONTRACT, tmp_path, public=public))
        assert contract.prior.kind == prior
        assert contract.name == "demo-ct"


def test_a_contract_that_names_its_prior_keeps_it(tmp_path: Path) -> None:
    source = tmp_path / "own.toml"
    source.write_text('name = "own"\nprior.kind = "phantom"\n[probes]\nrequests = 1\n')
    contract = read_contract(write_contract(source, tmp_path, public=True))
    assert contract.prior.kind == "phantom"
    assert contract.probes.requests == 1


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("python -I -S shared/guardian.py 1 -- python -m site_agent.cli worker", "guardian"),
        ("python -P -m site_agent.cli worker --home x", "worker"),
        ("python -P -m site_agent.node secret", "supernode"),
        ("python -m deploy.demo.evaluation release", "utility"),
        ("python -m deploy.demo --keep", "launcher"),
        (
            "python .venv/bin/flower-superlink --isolation process --superexec-auth-secret-file s",
            "superlink",
        ),
        ("python -P -m aggregator.executor 127.0.0.1:1 ca.crt s", "executor"),
        ("python -P -m aggregator.executor flwr-serverapp --token t", "serverapp"),
        ("python -P -m site_agent.superexec 127.0.0.1:1 s 5", "clientapp"),
        ("python -P -m aggregator.services", "api"),
        ("python .venv/bin/distilled get demo-ct", "cli"),
    ],
)
def test_processes_are_told_apart(command: str, kind: str) -> None:
    assert kind_of(command) == kind


def test_memory_below_a_process_is_counted() -> None:
    hold = "import time; held = b'x' * (64 * 2**20); print('held', flush=True); time.sleep(60)"
    before = sample(os.getpid())["total"]
    with (
        MemoryWatch() as watch,
        subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        grown = sample(os.getpid())["total"] - before
        time.sleep(INTERVAL_S + 1)
        child.kill()
    assert grown > 64
    assert watch.peak_mib["total"] > 64


def test_without_a_terminal_progress_is_lines() -> None:
    console = Console(file=io.StringIO(), width=80)
    narrator = Narrator(console, phases=2)
    with narrator.phase("images", "writing images"):
        narrator.step("patient 1/9 [at work]")
        narrator.step("patient 2/9")
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "[1/2] writing images"
    assert lines[1].endswith("patient 1/9 [at work]")
    assert lines[2].startswith("[1/2] writing images: done in")
    assert set(narrator.seconds) == {"images"}


def test_a_command_that_fails_is_shown_with_its_last_lines(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    script = "import sys; print('no such contract'); sys.exit(3)"
    with pytest.raises(DemoError, match=r"ended with 3\n  no such contract"):
        federation.run({"launch": ["python", "-c", script]}, on_line=lambda _line: None)
    federation.stop()


def test_json_is_found_behind_other_lines(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    command = ["python", "-c", "print('warning'); print('{\"version\": 2}')"]
    assert federation.ask(command, name="ask") == {"version": 2}
    with pytest.raises(DemoError, match="printed no JSON"):
        federation.ask(["python", "-c", "print('nothing')"], name="mute")


def test_ports_are_free_and_different() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5

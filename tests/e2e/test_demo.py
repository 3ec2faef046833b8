"""The demo from end to end, small; stopped by Ctrl-C, killed, and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.guardian import descendants
from shared.processes import remains_of

REPOSITORY = Path(__file__).parents[2]
CONTRACT = """
name = "demo-ct"
images = 8
prior.anatomy = "head"
[task]
size_px = 64
pixel_mm = 5.6
angles = 60
bins = 96
[anchor_network]
depth = 4
width = 16
[probes]
requests = 1
depths = [5]
steps = 4
[anchor]
rounds = 1
local_steps = 150
public_steps = 200
crop_px = 32
"""
"""Phantoms of heads for hospitals of chests: what the hospitals know is worth much, so that a short
evaluation lets the set pass the gate."""
ROWS = {"input", "prior", "prior_textured", "distilled", "full"}


class Demo:
    """A running demo and what it has printed so far."""

    def __init__(self, folder: Path, contract: Path, *more: str, log: str) -> None:
        self.log = folder.with_name(log)
        command = [sys.executable, "-m", "deploy.demo", "--folder", str(folder)]
        command += ["--contract", str(contract), "--steps", "400", "--seeds", "2", *more]
        environment = {name: value for name, value in os.environ.items() if name != "MAKELEVEL"}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**environment, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
            )

    def wait_for(self, text: str, *, within_s: float = 150) -> None:
        deadline = time.monotonic() + within_s
        while text not in self.log.read_text():
            ended = self.process.poll() is not None
            if (ended and text not in self.log.read_text()) or time.monotonic() > deadline:
                pytest.fail(f"never printed {text!r}:\n{self.log.read_text()}")
            time.sleep(0.1)

    def tree(self) -> list[int]:
        return descendants(self.process.pid)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def runs(pid: int) -> bool:
    """Whether a process still runs.

    One that ended and is not yet collected does not: a guardian whose demo was killed is left to
    whoever adopts it, and that is this very process once another test made it a subreaper.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] != "Z"


def left_over(demo: Demo, tree: list[int], *, within_s: float) -> list[int]:
    """What still runs of a demo after a while: by ancestry as it was, and by inheritance."""
    deadline = time.monotonic() + within_s
    while True:
        left = [pid for pid in tree if runs(pid)] + remains_of(demo.process.pid)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_can_be_stopped_killed_and_run_again(tmp_path: Path) -> None:
    contract = tmp_path / "contract.toml"
    contract.write_text(CONTRACT)

    stopped = Demo(tmp_path / "stopped", contract, "--patients", "6", log="1.log")
    killed = stopped
    try:
        stopped.wait_for("the aggregator is up")
        tree = stopped.tree()
        assert len(tree) >= 7
        began = time.monotonic()
        stopped.process.send_signal(signal.SIGINT)
        assert stopped.process.wait(10) == 130
        assert left_over(stopped, tree, within_s=10 - (time.monotonic() - began)) == []
        assert "stopped; no process is left" in stopped.log.read_text()

        data = ("--data", str(tmp_path / "stopped" / "simulated"))
        killed = Demo(tmp_path / "demo", contract, *data, log="2.log")
        killed.wait_for("signed with")  # launched: submitting follows
        second = Demo(tmp_path / "demo", contract, *data, log="3.log")
        assert second.process.wait(20) == 1
        assert "a demo is running in" in second.log.read_text()
        tree = killed.tree()
        assert len(tree) > 15
        killed.kill()
        assert left_over(killed, tree, within_s=10) == []

        whole = killed = Demo(tmp_path / "demo", contract, *data, log="4.log")
        whole.wait_for("report  ", within_s=400)
        assert whole.process.wait(20) == 0
        assert left_over(whole, [], within_s=0) == []
    finally:
        for demo in (stopped, killed):
            if demo.process.poll() is None:
                demo.kill()

    read = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert set(read["rows"]) == ROWS
    for row in read["rows"].values():
        assert set(row) == {"psnr", "ssim"}
        assert set(row["psnr"]) == set(row["ssim"]) == {"mean", "std", "n"}
    assert read["rounds"] == 2
    assert set(read["sites"]) == {"hospital-a", "hospital-b", "hospital-c"}
    assert all(site["releases"] == 2 for site in read["sites"].values())
    assert {"worker", "supernode", "superlink", "api", "serverapp"} <= set(read["peak_rss_mib"])
    assert read["peak_rss_mib"]["total"] < 6 * 1024
    assert read["gain_over_best_null"] > 0
    assert "gate: +" in whole.log.read_text()
    assert read["verified"] is True
    assert read["release"]["name"] == "demo-ct"
    assert len(read["release"]["digest"]) == 64
    assert (tmp_path / "demo" / "release" / "pairs.safetensors").exists()
    assert "Traceback" not in whole.log.read_text()

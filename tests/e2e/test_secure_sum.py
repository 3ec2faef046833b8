"""Hospitals with real workers over Flower: a noised secure sum, one of whose members refuses."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from safetensors import safe_open

from deploy.demo import federation as commands
from deploy.demo.federation import Federation, program
from shared.processes import become_subreaper

HOSPITALS = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
REFUSING = "hospital-d"
CONTRACT = """
name = "summed"
images = 2
granularity = "federation"
student = { depth = 2, width = 4 }
anchor_network = { depth = 2, width = 4 }
probes = { requests = 1, depths = [1, 2], steps = 2, draws = 1 }
task = { size_px = 32, angles = 30, bins = 48 }
[anchor]
rounds = 1
local_steps = 2
batch = 1
crop_px = 16
public_steps = 2
descent = "patient"
[privacy]
directions = 3
sketch = 16
epsilon = 3.0
noise = "distributed"
patients = 5
"""


def write_patients(folder: Path, *, seed: int) -> None:
    random = np.random.default_rng(seed)
    for number in range(5):
        (folder / f"p{number}").mkdir(parents=True)
        voxels = random.integers(-1000, 500, size=(2, 32, 32), dtype=np.int16)
        volume = SimpleITK.GetImageFromArray(voxels)
        volume.SetSpacing((9.0, 9.0, 3.0))
        SimpleITK.WriteImage(volume, str(folder / f"p{number}" / "ct.nii.gz"))


def budget(federation: Federation, site: str) -> dict[str, Any]:
    command = ["site-agent", "budget", "--home", str(federation.site(site))]
    return federation.ask(command, name=f"{site}-budget")


def spent_by(federation: Federation) -> dict[str, float]:
    return {name: budget(federation, name)["epsilon_spent"] for name in HOSPITALS}


def dry_run(federation: Federation, contract: Path) -> dict[str, Any]:
    """What each site says beforehand; the exit code is that of a refusal."""
    home = ["--home", str(federation.aggregator)]
    command = program(["aggregator", "launch", str(contract), "--dry-run", "--json", *home])
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4, done.stderr
    return {one["site"]: one for one in json.loads(done.stdout)["sites"]}


def verified(federation: Federation, site: str) -> bool:
    """Whether the site's audit log is whole, and holds the head that the aggregator was told."""
    (result,) = (federation.aggregator / "runs").glob("*/result.json")
    head = json.loads(result.read_text())["sites"][site]["audit_head"]
    told = [] if site == REFUSING else ["--head", head]
    command = ["site-agent", "audit", "verify", "--home", str(federation.site(site)), *told]
    return bool(federation.ask(command, name=f"{site}-audit")["whole"])


def allow(federation: Federation, site: str) -> None:
    """What a hospital's IT writes into its policy for this study."""
    policy = federation.site(site) / "policy.toml"
    allowed = 1.0 if site == REFUSING else 3.0
    policy.write_text(f"{policy.read_text()}\nmax_epsilon = {allowed}\n")


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_noised_sum_over_flower_goes_on_without_a_member_who_refuses(tmp_path: Path) -> None:
    become_subreaper()
    federation = Federation(tmp_path)
    told: list[str] = []
    images = {name: tmp_path / "images" / name for name in HOSPITALS}
    for seed, folder in enumerate(images.values()):
        write_patients(folder, seed=seed)
    contract = tmp_path / "contract.toml"
    contract.write_text(CONTRACT)
    try:
        commands.enrol(federation, images)
        for name in HOSPITALS:
            allow(federation, name)
        commands.index(federation, HOSPITALS, on_line=told.append)
        commands.start(federation, HOSPITALS, on_ready=told.append)
        asked = dry_run(federation, contract)
        assert spent_by(federation) == dict.fromkeys(HOSPITALS, 0)
        run = commands.distil(federation, contract, None, on_line=told.append)
        spent = spent_by(federation)
        heads = {name: verified(federation, name) for name in HOSPITALS}
    finally:
        federation.stop()
    result = json.loads((run / "result.json").read_text())
    assert result["rounds"] == 2
    assert {site: (said["verdict"], said["code"]) for site, said in asked.items()} == {
        **dict.fromkeys(HOSPITALS, ("accept", None)),
        REFUSING: ("refuse", "policy"),
    }
    # The chain of each site that answered holds the head that the aggregator has of it.
    assert all(heads.values())
    # One descent and gradients at two probes of those who take part.
    releases = {name: site["releases"] for name, site in result["sites"].items()}
    assert releases == {**dict.fromkeys(HOSPITALS, 3), REFUSING: 0}
    assert "the sum of 3 sites banked (hospital-d: refused: policy" in "".join(told)
    assert spent.pop(REFUSING) == 0
    # Of three members one is trusted: each adds all the noise, and pays what the contract says.
    assert list(spent.values()) == pytest.approx([3.0] * 3, rel=1e-3)
    with safe_open(run / "pairs.safetensors", "np") as pairs:
        assert np.isfinite(pairs.get_tensor("hq")).all()
    assert "Traceback" not in "".join(log.read_text() for log in (tmp_path / "logs").iterdir())

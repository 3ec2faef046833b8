import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from aggregator.attack_command import command
from aggregator.attacks import identification, inversion, membership
from aggregator.benchmark_contract import settled
from aggregator.cli import app
from aggregator.privacy_report import Attacks
from aggregator.trials import Trial, distil

TINY = """
name = "tiny"
images = 2
min_patients = 2
[task]
size_px = 32
pixel_mm = 9.0
angles = 30
bins = 48
[student]
depth = 2
width = 4
[anchor_network]
depth = 2
width = 4
[probes]
requests = 1
depths = [3, 6]
steps = 3
draws = 1
clip_norm = 10.0
[anchor]
rounds = 1
local_steps = 3
public_steps = 4
crop_px = 16
"""

if not any(one.name == "attack" for one in app.registered_commands):
    app.command("attack")(command)


def write_hospitals(folder: Path, *, patients: int) -> Path:
    random = np.random.default_rng(0)
    for hospital in "abc":
        for number in range(patients):
            place = folder / f"hospital-{hospital}" / f"p{number}"
            place.mkdir(parents=True)
            voxels = random.integers(-1000, 500, size=(1 + number % 2, 32, 32), dtype=np.int16)
            volume = SimpleITK.GetImageFromArray(voxels)
            volume.SetSpacing((9.0, 9.0, 3.0))
            SimpleITK.WriteImage(volume, str(place / "ct.nii.gz"))
    return folder


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path / "tiny.toml"


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks of a few steps, for the form of what they say alone."""
    effort = inversion.Effort(1, patients=1, sites=1, images=1, control_patients=1, control_steps=1)
    monkeypatch.setattr(inversion, "QUICK", effort)
    monkeypatch.setattr(
        identification, "QUICK", identification.Effort(1, images=1, groups=1, patients=2, linked=2)
    )
    monkeypatch.setattr(
        membership, "QUICK", membership.Effort(summaries=4, descents=2, distillations=2)
    )
    monkeypatch.setattr("aggregator.attacks.shadows.STUDENT_STEPS", 2)

    def here(trials: list[Trial], **_: object) -> None:
        for trial in trials:
            distil(trial)

    monkeypatch.setattr("aggregator.attack_command.distil_all", here)


def attack(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["attack", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.slow
def test_every_kind_prints_its_table_and_writes_what_a_release_takes(
    contract: Path, tmp_path: Path, little: None
) -> None:
    data, file = write_hospitals(tmp_path / "data", patients=9), tmp_path / "attacks.json"
    kinds = ("membership", "copying", "inversion", "identification")
    given = ("--data", data, "--contract", contract, "--split", "reporting", "--quick")
    code, text = attack(*kinds, *given, "--json", file)
    assert code == 0, text
    found = json.loads(file.read_text())
    assert list(found["attacks"]) == ["inversion", "identification", "membership", "copying"]
    assert found["sites"] == {"hospital-a": 6, "hospital-b": 6, "hospital-c": 6}
    assert (found["unseen"], found["split"], found["quick"]) == (9, "reporting", True)
    for name, one in found["attacks"].items():
        assert one["rows"], name
        assert one["seconds"] >= 0
        assert one["seed"] == 0
        assert "control_succeeded" in one
    for title in ("Inversion", "Identification", "Membership", "Copying"):
        assert title in text
    assert "unaided psnr db" in text
    assert "NaN" not in file.read_text()
    assert str(tmp_path) not in file.read_text()
    read = Attacks.model_validate(found)
    agreed = settled(contract, task=None, prior=None, images=None, quick=False)
    assert read.foundation == agreed.foundation()


def test_copies_are_looked_for_in_a_finished_run(contract: Path, tmp_path: Path) -> None:
    data = write_hospitals(tmp_path / "data", patients=4)
    run = tmp_path / "run"
    run.mkdir()
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    save_file({"lq": images, "hq": images.clone()}, run / "pairs.safetensors")
    given = ("--data", data, "--contract", contract, "--run", run)
    code, text = attack("copying", *given)
    assert code == 0, text
    assert "released" in text
    assert "control" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("inversion", "--run", "nowhere"), "nowhere/pairs.safetensors: no finished run's pairs"),
        (("identification",), "needs more than 12 patients"),
        (("copying", "--public", "nowhere"), "nowhere: is not a folder"),
    ],
)
def test_what_is_missing_is_told_without_a_traceback(
    contract: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    data = write_hospitals(tmp_path / "data", patients=4)
    code, text = attack(*more, "--data", data, "--contract", contract)
    assert code == 1
    assert "error: " in text
    assert "Traceback" not in text
    assert message in text


def test_an_unknown_kind_is_a_wrong_command_line(contract: Path, tmp_path: Path) -> None:
    code, text = attack("phishing", "--data", tmp_path, "--contract", contract)
    assert code == 2
    assert "byzantine" in text


def test_one_who_lies_needs_an_anchor(contract: Path, tmp_path: Path) -> None:
    data = write_hospitals(tmp_path / "data", patients=4)
    contract.write_text(TINY.replace("rounds = 1", "rounds = 0"))
    code, text = attack("byzantine", "--data", data, "--contract", contract)
    assert code == 1
    assert "needs rounds of the anchor" in text

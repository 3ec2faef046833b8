import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from typer.testing import CliRunner

from aggregator.benchmark import command
from aggregator.benchmark_contract import settled
from aggregator.cli import app
from aggregator.utility import ROWS, gate
from shared.contract import ContractError

TINY = """
name = "tiny"
images = 2
min_patients = 2
[task]
size_px = 32
pixel_mm = 9.0
angles = 60
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
clip_norm = 10.0
[anchor]
rounds = 1
local_steps = 3
public_steps = 4
crop_px = 16
"""

if not any(one.name == "simulate" for one in app.registered_commands):
    app.command("simulate")(command)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    folder = tmp_path / "data"
    for name, patients in (("hospital-a", 4), ("hospital-b", 3), ("public-prior", 1)):
        for number in range(patients):
            place = folder / name / f"p{number}"
            place.mkdir(parents=True)
            voxels = random.integers(-1000, 500, size=(2, 32, 32), dtype=np.int16)
            volume = SimpleITK.GetImageFromArray(voxels)
            volume.SetSpacing((9.0, 9.0, 3.0))
            SimpleITK.WriteImage(volume, str(place / "ct.nii.gz"))
    (tmp_path / "tiny.toml").write_text(TINY)
    return folder


def simulate(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["simulate", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_line_goes_over_the_contract(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    contract = settled(tmp_path / "tiny.toml", task="ct-sr", prior="both", images=5, quick=False)
    assert contract.task.name == "ct-sr"
    assert contract.task.size_px == 32
    assert (contract.prior.kind, contract.images, contract.min_patients) == ("both", 5, 2)
    assert contract.anchor.local_steps == 3
    same = settled(tmp_path / "tiny.toml", task="ct-denoise", prior=None, images=None, quick=False)
    assert same.task.angles == 60  # type: ignore[union-attr]


def test_mr_without_a_contract_shows_heads_and_takes_few_patients() -> None:
    contract = settled(None, task="mr-sr", prior=None, images=None, quick=False)
    assert contract.task.name == "mr-sr"
    assert (contract.prior.anatomy, contract.min_patients) == ("head", 2)


def test_quick_takes_a_third_of_the_steps() -> None:
    whole, quick = (
        settled(None, task=None, prior=None, images=None, quick=quick) for quick in (False, True)
    )
    assert quick.anchor.local_steps == whole.anchor.local_steps // 3
    assert quick.anchor.public_steps == whole.anchor.public_steps // 3
    assert quick.probes.steps == whole.probes.steps // 3
    assert quick.anchor.rounds == whole.anchor.rounds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "ct-denoize"}, "ct-denoise"),
        ({"task": "ct-kernel"}, "transfer: Field required.*give --contract"),
        ({"prior": "atlas"}, "kind"),
        ({"images": 5000}, "images"),
    ],
)
def test_what_cannot_be_names_the_field(given: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        settled(None, **{"task": None, "prior": None, "images": None, "quick": False, **given})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_whole_benchmark_and_the_same_again(data: Path, tmp_path: Path) -> None:
    common = [
        *("--data", data, "--contract", tmp_path / "tiny.toml", "--prior", "both"),
        *("--distillations", 2, "--seeds", 2, "--steps", 6, "--run", tmp_path / "run"),
    ]
    code, text = simulate(*common, "--json", tmp_path / "one.json")
    assert code == 0, text
    table = json.loads((tmp_path / "one.json").read_text())
    assert tuple(table["rows"]) == ROWS
    runs = {name: row["psnr"]["n"] for name, row in table["rows"].items()}
    each = ("prior_warped", "public_anchored", "noise_targets", "distilled")
    assert runs == {
        **dict.fromkeys(ROWS, 2),
        **dict.fromkeys(each, 4),
        "input": 1,
        "anchor": 2,
    }
    assert all(len(row["patients"]) == 3 for row in table["rows"].values())
    assert table["judged_patients"] == 3
    assert table["training_patients"] == 4
    assert set(table["seconds"]) == {"prepare", "sites", "distil", "utility"}
    assert table["releases"] == 1 + 2
    assert table["releases_of_all_sites"] == 2 * (1 + 2)
    assert table["requests"] == 2
    assert table["bytes_published"] == 2 * 2 * 32 * 32 * 4
    assert table["bytes_raw"] == 4 * 2 * 32 * 32 * 4
    assert table["bytes_raw_native"] == 4 * 2 * 32 * 32 * 2
    assert table["gate"]["passed"] == gate(table).passed
    assert table["converged"] is False
    assert "NOT CONVERGED: 6 steps a judge" in text
    for name in (
        *("best_null", "worth_of_hospital_data", "share_recovered", "share_recovered_interval"),
        *("gain_over_best_null", "gain_interval", "gap_closed", "distance_to_full"),
    ):
        assert name in table
    assert not any(name in json.dumps(table) for name in (str(tmp_path), "p0", "p1"))

    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "judged").iterdir()}
    code, text = simulate(*common, "--json", tmp_path / "two.json")
    assert code == 0, text
    assert json.loads((tmp_path / "two.json").read_text()) == table
    assert {path: path.stat().st_mtime_ns for path in trained} == trained

    judged_by = ["--judge", "unet:levels=1,width=4", "--json", tmp_path / "three.json"]
    code, text = simulate(*common, *judged_by)
    assert code == 0, text
    other = json.loads((tmp_path / "three.json").read_text())
    assert other["judge"]["kind"] == "unet"
    assert other["pairs_sha256"] == table["pairs_sha256"], "nothing was distilled again"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--judge", "resnet"), "--judge resnet: no such network"),
        (("--task", "mr-sr"), "no axial MR|has fewer training patients"),
        (("--images", 5000), "images"),
        (("--holdout", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_told_without_a_traceback(
    data: Path, tmp_path: Path, more: tuple[object, ...], message: str
) -> None:
    contract = ("--contract", tmp_path / "tiny.toml")
    code, text = simulate("--data", data, *contract, *more)
    assert code == 1
    assert text.startswith("error: ")
    assert "Traceback" not in text
    assert re.search(message, text), text

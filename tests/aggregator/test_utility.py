from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aggregator.utility import figures, utility_rows
from shared.architectures import Residual
from shared.contract import Anchor, RunContract
from shared.tasks.settings import CtDenoise

CONTRACT = RunContract(
    name="ct",
    task=CtDenoise(size_px=32, angles=60, bins=48, pixel_mm=9.0),
    images=2,
    student=Residual(depth=2, width=4),
    anchor=Anchor(crop_px=16),
)


def test_figures_follow_from_the_rows() -> None:
    psnr = {"input": 28.0, "prior": 30.0, "prior_textured": 32.0, "distilled": 33.0, "full": 34.0}
    made = figures(psnr)
    assert made["best_null"] == "prior_textured"
    assert made["gain_over_best_null"] == pytest.approx(1.0)
    assert made["worth_of_hospital_data"] == pytest.approx(2.0)
    assert made["gap_closed"] == pytest.approx(0.75)
    assert made["share_recovered"] == pytest.approx(0.5)


def test_the_untouched_input_is_no_control_to_beat() -> None:
    psnr = {"input": 40.0, "prior": 30.0, "prior_textured": 31.0, "distilled": 33.0, "full": 34.0}
    assert figures(psnr)["best_null"] == "prior_textured"


def test_where_hospital_data_is_worth_nothing_no_share_is_claimed() -> None:
    psnr = {"input": 28.0, "prior": 33.0, "prior_textured": 35.0, "distilled": 33.5, "full": 34.0}
    assert figures(psnr)["share_recovered"] is None
    assert figures({**psnr, "prior": 34.5})["gap_closed"] is None


@pytest.mark.slow
def test_every_arm_is_trained_and_judged_alike(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    patients = [random.random((2, 1, 32, 32), dtype=np.float32) for _ in range(3)]
    lq, hq = torch.rand(2, 2, 1, 32, 32)
    save_file({"lq": lq, "hq": hq}, tmp_path / "pairs.safetensors")
    seen: list[tuple[int, int]] = []
    table = utility_rows(
        contract=CONTRACT,
        pairs=tmp_path / "pairs.safetensors",
        train=patients[:2],
        holdout=patients[2:],
        public=None,
        steps=30,
        seeds=2,
        workers=2,
        on_progress=lambda done, total, eta_s: seen.append((done, total)),
    )
    assert list(table["rows"]) == ["input", "prior", "prior_textured", "distilled", "full"]
    assert {row["psnr"]["n"] for name, row in table["rows"].items() if name != "input"} == {2}
    assert seen[-1] == (30 * 2 * 4, 30 * 2 * 4)
    assert all(20 < row["psnr"]["mean"] + 20 < 80 for row in table["rows"].values())

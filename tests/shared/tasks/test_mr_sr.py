import math

import pytest
import torch

from shared.tasks import mr_sr
from shared.tasks.settings import MrSr


def wave(size: int, rows: int, columns: int) -> torch.Tensor:
    axis = torch.arange(size, dtype=torch.float64) / size
    return 0.3 * torch.cos(2 * math.pi * (rows * axis[:, None] + columns * axis) + 0.4)[None, None]


def observed(task: MrSr, hq: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return mr_sr.observe(task, hq, mr_sr.truncation(task, hq), generator=generator)


@pytest.mark.parametrize(
    ("factor", "rows", "columns", "kept"),
    [
        (4, 3, 0, True),
        (4, 0, 3, True),
        (4, 3, 3, True),
        (4, 5, 0, False),
        (4, 0, 5, False),
        (4, 3, 5, False),
        (2, 5, 7, True),
        (2, 5, 9, False),
    ],
)
def test_waves_below_the_cut_off_pass_and_those_above_vanish(
    factor: int, rows: int, columns: int, kept: bool
) -> None:
    task = MrSr.model_validate({"factor": factor})
    lq = observed(task, 0.5 + wave(32, rows, columns))
    expected = 0.5 + (wave(32, rows, columns) if kept else torch.zeros(1, 1, 32, 32))
    torch.testing.assert_close(lq, expected.double())


@pytest.mark.parametrize("size", [32, 33, 50])
def test_the_acquired_matrix_is_the_floor_of_size_over_factor(size: int) -> None:
    kept = mr_sr.truncation(MrSr(factor=4), torch.zeros(1, 1, size, size))
    assert float(kept.sum()) == (size // 4) ** 2
    assert float(kept[0, 0]) == 1


def test_a_step_rings_as_a_truncated_series_does() -> None:
    hq = torch.zeros(1, 1, 128, 128)
    hq[..., 32:96] = 0.5
    lq = observed(MrSr(factor=4), hq)
    assert float(lq.max()) == pytest.approx(0.5 * 1.0895, rel=0.02)  # Wilbraham and Gibbs


@pytest.mark.parametrize("factor", [2, 4])
def test_noise_falls_with_the_acquired_part_of_k_space(factor: int) -> None:
    task = MrSr.model_validate({"factor": factor, "sigma": 0.02})
    lq = observed(task, torch.full((100, 1, 64, 64), 0.6))
    assert float(lq.std()) == pytest.approx(0.02 / factor, rel=0.03)
    assert float(lq.mean()) == pytest.approx(0.6, abs=1e-3)

import pytest
import torch

from shared.tasks.noise import white


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_standard_normal_seeded_and_of_the_image_type(dtype: torch.dtype) -> None:
    like = torch.zeros(20, 1, 64, 64, dtype=dtype)
    first, second = (white(like, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.dtype == dtype
    assert torch.equal(first, second)
    assert float(first.mean()) == pytest.approx(0, abs=4 / like.numel() ** 0.5)
    assert float(first.var()) == pytest.approx(1, abs=4 * (2 / like.numel()) ** 0.5)
    assert abs(float((first[..., 1:] * first[..., :-1]).mean())) < 4 / like.numel() ** 0.5

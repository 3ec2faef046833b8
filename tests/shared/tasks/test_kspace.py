import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.tasks.kspace import central, indices, with_noise, zero_filled

CPU = torch.device("cpu")


@given(size=st.integers(1, 40), share=st.floats(0, 1))
def test_the_central_indices_are_the_smallest_ones(size: int, share: float) -> None:
    count = round(share * size)
    k = indices(size, device=CPU)
    assert int(k[0]) == 0
    assert sorted(k.tolist()) == list(range(-(size // 2), size - size // 2))
    kept = sorted(k[central(size, count, device=CPU)].tolist())
    assert kept == list(range(-(count // 2), count - count // 2))


@settings(deadline=None, max_examples=40)
@given(size=st.integers(2, 24), seed=st.integers(0, 1000), axes=st.sampled_from([(-2,), (-2, -1)]))
def test_zero_filling_is_a_self_adjoint_projector(
    size: int, seed: int, axes: tuple[int, ...]
) -> None:
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 2, 1, size, size, generator=random, dtype=torch.complex128)
    shape = (2, 1, size, size if len(axes) == 2 else 1)
    acquired = (torch.rand(shape, generator=random) < 0.5).double()
    once = zero_filled(x, acquired, axes=axes)
    torch.testing.assert_close(zero_filled(once, acquired, axes=axes), once)
    left = torch.vdot(y.flatten(), once.flatten())
    right = torch.vdot(zero_filled(y, acquired, axes=axes).flatten(), x.flatten())
    torch.testing.assert_close(left, right)


def test_derivatives_are_the_projector_too() -> None:
    image = torch.randn(1, 1, 12, 12, dtype=torch.float64, requires_grad=True)
    other = torch.randn(1, 1, 12, 12, dtype=torch.complex128)
    acquired = (torch.rand(12, 12) < 0.4).double()
    out = zero_filled(image, acquired, axes=(-2, -1))
    (derived,) = torch.autograd.grad((out * other.conj()).real.sum(), image)
    torch.testing.assert_close(derived, zero_filled(other, acquired, axes=(-2, -1)).real)


def test_complex_noise_has_the_stated_deviation_in_each_channel_and_in_kspace() -> None:
    image = torch.full((60, 1, 32, 32), 0.4)
    noise = with_noise(image, 0.05, generator=torch.Generator().manual_seed(0)) - image
    transformed = torch.fft.fft2(noise, norm="ortho")
    for channel in (noise.real, noise.imag, transformed.real, transformed.imag):
        assert float(channel.std()) == pytest.approx(0.05, rel=0.01)
    assert abs(float((noise.real * noise.imag).mean())) < 0.01 * 0.05**2
    assert with_noise(image, 0.0, generator=torch.Generator()) is image

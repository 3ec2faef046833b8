import math

import pytest
import torch

from shared.tasks.parallel_beam import Geometry, ParallelBeam, parallel_beam

CPU = torch.device("cpu")


def disc(size: int, radius_px: float) -> torch.Tensor:
    axis = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return ((x**2 + y**2).sqrt() < radius_px).float()[None, None]


@pytest.mark.parametrize("geometry", [Geometry(16, 12, 24), Geometry(33, 40, 20)])
@pytest.mark.parametrize("seed", range(5))
def test_backprojection_is_the_adjoint_of_projection(geometry: Geometry, seed: int) -> None:
    torch.manual_seed(seed)
    beam = ParallelBeam(geometry, device=CPU)
    image = torch.randn(2, 1, geometry.size_px, geometry.size_px)
    sinogram = torch.randn(2, geometry.angles, geometry.bins)
    left = (beam.project(image).double() * sinogram.double()).sum()
    right = (image.double() * beam.backproject(sinogram).double()).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-4, abs=1e-3)


def test_derivatives_are_the_adjoint_too() -> None:
    beam = ParallelBeam(Geometry(12, 10, 18), device=CPU)
    image = torch.randn(1, 1, 12, 12, requires_grad=True)
    sinogram = torch.randn(1, 10, 18)
    (gradient,) = torch.autograd.grad((beam.project(image) * sinogram).sum(), image)
    torch.testing.assert_close(gradient, beam.backproject(sinogram))


def test_projection_keeps_the_mass_of_every_view() -> None:
    beam = ParallelBeam(Geometry(20, 30, 40), device=CPU)
    image = torch.rand(3, 1, 20, 20)
    torch.testing.assert_close(
        beam.project(image).sum(dim=2), image.sum(dim=(1, 2, 3))[:, None].expand(3, 30)
    )


def test_a_disc_projects_to_its_chords() -> None:
    beam = ParallelBeam(Geometry(96, 8, 136), device=CPU)
    radius = 30.0
    profile = beam.project(disc(96, radius))[0]
    position = torch.arange(136) - 67.5
    chord = 2 * (radius**2 - position**2).clamp_min(0).sqrt()
    inner = position.abs() < 0.9 * radius
    assert float((profile[:, inner] - chord[inner]).abs().mean()) < 1.0  # of up to 60


def test_filtered_back_projection_recovers_a_disc() -> None:
    beam = parallel_beam(Geometry(96, 180, 136), CPU)
    image = disc(96, 30)
    back = beam.reconstruct(beam.project(image))[0, 0]
    assert float(back[40:56, 40:56].mean()) == pytest.approx(1.0, abs=0.01)
    assert abs(float(back[:12, :12].mean())) < 0.01


def test_white_sinogram_noise_becomes_the_variance_of_the_ramp() -> None:
    beam = parallel_beam(Geometry(64, 180, 96), CPU)
    torch.manual_seed(0)
    noise = beam.reconstruct(torch.randn(24, 180, 96))
    # Per view the filtered noise has variance integral of (|f| Hann)^2, linear interpolation keeps
    # two thirds of it on average, and 180 views add independently, each times pi/180.
    frequency = torch.linspace(-0.5, 0.5, 2001)
    response = frequency.abs() * (0.5 + 0.5 * torch.cos(2 * math.pi * frequency))
    per_view = float(torch.trapezoid(response**2, frequency))
    centre = noise[:, 0, 16:48, 16:48]
    low, high = (math.sqrt(per_view * share * 180) * math.pi / 180 for share in (2 / 3, 1.0))
    assert low * 0.95 < float(centre.std()) < high * 1.05

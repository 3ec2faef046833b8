import pytest
import torch

from shared.architectures import Edsr, RedCnn, Residual, UNet
from shared.families import layers
from shared.networks import parameter_count
from site_agent.solitary import Tally, slices_of

TINY = Residual(depth=2, width=4)
LENGTH = parameter_count(TINY)


def mean_of(*patients: torch.Tensor) -> torch.Tensor:
    tally = Tally(TINY)
    for gradients in patients:
        tally.add(gradients)
    return tally.mean()


@pytest.mark.parametrize(
    "network", [TINY, RedCnn(width=4), Edsr(blocks=1, width=4), UNet(levels=1, width=4)]
)
def test_every_slice_of_a_kernel_and_every_bias_is_a_unit(network: Residual) -> None:
    units = slices_of(network)
    assert len(units) == parameter_count(network)
    assert int(units[-1]) + 1 == sum(one.outputs * (one.inputs + 1) for one in layers(network))
    first = layers(network)[0]
    assert units[: first.kernel**2].unique().tolist() == [0]
    assert units[first.weights : first.parameters].tolist() == list(
        range(first.outputs * first.inputs, first.outputs * (first.inputs + 1))
    )


def test_where_several_have_a_part_it_is_their_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    patients = [torch.randn(2, LENGTH, generator=generator) for _ in range(8)]
    # Biases are single numbers, in which one of eight may well be half of all.
    kernels = torch.ones(LENGTH, dtype=torch.bool)
    kernels[36:40] = kernels[76] = False
    mean = mean_of(*patients)
    torch.testing.assert_close(mean[:, kernels], torch.stack(patients).mean(0)[:, kernels])


@pytest.mark.parametrize("share", [0.49, 0.51])
def test_what_one_patient_makes_up_more_than_half_of_is_left_out(share: float) -> None:
    patients = [torch.ones(1, LENGTH) for _ in range(6)]
    # The second filter of the first layer: one patient against five.
    patients[2][0, 9:18] = 5 * share / (1 - share)
    mean = mean_of(*patients)
    assert bool((mean[0, :9] == 1).all())
    assert bool((mean[0, 9:18] == 0).all()) == (share > 0.5)
    assert bool((mean[0, 18:] == 1).all())


def test_nobody_is_found_out_in_a_row_by_another() -> None:
    patients = [torch.ones(2, LENGTH) for _ in range(6)]
    patients[0][1, 76] = 1000.0
    mean = mean_of(*patients)
    assert mean[0, 76] == 1
    assert mean[1, 76] == 0


def test_two_patients_may_differ() -> None:
    mean = mean_of(torch.ones(1, LENGTH), torch.full((1, LENGTH), 3.0))
    assert bool((mean == 2).all())


def test_nobody_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one patient"):
        Tally(TINY).mean()

import hashlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.architectures import DnCnn, Edsr, Network, RedCnn, Residual, UNet
from shared.networks import apply_network, initial_weights, parameter_count, restoration_loss

SMALL: list[Network] = [
    Residual(depth=2, width=5),
    DnCnn(depth=4, width=6),
    RedCnn(width=4),
    Edsr(blocks=2, width=4),
    UNet(levels=2, width=4),
]
FULL: list[Network] = [Residual(), DnCnn(), RedCnn(), Edsr(), UNet()]


class Plain(nn.Module):
    """A chain of 3x3 layers from torch's own."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        channels = [1, *[width] * (depth - 1), 1]
        self.layers = nn.ModuleList(
            nn.Conv2d(channels[k], channels[k + 1], 3, padding="same") for k in range(depth)
        )

    def forward(self, image: Tensor) -> Tensor:
        hidden = image
        for layer in self.layers[:-1]:
            hidden = functional.relu(layer(hidden))
        return image + self.layers[-1](hidden)


class RedCnnModule(nn.Module):
    """After the authors' figure: shortcuts after the first and third transposed layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, width, 5, padding=2)
        self.conv3 = nn.Conv2d(width, width, 5, padding=2)
        self.conv4 = nn.Conv2d(width, width, 5, padding=2)
        self.conv5 = nn.Conv2d(width, width, 5, padding=2)
        self.back1 = nn.ConvTranspose2d(width, width, 5, padding=2)
        self.back2 = nn.ConvTranspose2d(width, width, 5, padding=2)
        self.back3 = nn.ConvTranspose2d(width, width, 5, padding=2)
        self.back4 = nn.ConvTranspose2d(width, width, 5, padding=2)
        self.back5 = nn.ConvTranspose2d(width, 1, 5, padding=2)

    def forward(self, image: Tensor) -> Tensor:
        second = self.conv2(self.conv1(image).relu()).relu()
        fourth = self.conv4(self.conv3(second).relu()).relu()
        hidden = self.conv5(fourth).relu()
        hidden = (self.back1(hidden) + fourth).relu()
        hidden = self.back2(hidden).relu()
        hidden = (self.back3(hidden) + second).relu()
        hidden = self.back4(hidden).relu()
        return self.back5(hidden) + image


class EdsrModule(nn.Module):
    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        head = hidden = self.head(image)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return image + self.tail(head + self.body(hidden))


class Two(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(),
        )


class UNetModule(nn.Module):
    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        channels = [width << level for level in range(levels + 1)]
        self.down = nn.ModuleList(
            Two(inputs, outputs)
            for inputs, outputs in zip([1, *channels[:-1]], channels, strict=True)
        )
        up: list[nn.Module] = []
        for outputs in channels[-2::-1]:
            up += [nn.Conv2d(2 * outputs, outputs, 3, padding=1), Two(2 * outputs, outputs)]
        self.up = nn.ModuleList(up)
        self.last = nn.Conv2d(width, 1, 1)
        self.step = 1 << levels

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = image.shape[-2:]
        pad = nn.ReplicationPad2d((0, -columns % self.step, 0, -rows % self.step))
        hidden, kept = pad(image), []
        for level, two in enumerate(self.down):
            hidden = two(hidden if level == 0 else nn.AvgPool2d(2)(hidden))
            kept.append(hidden)
        for number in range(len(self.up) // 2):
            larger = nn.Upsample(scale_factor=2, mode="bilinear")(hidden)
            joined = torch.cat([kept[-2 - number], self.up[2 * number](larger)], dim=1)
            hidden = self.up[2 * number + 1](joined)
        return image + self.last(hidden)[:, :, :rows, :columns]


def as_module(network: Network) -> nn.Module:
    """The same network from torch's own layers."""
    if isinstance(network, Residual | DnCnn):
        return Plain(network.depth, network.width)
    if isinstance(network, RedCnn):
        return RedCnnModule(network.width)
    if isinstance(network, Edsr):
        return EdsrModule(network.blocks, network.width)
    return UNetModule(network.levels, network.width)


def kinds(networks: Sequence[Network]) -> list[str]:
    return [network.kind for network in networks]


@pytest.mark.parametrize("network", [*SMALL, Residual(), UNet(levels=1, width=8)])
@pytest.mark.parametrize(("height", "width"), [(20, 20), (9, 15)])
def test_a_flat_vector_is_the_network_of_torchs_own_layers(
    network: Network, height: int, width: int
) -> None:
    # Not the initial weights: their biases are zero and their last layer small.
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(parameter_count(network), generator=generator) * 0.1
    model = as_module(network)
    nn.utils.vector_to_parameters(weights, model.parameters())
    image = torch.rand(2, 1, height, width, generator=generator)
    with torch.no_grad():
        ours, theirs = apply_network(network, weights, image), model(image)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert float((ours - image).abs().max()) > 1e-3  # the control: there is a correction


@pytest.mark.parametrize("network", [*SMALL, *FULL], ids=kinds([*SMALL, *FULL]))
def test_parameters_are_counted_as_torch_counts_them(network: Network) -> None:
    model = as_module(network)
    assert parameter_count(network) == sum(p.numel() for p in model.parameters())
    assert initial_weights(network, seed=0).shape == (parameter_count(network),)


def test_networks_have_the_documented_sizes() -> None:
    assert parameter_count(Residual(depth=4, width=16)) == 4_945
    # 5x5x96 in, eight of 96x96x25, 96x25 out, and biases.
    assert parameter_count(RedCnn()) == 2 * 2_400 + 8 * 230_400 + 9 * 96 + 1
    # 3x3: 64 in, 33 of 64x64, 64 out, and biases (EDSR baseline without its upsampler).
    assert parameter_count(Edsr()) == 2 * 576 + 33 * 36_864 + 34 * 64 + 1


def reference(depth: int, width: int, weights: Tensor, image: Tensor) -> Tensor:
    """The probe network as it was before there were others."""
    hidden, offset = image.contiguous(memory_format=torch.channels_last), 0
    for layer in range(depth):
        outputs, inputs = (1 if layer == depth - 1 else width), (1 if layer == 0 else width)
        size = outputs * inputs * 9
        kernel = weights[offset : offset + size].view(outputs, inputs, 3, 3)
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        bias = weights[offset + size : offset + size + outputs]
        offset += size + outputs
        hidden = functional.conv2d(hidden, kernel, bias, padding=1)
        if layer < depth - 1:
            hidden = functional.relu(hidden)
    return image + hidden


@pytest.mark.parametrize(
    ("network", "digest"),
    [
        (Residual(), "fdfd1a715f4fe5099163ce282de6ae5d65604f30d37f011699f034ecaeb60de0"),
        (
            Residual(depth=6, width=32),
            "256b62def1216be59083f01386cf5be048656c03e1458a228de93263fcdd7e8d",
        ),
    ],
)
def test_the_probe_network_never_changes(network: Residual, digest: str) -> None:
    weights = initial_weights(network, seed=3)
    assert hashlib.sha256(weights.numpy().tobytes()).hexdigest() == digest
    image = torch.linspace(0, 1, 480).reshape(1, 1, 20, 24)
    expected = reference(network.depth, network.width, weights, image)
    assert torch.equal(apply_network(network, weights, image), expected)


@pytest.mark.parametrize("network", FULL, ids=kinds(FULL))
def test_initial_weights_start_near_the_identity_and_follow_the_seed(network: Network) -> None:
    weights = initial_weights(network, seed=5)
    assert torch.equal(weights, initial_weights(network, seed=5))
    assert not torch.equal(weights, initial_weights(network, seed=6))
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = (apply_network(network, weights, image) - image).square().mean().sqrt()
    assert 1e-4 < float(change) < 0.3


def test_initial_weights_are_uniform_within_kaimings_bound() -> None:
    weights = initial_weights(RedCnn(width=32), seed=0)
    second = weights[32 * 26 : 32 * 26 + 32 * 32 * 25]  # behind the first layer and its biases
    bound = (6 / (32 * 25)) ** 0.5
    assert 0.99 * bound < float(second.abs().max()) <= bound
    assert float(second.var()) == pytest.approx(bound**2 / 3, rel=0.05)
    last = weights[-(32 * 25 + 1) :]
    assert 0.09 * bound < float(last.abs().max()) <= 0.1 * bound * (1 + 1e-6)
    assert float(last[-1]) == 0.0


@pytest.mark.parametrize("network", SMALL, ids=kinds(SMALL))
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 23), (17, 8), (31, 33)])
def test_every_size_is_kept(network: Network, height: int, width: int) -> None:
    image = torch.rand(1, 1, height, width)
    assert apply_network(network, initial_weights(network, seed=0), image).shape == image.shape


def test_the_deepest_unet_keeps_the_smallest_size() -> None:
    network = UNet(levels=4, width=4)
    image = torch.rand(1, 1, 8, 11)
    assert apply_network(network, initial_weights(network, seed=0), image).shape == image.shape


@pytest.mark.parametrize("network", SMALL, ids=kinds(SMALL))
def test_a_pixel_does_not_depend_on_its_batch(network: Network) -> None:
    weights = initial_weights(network, seed=0)
    images = torch.rand(3, 1, 24, 24)
    together = apply_network(network, weights, images)
    alone = torch.cat([apply_network(network, weights, image[None]) for image in images])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("network", SMALL, ids=kinds(SMALL))
def test_first_and_second_derivatives_are_those_of_finite_differences(network: Network) -> None:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = initial_weights(network, seed=1).double() + 0.02 * normal(parameter_count(network))
    image, target = normal(1, 1, 10, 12), normal(1, 1, 10, 12)
    along, sideways = normal(*weights.shape), normal(*image.shape)

    def loss(theta: Tensor, x: Tensor) -> Tensor:
        return restoration_loss(apply_network(network, theta, x), target)

    def slope(theta: Tensor, x: Tensor) -> Tensor:
        """Derivative of the loss along a direction of the weights, itself differentiable."""
        (gradient,) = torch.autograd.grad(loss(theta, x), theta, create_graph=True)
        return (gradient * along).sum()

    # So small a step that hardly a rectifier changes sides between the two points.
    step = 1e-6
    theta, x = weights.requires_grad_(True), image.requires_grad_(True)
    first = slope(theta, x)
    with torch.no_grad():
        rise = loss(theta + step * along, x) - loss(theta - step * along, x)
    torch.testing.assert_close(first, rise / (2 * step), rtol=1e-5, atol=1e-8)

    by_weights, by_image = torch.autograd.grad(first, (theta, x))
    bend = slope(theta + step * along, x) - slope(theta - step * along, x)
    torch.testing.assert_close((by_weights * along).sum(), bend / (2 * step), rtol=1e-4, atol=1e-6)
    bend = slope(theta, x + step * sideways) - slope(theta, x - step * sideways)
    torch.testing.assert_close((by_image * sideways).sum(), bend / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", SMALL, ids=kinds(SMALL))
def test_a_vector_of_another_network_is_refused(network: Network) -> None:
    with pytest.raises(ValueError, match=f"10 weights for a network of {parameter_count(network)}"):
        apply_network(network, torch.zeros(10), torch.zeros(1, 1, 8, 8))

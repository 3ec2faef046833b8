"""Descriptions of the enhancement networks: what a contract or a command line names.

None has normalisation layers: batch statistics would leak, and would make a gradient depend on its
batch companions. All keep the image size and add a correction to their input.
"""

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from shared.frozen import Frozen, explain


class Residual(Frozen):
    """The probe network: a residual convolutional network of ``depth`` 3x3 layers."""

    kind: Literal["residual"] = "residual"
    depth: int = Field(4, ge=2, le=16, description="layers")
    width: int = Field(16, ge=4, le=128, description="channels")


class DnCnn(Frozen):
    """DnCNN (Zhang et al. 2017) without batch normalisation: 3x3 layers, residual."""

    kind: Literal["dncnn"] = "dncnn"
    depth: int = Field(17, ge=3, le=20, description="layers")
    width: int = Field(64, ge=4, le=128, description="channels")


class RedCnn(Frozen):
    """RED-CNN (Chen et al. 2017): five 5x5 convolutions, five transposed, additive shortcuts."""

    kind: Literal["red-cnn"] = "red-cnn"
    width: int = Field(96, ge=4, le=128, description="channels")


class Edsr(Frozen):
    """EDSR baseline (Lim et al. 2017) at constant image size: residual blocks, no upsampler."""

    kind: Literal["edsr"] = "edsr"
    blocks: int = Field(16, ge=1, le=32, description="residual blocks")
    width: int = Field(64, ge=4, le=128, description="channels")


class UNet(Frozen):
    """U-Net (Ronneberger et al. 2015): average pooling, bilinear upsampling, concatenation."""

    kind: Literal["unet"] = "unet"
    levels: int = Field(3, ge=1, le=4, description="times the image is halved")
    width: int = Field(16, ge=4, le=64, description="channels at full size, doubled at each level")


Network = Annotated[Residual | DnCnn | RedCnn | Edsr | UNet, Field(discriminator="kind")]

FAMILIES: dict[str, type[Residual | DnCnn | RedCnn | Edsr | UNet]] = {
    "residual": Residual,
    "dncnn": DnCnn,
    "red-cnn": RedCnn,
    "edsr": Edsr,
    "unet": UNet,
}


def read_network(text: str) -> Network:
    """The network that ``kind`` or ``kind:key=value,key=value`` describes.

    Raises ``ValueError`` naming the kind or the field that is wrong.
    """
    kind, _, settings = text.partition(":")
    if kind not in FAMILIES:
        raise ValueError(f"no such network; there are {', '.join(FAMILIES)}")
    values: dict[str, str] = {}
    for setting in settings.split(",") if settings else []:
        name, equals, value = setting.partition("=")
        if not equals or name in values:
            problem = "given twice" if name in values else "write it as key=value"
            raise ValueError(f"{name or setting}: {problem}")
        values[name] = value
    try:
        return FAMILIES[kind].model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def in_words(network: Network) -> str:
    """``network`` for a reader of a card: its family, depth and width."""
    if isinstance(network, Residual):
        return f"a residual network of {network.depth} layers and {network.width} channels"
    if isinstance(network, DnCnn):
        size = f"{network.depth} layers and {network.width} channels"
        return f"DnCNN of {size}, without batch normalisation"
    if isinstance(network, RedCnn):
        return f"RED-CNN of {network.width} channels"
    if isinstance(network, Edsr):
        size = f"{network.blocks} blocks and {network.width} channels"
        return f"EDSR of {size}, without its upsampler"
    return f"a U-Net halved {network.levels} times, with {network.width} channels at full size"

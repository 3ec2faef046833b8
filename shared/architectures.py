"""Descriptions of the enhancement networks: what a contract or a command line names.

None has normalisation layers: batch statistics would leak, and would make a gradient depend on its
batch companions. All keep the image size and add a correction to their input.
"""

from typing import Annotated, Literal

from pydantic import Field

from shared.frozen import Frozen


class Residual(Frozen):
    """The probe network: a residual convolutional network of ``depth`` 3x3 layers."""

    kind: Literal["residual"] = "residual"
    depth: int = Field(4, ge=2, le=16)
    width: int = Field(16, ge=4, le=128)


class DnCnn(Frozen):
    """DnCNN (Zhang et al. 2017) without batch normalisation: 3x3 layers, residual."""

    kind: Literal["dncnn"] = "dncnn"
    depth: int = Field(17, ge=3, le=20)
    width: int = Field(64, ge=4, le=128)


class RedCnn(Frozen):
    """RED-CNN (Chen et al. 2017): five 5x5 convolutions, five transposed, additive shortcuts."""

    kind: Literal["red-cnn"] = "red-cnn"
    width: int = Field(96, ge=4, le=128)


class Edsr(Frozen):
    """EDSR baseline (Lim et al. 2017) at constant image size: residual blocks, no upsampler."""

    kind: Literal["edsr"] = "edsr"
    blocks: int = Field(16, ge=1, le=32)
    width: int = Field(64, ge=4, le=128)


class UNet(Frozen):
    """U-Net (Ronneberger et al. 2015): average pooling, bilinear upsampling, concatenation."""

    kind: Literal["unet"] = "unet"
    levels: int = Field(3, ge=1, le=4, description="times the image is halved")
    width: int = Field(16, ge=4, le=64, description="channels at full size, doubled at each level")


Network = Annotated[Residual | DnCnn | RedCnn | Edsr | UNet, Field(discriminator="kind")]

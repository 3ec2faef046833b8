"""The enhancement tasks a contract may name, each with its physical parameters and units.

Images of every task are in window units: 0 is the window's lower end, 1 its upper. CT is windowed
in Hounsfield units. MR has no such scale: intake stores thousandths of the series' own 99.5th
percentile of the foreground, and the window is 0 to 1000 of them.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.frozen import Frozen

Modality = Literal["CT", "MR"]

MR_WINDOW = (0.0, 1000.0)
"""Thousandths of a series' 99.5th percentile."""

Pairs = Literal["simulated", "real"]
"""Whether a site degrades its images itself, or has two reconstructions of the same scan."""

TRANSFER_LIMIT, NOISE_LIMIT_HU = 20.0, 2000.0
"""The largest values of a kernel's curves: sharp over soft amplitude, and noise in HU."""

Edge = Annotated[int, Field(ge=32, le=512, description="edge of the square images, pixels")]


class _Ct(Frozen):
    """What CT tasks share: size and window."""

    size_px: Edge = 128
    window_low_hu: float = Field(-1000.0, ge=-1024, le=3000, description="HU mapped to 0")
    window_high_hu: float = Field(1000.0, ge=-1000, le=4000, description="HU mapped to 1")

    @property
    def modality(self) -> Modality:
        """CT."""
        return "CT"

    @property
    def window(self) -> tuple[float, float]:
        """Stored values mapped to 0 and 1: Hounsfield units."""
        return self.window_low_hu, self.window_high_hu

    @model_validator(mode="after")
    def _ordered_window(self) -> "_Ct":
        if self.window_high_hu <= self.window_low_hu:
            raise ValueError("window_high_hu must be above window_low_hu")
        return self


class _Mr(Frozen):
    """What MR tasks share: size, and a window relative to the series."""

    size_px: Edge = 128

    @property
    def modality(self) -> Modality:
        """MR."""
        return "MR"

    @property
    def window(self) -> tuple[float, float]:
        """Stored values mapped to 0 and 1: thousandths of the series' 99.5th percentile."""
        return MR_WINDOW


class CtDenoise(_Ct):
    """Low-dose CT denoising: parallel beam, Poisson and electronic noise, FBP."""

    name: Literal["ct-denoise"] = "ct-denoise"
    pairs: Pairs = Field(
        "simulated",
        # A contract that says nothing keeps the digest it had before there was a choice.
        exclude_if=lambda value: value == "simulated",
        description="LQ of the sites: HQ degraded by this task, or a real second reconstruction",
    )
    pixel_mm: float = Field(2.8, gt=0, le=20, description="nominal pixel edge in the projector, mm")
    angles: int = Field(180, ge=30, le=1440, description="views over 180 degrees")
    bins: int = Field(192, ge=32, le=1024, description="detector bins, one pixel_mm wide")
    photons: float = Field(
        10.0, ge=1, le=1e8, description="photons detected behind each view's thickest ray, a bin"
    )
    electronic_sigma: float = Field(
        4.0, ge=0, le=1e4, description="electronic noise, photon equivalents"
    )

    @model_validator(mode="after")
    def _seen_whole(self) -> "CtDenoise":
        if self.bins < self.size_px:
            raise ValueError(
                "bins must be at least size_px, or the detector misses the image's sides and "
                "leaves them without noise: for 256 pixels set bins = 384 and pixel_mm = 1.4"
            )
        return self


class CtSr(_Ct):
    """CT super-resolution: Gaussian aperture, sampling, noise; LQ is interpolated back."""

    name: Literal["ct-sr"] = "ct-sr"
    factor: Literal[2, 4] = Field(2, description="sampling distance of LQ over that of HQ")
    direction: Literal["in-plane", "slice"] = Field(
        "in-plane",
        description="both axes, or the rows alone, as the slice axis of a reformatted volume",
    )
    blur_fwhm: float = Field(
        1.0, ge=0.1, le=4, description="width of the aperture, in LQ sampling distances"
    )
    noise_hu: float = Field(10.0, ge=0, le=500, description="white noise of the LQ samples, HU")


class CtKernel(_Ct):
    """Sharp to soft kernel: LQ = HQ filtered by a radial transfer function + coloured noise.

    The curves are fitted at the sites to real pairs (`site-agent kernel-fit`), and only they leave.
    """

    name: Literal["ct-kernel"] = "ct-kernel"
    pairs: Pairs = Field(
        "simulated",
        # A contract that says nothing keeps the digest it had before there was a choice.
        exclude_if=lambda value: value == "simulated",
        description="LQ of the sites: HQ degraded by this task, or a real second reconstruction",
    )
    transfer: tuple[float, ...] = Field(
        min_length=4,
        max_length=64,
        description="sharp over soft amplitude, in equal steps from 0 to the Nyquist frequency",
    )
    noise_hu: tuple[float, ...] = Field(
        min_length=4,
        max_length=64,
        description="standard deviation of added noise a Fourier coefficient, HU, same steps",
    )
    fitted_pairs: int = Field(0, ge=0, description="slice pairs the curves were fitted to")

    @model_validator(mode="after")
    def _sane_curves(self) -> "CtKernel":
        if len(self.transfer) != len(self.noise_hu):
            raise ValueError("transfer and noise_hu must be of the same length")
        if not all(0 <= value <= TRANSFER_LIMIT for value in self.transfer):
            raise ValueError(f"transfer must lie in 0..{TRANSFER_LIMIT:g}")
        if not all(0 <= value <= NOISE_LIMIT_HU for value in self.noise_hu):
            raise ValueError(f"noise_hu must lie in 0..{NOISE_LIMIT_HU:g}")
        return self


class MrDenoise(_Mr):
    """Rician denoising: the magnitude of a complex image with Gaussian noise in both channels."""

    name: Literal["mr-denoise"] = "mr-denoise"
    sigma: float = Field(0.06, gt=0, le=1, description="noise of each channel, window units")


class MrSr(_Mr):
    """MR super-resolution: k-space truncated to the central 1/factor, zero-filled, magnitude."""

    name: Literal["mr-sr"] = "mr-sr"
    factor: Literal[2, 4] = Field(4, description="k-space extent of HQ over that of LQ, each axis")
    sigma: float = Field(
        0.0, ge=0, le=1, description="noise of each channel if all were acquired, window units"
    )


class MrUndersampled(_Mr):
    """Cartesian undersampling: random phase-encode lines, denser at the centre, zero-filled."""

    name: Literal["mr-undersampled"] = "mr-undersampled"
    acceleration: float = Field(4.0, ge=1.5, le=16, description="all lines over acquired ones")
    centre_fraction: float = Field(
        0.08, gt=0, le=0.5, description="share of all lines always acquired, at the centre"
    )
    sigma: float = Field(
        0.0, ge=0, le=1, description="noise of each channel if all were acquired, window units"
    )

    @model_validator(mode="after")
    def _centre_within_budget(self) -> "MrUndersampled":
        if self.centre_fraction * self.acceleration > 1:
            raise ValueError(
                "centre_fraction must not exceed 1 / acceleration: the centre alone would take "
                "more lines than are acquired"
            )
        return self


SingleTask = Annotated[
    CtDenoise | CtSr | CtKernel | MrDenoise | MrSr | MrUndersampled, Field(discriminator="name")
]


REAL_PAIRS: dict[str, Literal["kernel", "dose"]] = {"ct-kernel": "kernel", "ct-denoise": "dose"}
"""Of the tasks that may be asked of real pairs, what the two reconstructions differ by."""


class MultiTask(Frozen):
    """Several tasks on one set of HQ images; the networks learn all of them at once."""

    name: Literal["multi"] = "multi"
    parts: tuple[SingleTask, ...] = Field(min_length=2, max_length=6)

    @property
    def size_px(self) -> int:
        """Edge of the square images, pixels."""
        return self.parts[0].size_px

    @property
    def modality(self) -> Modality:
        """That of every part."""
        return self.parts[0].modality

    @property
    def window(self) -> tuple[float, float]:
        """That of every part."""
        return self.parts[0].window

    @model_validator(mode="after")
    def _same_images(self) -> "MultiTask":
        first = self.parts[0]
        if any(getattr(part, "pairs", "simulated") == "real" for part in self.parts):
            raise ValueError("real pairs are of one task: leave parts' pairs simulated")
        for part in self.parts[1:]:
            if (part.size_px, part.modality, part.window) != (
                first.size_px,
                first.modality,
                first.window,
            ):
                raise ValueError("parts must agree on size_px, modality and window")
        return self


Task = Annotated[
    CtDenoise | CtSr | CtKernel | MrDenoise | MrSr | MrUndersampled | MultiTask,
    Field(discriminator="name"),
]

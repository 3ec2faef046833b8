"""The run contract: everything a hospital agrees to before it computes anything.

A contract is frozen; its digest is the SHA-256 of its RFC 8785 canonical JSON. The digest names the
run: launching the same contract again resumes it, and every message carries it.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Slug = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
"""A name that is safe in a path, a URL and a log line."""

Name = Literal["student", "anchor"]
"""Which of a contract's two networks a request speaks of."""


class ContractError(ValueError):
    """A contract that cannot be read or is not valid; the text names the field and the fix."""


class Frozen(BaseModel):
    """Base of every message and contract part: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CtDenoise(Frozen):
    """Low-dose CT denoising: parallel beam, Poisson and electronic noise, FBP."""

    name: Literal["ct-denoise"] = "ct-denoise"
    size_px: int = Field(128, ge=32, le=512, description="edge of the square images, pixels")
    pixel_mm: float = Field(2.8, gt=0, le=20, description="nominal pixel edge in the projector, mm")
    window_low_hu: float = Field(-1000.0, ge=-1024, le=3000, description="HU mapped to 0")
    window_high_hu: float = Field(1000.0, ge=-1000, le=4000, description="HU mapped to 1")
    angles: int = Field(180, ge=30, le=1440, description="views over 180 degrees")
    bins: int = Field(192, ge=32, le=1024, description="detector bins, one pixel_mm wide")
    photons: float = Field(
        10.0, ge=1, le=1e8, description="photons detected behind each view's thickest ray, a bin"
    )
    electronic_sigma: float = Field(
        4.0, ge=0, le=1e4, description="electronic noise, photon equivalents"
    )

    @model_validator(mode="after")
    def _ordered_window(self) -> "CtDenoise":
        if self.window_high_hu <= self.window_low_hu:
            raise ValueError("window_high_hu must be above window_low_hu")
        return self


class Residual(Frozen):
    """A residual convolutional network without normalisation: ``depth`` 3x3 layers."""

    depth: int = Field(4, ge=2, le=16)
    width: int = Field(16, ge=4, le=128)


class Probes(Frozen):
    """Lever A: gradients at probe weights along trajectories trained on the distilled set."""

    requests: int = Field(2, ge=0, le=64, description="Flower rounds spent on probes")
    depths: tuple[int, ...] = Field(
        (30, 120, 400), min_length=1, max_length=64, description="training steps of each probe"
    )
    steps: int = Field(100, ge=1, le=10_000, description="optimisation steps after each request")
    draws: int = Field(2, ge=1, le=16, description="noise draws a slice in a raw gradient")
    clip_norm: float = Field(
        0.05, gt=0, le=1e6, description="L2 bound of one patient's gradient, before the mean"
    )


class Anchor(Frozen):
    """Lever B: accumulated gradients of local steps, averaged into one anchor network."""

    rounds: int = Field(4, ge=0, le=64, description="Flower rounds spent on the anchor")
    local_steps: int = Field(400, ge=1, le=5_000, description="optimiser steps a site, a round")
    batch: int = Field(4, ge=1, le=128)
    crop_px: int = Field(32, ge=16, le=512)
    learning_rate: float = Field(1e-3, gt=0, le=1)
    clip_norm: float = Field(
        3.0, gt=0, le=1e6, description="L2 bound of a site's accumulated gradient"
    )
    public_steps: int = Field(1500, ge=0, le=100_000, description="steps of the public start")


class RunContract(Frozen):
    """What a run does with a hospital's images; the site checks it against its own policy.

    Raises pydantic's ``ValidationError`` on a field that is unknown or out of range.
    """

    version: Literal[1] = 1
    name: Slug = Field(description="name of the dataset the run publishes")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random in the run")
    task: CtDenoise = CtDenoise()
    granularity: Literal["cohort"] = Field(
        "cohort", description="a summary stands for a site's mean over its patients"
    )
    min_patients: int = Field(5, ge=2, le=10_000, description="patients behind every summary")
    images: int = Field(8, ge=1, le=1024, description="distilled pairs to publish")
    prior: Literal["phantom", "public"] = Field(
        "phantom", description="where the distilled images start: procedural or public volumes"
    )
    student: Residual = Residual()
    anchor_network: Residual = Residual(depth=6, width=32)
    probes: Probes = Probes()
    anchor: Anchor = Anchor()

    @model_validator(mode="after")
    def _consistent(self) -> "RunContract":
        if self.anchor.crop_px > self.task.size_px:
            raise ValueError("anchor.crop_px must not exceed task.size_px")
        if self.rounds == 0:
            raise ValueError("probes.requests and anchor.rounds are both 0: nothing to ask a site")
        return self

    @property
    def rounds(self) -> int:
        """Flower rounds of the whole run."""
        return self.anchor.rounds + self.probes.requests

    def network(self, name: Name) -> Residual:
        """The network a request names."""
        return self.student if name == "student" else self.anchor_network

    def norm_limit(self, kind: Literal["gradients", "local-steps"]) -> float:
        """The L2 norm that no row of an honest answer exceeds."""
        return self.anchor.clip_norm if kind == "local-steps" else self.probes.clip_norm

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


def canonical_json(value: Any) -> bytes:
    """RFC 8785 canonical JSON of ``value``."""
    return rfc8785.dumps(value)


def explain(error: ValidationError) -> str:
    """One line a field: its dotted name and what is wrong, never the offending document."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'contract'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    )


def read_contract(path: Path) -> RunContract:
    """Reads a contract from TOML.

    Raises ``ContractError`` naming the field (or the line) and what to do.
    """
    try:
        return RunContract.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ContractError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"{path}: is not valid TOML: {error}") from None
    except ValidationError as error:
        raise ContractError(f"{path}: {explain(error)}") from None

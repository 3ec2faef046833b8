"""The run contract: everything a hospital agrees to before it computes anything.

A contract is frozen; its digest is the SHA-256 of its RFC 8785 canonical JSON. The digest names the
run: launching the same contract again resumes it, and every message carries it.
"""

import hashlib
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from shared import accounting
from shared.architectures import Network, Residual
from shared.frozen import Frozen, Slug, canonical_json, explain
from shared.tasks.settings import CtDenoise, CtKernel, Task

Name = Literal["student", "anchor"]
"""Which of a contract's two networks a request speaks of."""

Kind = Literal["gradients", "local-steps"]
"""What a request asks for: gradients at K weights, or the descent of E local steps."""

Granularity = Literal["patient", "cohort", "federation"]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes in hexadecimal: a SHA-256, or a public key."""


class ContractError(ValueError):
    """A contract that cannot be read or is not valid; the text names the field and the fix."""


class PriorSource(Frozen):
    """Where the distilled images start: never an enrolled patient."""

    kind: Literal["phantom", "public", "both", "consented"] = Field(
        "phantom",
        description="procedural; a public volume; half and half; or a consented person's volume",
    )
    anatomy: Literal["thorax", "abdomen", "head"] = Field(
        "thorax", description="what the phantoms show; in MR the head, where nothing is said"
    )
    textured: bool = Field(True, description="phantoms with parenchymal and vessel texture")
    license: str | None = Field(
        None, max_length=64, description="SPDX identifier of the public volume's licence"
    )
    statement: str | None = Field(
        None, max_length=500, description="source of the public volume, or the person's consent"
    )

    @model_validator(mode="after")
    def _recorded(self) -> "PriorSource":
        if self.kind == "consented" and not self.statement:
            raise ValueError("prior.statement must hold the consent the volume is used under")
        return self


class Spg(Frozen):
    """Structure-Preserving Personalised Generation: what may change between prior and image."""

    persona: Granularity = Field(
        "federation",
        description="whose gradient an image follows: every site's mean, one site's, one patient's",
    )
    tone: bool = Field(True, description="a monotone tone curve an image")
    spectrum: bool = Field(
        True, description="a gain an image of each of four bands of spatial frequency"
    )
    warp: bool = Field(True, description="a diffeomorphic warp on a coarse grid an image")
    residual: bool = Field(True, description="a bounded residual of limited bandwidth an image")
    warp_px: float = Field(6.0, gt=0, le=64, description="largest displacement, pixels")
    residual_bound: float = Field(
        0.1, gt=0, le=1, description="largest residual at the coarsest scale, window units"
    )
    residual_levels: int = Field(
        4, ge=1, le=6, description="scales, each half the last one's bound: the finest is a pixel"
    )


class Probes(Frozen):
    """Lever A: gradients at probe weights along trajectories trained on the distilled set."""

    requests: int = Field(2, ge=0, le=64, description="Flower rounds spent on probes")
    depths: tuple[int, ...] = Field(
        (30, 120, 400), min_length=1, max_length=64, description="training steps of each probe"
    )
    steps: int = Field(100, ge=1, le=10_000, description="optimisation steps after each request")
    networks: tuple[Name, ...] = Field(
        ("student",), min_length=1, max_length=8, description="networks probed, request by request"
    )
    distance: Literal["l2", "cosine", "cosine-norm", "snr"] = Field(
        "l2", description="what the distilled gradient's distance from the raw one is"
    )
    form: Literal["exact", "finite-difference"] = Field(
        "exact", description="double backward, or central differences along the distance's slope"
    )
    draws: int = Field(2, ge=1, le=16, description="noise draws a slice in a raw gradient")
    clip_norm: float = Field(
        0.05, gt=0, le=1e6, description="L2 bound of one patient's gradient, before the mean"
    )


class Anchor(Frozen):
    """Lever B: accumulated gradients of local steps, averaged into one anchor network."""

    rounds: int = Field(4, ge=0, le=64, description="Flower rounds spent on the anchor")
    local_steps: int = Field(400, ge=1, le=5_000, description="optimiser steps a site, a round")
    batch: int = Field(4, ge=1, le=128, description="crops behind a local step")
    crop_px: int = Field(32, ge=16, le=512, description="edge of a crop, pixels")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="of the local steps")
    clip_norm: float = Field(3.0, gt=0, le=1e6, description="L2 bound of one accumulated gradient")
    public_steps: int = Field(3000, ge=0, le=100_000, description="steps of the public start")
    descent: Literal["site", "patient"] = Field(
        "site",
        description="whose local steps are averaged: the site's on all its slices, or each "
        "patient's own; clip_norm then bounds one patient's",
    )
    inputs: Literal["matched", "start"] = Field(
        "matched", description="images whose degraded versions the anchor answers for"
    )
    symmetric: bool = Field(
        True, description="targets are the anchor's mean over the eight dihedral transforms"
    )


class Privacy(Frozen):
    """What is done to a summary before it leaves: reduced, clipped patient by patient, noised."""

    directions: int = Field(
        0, ge=0, le=512, description="public principal directions a descent is projected on; 0: all"
    )
    basis: Hex32 | None = Field(
        None, description="SHA-256 of those directions; launch computes them and fills it in"
    )
    sketch: int = Field(
        0, ge=0, le=65_536, description="dimensions a probe's gradient is sketched to; 0: whole"
    )
    epsilon: float | None = Field(
        None, gt=0, le=1000, description="patient-level DP of the whole run; none: no noise"
    )
    delta: float = Field(
        1e-5, ge=accounting.LEAST_DELTA, lt=0.1, description="the delta that goes with epsilon"
    )
    noise: Literal["local", "distributed"] = Field(
        "local", description="each site's noise protects alone; or the secure sum's shares together"
    )
    honest: float = Field(
        0.5, gt=0, le=1, description="of distributed noise, the share of sites that add theirs"
    )
    patients: int = Field(
        10, ge=2, le=10_000, description="public number a site's noised sum is divided by"
    )
    sampling: float = Field(
        1.0, gt=0, le=1, description="chance that a patient takes part in a request (Poisson)"
    )


class Evaluation(Frozen):
    """What is asked of the hospitals once the pairs are there, on patients kept out of the run."""

    sites: bool = Field(
        False, description="sites keep patients back, and say how well networks do on them"
    )
    veto: bool = Field(False, description="sites compare the pairs with their patients, and object")
    silent: Literal["veto", "skip"] = Field(
        "veto", description="a site that does not answer objects, or is left out"
    )
    steps: int = Field(4800, ge=1, le=5000, description="training steps of each judged network")
    seeds: int = Field(1, ge=1, le=3, description="networks trained on each set")
    margin_db: float = Field(
        0.0, ge=0, le=20, description="dB by which the pairs must beat what needs no hospital"
    )

    max_source_ssim: float = Field(
        0.98, gt=0, le=1, description="SSIM of an image to the real one that it was started from"
    )

    @model_validator(mode="after")
    def _kept_back(self) -> "Evaluation":
        if not self.sites and self != Evaluation.model_construct():
            raise ValueError(
                "needs evaluation.sites = true: patients who are kept back are what it stands on"
            )
        return self


class Member(Frozen):
    """A site of a secure sum, and the key it signs with."""

    name: Slug
    signing_key: Hex32 = Field(description="Ed25519 public key")


class RunContract(Frozen):
    """What a run does with a hospital's images; the site checks it against its own policy.

    Raises pydantic's ``ValidationError`` on a field that is unknown or out of range.
    """

    version: Literal[1] = 1
    name: Slug = Field(description="name of the dataset the run publishes")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random in the run")
    task: Task = CtDenoise()
    granularity: Granularity = Field(
        "cohort", description="whom a summary stands for: a patient, or a site's mean over patients"
    )
    min_patients: int = Field(5, ge=2, le=10_000, description="patients behind every summary")
    images: int = Field(8, ge=1, le=1024, description="distilled pairs to publish")
    prior: PriorSource = Field(PriorSource(), validate_default=True)
    spg: Spg = Spg()
    student: Network = Residual()
    anchor_network: Network = Residual(depth=6, width=32)
    probes: Probes = Probes()
    anchor: Anchor = Anchor()
    privacy: Privacy = Privacy()
    evaluation: Evaluation = Field(
        Evaluation(),
        # A contract that asks for none keeps the digest it had before there was one.
        exclude_if=lambda value: not value.sites,
    )
    members: tuple[Member, ...] = Field(
        (), max_length=64, description="sites of a secure sum; launch fills them in"
    )

    @field_validator("task", "student", "anchor_network", mode="before")
    @classmethod
    def _named(cls, value: Any, about: ValidationInfo) -> Any:
        """A table without its ``name`` or ``kind`` is one of the default task or network."""
        if isinstance(value, dict):
            tag = "name" if about.field_name == "task" else "kind"
            return {tag: "ct-denoise" if tag == "name" else "residual", **value}
        return value

    @field_validator("prior", mode="after")
    @classmethod
    def _brains_for_mr(cls, value: PriorSource, about: ValidationInfo) -> PriorSource:
        """A contract that names no anatomy means the head in MR, the thorax in CT."""
        task = about.data.get("task")
        if task is None or task.modality == "CT" or "anatomy" in value.model_fields_set:
            return value
        return PriorSource.model_validate(
            {**value.model_dump(exclude_unset=True), "anatomy": "head"}
        )

    @model_validator(mode="after")
    def _consistent(self) -> "RunContract":
        if self.anchor.crop_px > self.task.size_px:
            raise ValueError("anchor.crop_px must not exceed task.size_px")
        order = ("federation", "cohort", "patient")
        if order.index(self.spg.persona) > order.index(self.granularity):
            raise ValueError(
                f"spg.persona '{self.spg.persona}' needs summaries as fine: "
                f"set granularity to '{self.spg.persona}'"
            )
        if self.rounds == 0:
            raise ValueError("probes.requests and anchor.rounds are both 0: nothing to ask a site")
        return self

    @model_validator(mode="after")
    def _private(self) -> "RunContract":
        privacy, patient_wise = self.privacy, self.anchor.descent == "patient"
        if privacy.epsilon is not None and self.anchor.rounds and not patient_wise:
            raise ValueError("privacy.epsilon needs anchor.descent 'patient': set it")
        if privacy.directions and not self.anchor.rounds:
            raise ValueError("privacy.directions project descents: anchor.rounds must not be 0")
        if privacy.basis is not None and not privacy.directions:
            raise ValueError("privacy.basis needs privacy.directions above 0")
        if privacy.noise == "distributed" and self.granularity != "federation":
            raise ValueError("privacy.noise 'distributed' needs granularity 'federation'")
        if privacy.sketch and self.probes.distance.startswith("cosine"):
            raise ValueError("privacy.sketch has no filters: set probes.distance to 'l2' or 'snr'")
        if self.members and self.granularity != "federation":
            raise ValueError("members are of a secure sum: set granularity to 'federation'")
        for own in ("name", "signing_key"):
            if len({getattr(member, own) for member in self.members}) != len(self.members):
                raise ValueError(f"members must each have a {own} of their own")
        return self

    @model_validator(mode="after")
    def _evaluable(self) -> "RunContract":
        if self.evaluation.sites and self.privacy.epsilon is not None:
            raise ValueError(
                "evaluation.sites gives figures without noise, which privacy.epsilon does not "
                "cover: leave one of the two out"
            )
        if self.evaluation.sites and self.granularity == "federation":
            raise ValueError(
                "evaluation.sites gives figures of each site by itself, which a secure sum hides: "
                "leave it out, or set granularity to 'cohort'"
            )
        return self

    @property
    def rounds(self) -> int:
        """Flower rounds of the whole run."""
        return self.anchor.rounds + self.probes.requests

    @property
    def noise_multiplier(self) -> float | None:
        """Noise on a patient-wise sum, over the most that one patient moves it; None: no DP.

        With it, as many releases as there are rounds cost ``privacy.epsilon``.
        """
        if self.privacy.epsilon is None:
            return None
        return accounting.noise_multiplier(
            epsilon=self.privacy.epsilon,
            delta=self.privacy.delta,
            releases=self.rounds,
            sampling=self.privacy.sampling,
        )

    @property
    def real_pairs(self) -> bool:
        """Whether a site answers for real pairs of images; else it degrades its own."""
        return isinstance(self.task, CtDenoise | CtKernel) and self.task.pairs == "real"

    def network(self, name: Name) -> Network:
        """The network a request names."""
        return self.student if name == "student" else self.anchor_network

    def foundation(self) -> str:
        """Digest of what the coordinator wrote, without what launch fills in.

        Of a contract that nothing was filled into, its :meth:`digest`.
        """
        bare = {"privacy": self.privacy.model_copy(update={"basis": None}), "members": ()}
        return self.model_copy(update=bare).digest()

    def reduced_to(self, kind: Kind) -> int:
        """How many numbers a row of an answer is reduced to; 0: it stays whole."""
        return self.privacy.directions if kind == "local-steps" else self.privacy.sketch

    def row_bound(self, kind: Kind) -> float:
        """The L2 norm to which one row of a patient's (or with descents a site's) is clipped."""
        return self.anchor.clip_norm if kind == "local-steps" else self.probes.clip_norm

    def patient_bound(self, kind: Kind, *, rows: int) -> float:
        """The L2 norm C of everything that one patient adds to an answer of so many rows."""
        return self.row_bound(kind) * math.sqrt(rows)

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


def read_contract(path: Path) -> RunContract:
    """Reads a contract from TOML.

    Raises ``ContractError`` naming the field (or the line) and what to do.
    """
    try:
        return RunContract.model_validate(parsed_toml(path.read_text("utf-8")))
    except OSError as error:
        raise ContractError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ContractError(f"{path}: is not valid TOML: {error}") from None
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ContractError(f"{path}: {explain(error)}") from None


def parsed_toml(text: str) -> dict[str, Any]:
    """A contract's document; raises ``ContractError``, also of what is nested beyond reason."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ContractError("is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # tomllib's own, and a number of thousands of digits
        raise ContractError(f"is not valid TOML: {error}") from None

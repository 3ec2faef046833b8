"""Headers of what is asked of sites once a run is over: figures of networks, and a veto on images.

A site answers with figures over all patients it kept back and with verdicts, in coarse steps.
"""

from typing import Annotated, Literal

from pydantic import Field

from shared.contract import Hex32, RunContract
from shared.frozen import Frozen, Slug
from shared.mandate import Mandate

PSNR_STEP_DB, SSIM_STEP, RATIO_STEP = 0.1, 0.005, 0.05
"""How exact the figures are that a site tells of its patients."""
MAX_PSNR_DB = 60.0
"""A patient whose images come out better counts as so good."""
MAX_RATIO = 5.0


def in_steps(value: float, step: float) -> float:
    """``value`` to the nearest multiple of ``step``, without the rounding of the product."""
    return round(round(value / step) * step, 6)


class EvaluateHeader(Frozen):
    """Aggregator to site: how well do these networks do on the patients you kept back?"""

    type: Literal["evaluate"] = "evaluate"
    contract: RunContract
    contract_digest: Hex32
    mandate: Mandate | None = None


class EvaluationHeader(Frozen):
    """Site to aggregator: a figure a network, over all patients kept back, and coarse.

    Of the untouched LQ first, then of each row of ``weights``, then of ``anchor`` if it was sent.
    PSNR in steps of ``PSNR_STEP_DB``, SSIM of ``SSIM_STEP``.
    """

    type: Literal["evaluation"] = "evaluation"
    site: Slug
    contract_digest: Hex32
    request_digest: Hex32
    psnr_db: tuple[Annotated[float, Field(ge=0, le=MAX_PSNR_DB)], ...] = Field(max_length=64)
    ssim: tuple[Annotated[float, Field(ge=-1, le=1)], ...] = Field(max_length=64)
    patients_at_least: int = Field(ge=1, description="patients kept back, rounded down to a bucket")
    seconds: float = Field(ge=0)
    audit_head: Hex32 | None = None


class VetoQueryHeader(Frozen):
    """Aggregator to site: are these images, or is any, too like a patient of yours?"""

    type: Literal["veto-query"] = "veto-query"
    contract: RunContract
    contract_digest: Hex32
    mandate: Mandate | None = None


class VetoHeader(Frozen):
    """Site to aggregator: its verdict, with figures in coarse steps."""

    type: Literal["veto"] = "veto"
    site: Slug
    contract_digest: Hex32
    request_digest: Hex32
    passed: bool
    ratio_ssim: float = Field(ge=0, le=MAX_RATIO, description="in steps of RATIO_STEP")
    ratio_ncc: float = Field(ge=0, le=MAX_RATIO, description="in steps of RATIO_STEP")
    too_alike: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        max_length=16_384, description="numbers of the images the site objects to"
    )
    seconds: float = Field(ge=0)
    audit_head: Hex32 | None = None

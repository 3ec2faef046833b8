"""Summaries: what a site's patients add up to, in the form in which it may leave.

Of every patient a request asks a part (K, D); it is reduced as the contract says, clipped as a
whole, and summed. At granularity ``patient`` each one's gradients are a block of their own. The
descent of a site as a whole, which no contract with noise allows, is clipped before it is reduced.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.bounds import within_bounds
from shared.contract import RunContract
from shared.gradients import (
    clip,
    cohort_gradients,
    local_descent,
    patient_gradients,
    patient_parts,
    patient_sum,
    request_seed,
)
from shared.messages import (
    MAX_BYTES,
    MAX_HEADER_BYTES,
    FloatArray,
    ProbeHeader,
    RefusalCode,
    patient_bucket,
    values_shape,
)
from shared.reduction import Reduction, ReductionError, reduction_of
from site_agent.cohort import Cohort
from site_agent.incidents import RefusedError
from site_agent.settings import SiteSettings


@dataclass(frozen=True, eq=False)
class Inquiry:
    """A request whose arrays have been checked, and the patients who answer it."""

    header: ProbeHeader
    weights: Tensor  # (K, D)
    reduce: Reduction
    patients: tuple[Tensor, ...]  # (n_i, 1, S, S) each
    seed: int

    @property
    def contract(self) -> RunContract:
        """What was agreed."""
        return self.header.contract

    @property
    def patients_at_least(self) -> int:
        """What may be told of the patients' number: of a secure sum, nothing new."""
        if self.contract.granularity == "federation":
            return patient_bucket(self.contract.min_patients)
        return patient_bucket(len(self.patients))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the answer: (K, R), at granularity patient (P, K, R)."""
        return values_shape(self.header, self.weights.shape, patients=len(self.patients))

    def parts(self) -> Iterator[Tensor]:
        """What is asked of one patient after the other, reduced, not clipped: (K, R)."""
        asked = patient_parts(
            contract=self.contract,
            kind=self.header.kind,
            network=self.header.network,
            weights=self.weights,
            patients=self.patients,
            seed=self.seed,
            device=self.weights.device,
        )
        return (self.reduce(part) for part in asked)


def inquiry(
    header: ProbeHeader,
    arrays: Mapping[str, FloatArray],
    *,
    cohort: Cohort,
    settings: SiteSettings,
) -> Inquiry:
    """A request to ``cohort``. Raises ``RefusedError`` where it is not its contract's reduction."""
    where, weights, contract = device(), arrays["weights"], header.contract
    try:
        reduce = reduction_of(
            contract,
            arrays,
            kind=header.kind,
            network=header.network,
            round=header.round,
            probes=len(weights),
            device=where,
        )
    except ReductionError as error:
        raise RefusedError(RefusalCode.BAD_REDUCTION, str(error)) from None
    speaking = _speaking(header, weights, cohort, at_most=settings.policy.max_patients)
    images = _images(cohort, contract.task.size_px, *contract.task.window, where)
    return Inquiry(
        header=header,
        weights=torch.from_numpy(np.array(weights, dtype=np.float32)).to(where),
        reduce=reduce,
        patients=tuple(images[number] for number in speaking),
        seed=request_seed(header.contract_digest, header.round, settings.name),
    )


def summarise(asked: Inquiry) -> FloatArray:
    """The answer. Raises ``RuntimeError`` where it is not one that may leave."""
    if _by_patient(asked.header):
        result = _blocks(asked)
    else:
        numerator, weight = contribution(asked)
        result = torch.from_numpy(numerator / weight).view(asked.shape)
    values: FloatArray = result.detach().to("cpu", torch.float32).numpy()
    if values.shape != asked.shape or not bool(np.isfinite(values).all()):
        raise RuntimeError("the result has another shape, or is not finite")
    if not within_bounds(values, asked.contract, asked.header.kind):
        raise RuntimeError("the result exceeds the contract's bound")
    return values


def contribution(asked: Inquiry) -> tuple[NDArray[np.float64], float]:
    """A numerator (K * R,) and its weight: the sites' mean is the ratio of their sums.

    Clear, the weight is the number of patients, rounded down to its bucket.
    """
    weight = float(patient_bucket(len(asked.patients)))
    numerator = weight * _mean(asked).detach().double().flatten()
    return numerator.cpu().numpy(), weight


def _mean(asked: Inquiry) -> Tensor:
    """Clear mean over patients (K, R)."""
    contract, kind = asked.contract, asked.header.kind
    if kind == "local-steps" and contract.anchor.descent == "site":
        descent = local_descent(
            contract=contract,
            network=asked.header.network,
            weights=asked.weights[0],
            patients=asked.patients,
            seed=asked.seed,
            device=asked.weights.device,
        )
        return asked.reduce(descent[None])
    if kind == "gradients" and not contract.privacy.sketch:
        return cohort_gradients(
            contract=contract,
            network=asked.header.network,
            weights=asked.weights,
            patients=asked.patients,
            seed=asked.seed,
            device=asked.weights.device,
        )
    bound = contract.patient_bound(kind, rows=len(asked.weights))
    return patient_sum(asked.parts(), bound=bound) / len(asked.patients)


def _blocks(asked: Inquiry) -> Tensor:
    """Clear gradients patient by patient: (P, K, R)."""
    contract = asked.contract
    if not contract.privacy.sketch:
        return patient_gradients(
            contract=contract,
            network=asked.header.network,
            weights=asked.weights,
            patients=asked.patients,
            seed=asked.seed,
            device=asked.weights.device,
        )
    bound = contract.patient_bound("gradients", rows=len(asked.weights))
    return torch.stack([clip(part, norm=bound) for part in asked.parts()])


def device() -> torch.device:
    """Where gradients are computed: the first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _by_patient(header: ProbeHeader) -> bool:
    return header.contract.granularity == "patient" and header.kind == "gradients"


def _speaking(
    header: ProbeHeader, weights: FloatArray, cohort: Cohort, *, at_most: int
) -> list[int]:
    """The patients an answer is of, by their places in the cohort, in the order of the answer.

    At granularity patient the order is that of a hash of contract and pseudonym: the same in all
    rounds of a run, another one in every run, so that patients of two runs cannot be matched by
    their places; and beyond ``at_most`` patients the rest is left out.
    """
    contract = header.contract
    everyone = list(range(cohort.patients))
    if not _by_patient(header):
        return everyone
    if at_most < contract.min_patients:
        raise RefusedError(
            RefusalCode.POLICY,
            f"policy.max_patients {at_most} is below the contract's {contract.min_patients}",
        )
    names = cohort.index.patients
    everyone.sort(key=lambda number: request_seed(header.contract_digest, names[number]))
    speaking = everyone[:at_most]
    size = 4 * math.prod(values_shape(header, weights.shape, patients=len(speaking)))
    if size > MAX_BYTES - MAX_HEADER_BYTES:
        raise RefusedError(
            RefusalCode.POLICY,
            f"an answer of {size} bytes, one block a patient, is larger than a message may be: "
            "lower policy.max_patients, or ask for fewer weights",
        )
    return speaking


@lru_cache(maxsize=2)
def _images(
    cohort: Cohort, size_px: int, low: float, high: float, where: torch.device
) -> tuple[Tensor, ...]:
    """A cohort's images on the device: kept, as all requests of a run use the same ones."""
    images = cohort.images(size_px=size_px, low=low, high=high)
    return tuple(torch.from_numpy(image).to(where) for image in images)

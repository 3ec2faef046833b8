"""Summaries: what a site's patients add up to, in the form in which it may leave.

Of every patient a request asks a part (K, D); it is reduced as the contract says, clipped as a
whole, and summed; of a clear sum of gradients, what one patient alone moves is left out
(``solitary.py``). At granularity ``patient`` each one's gradients are a block of their own. The
descent of a site as a whole, which no contract with noise allows, is clipped before it is reduced.

With differential privacy:

1. patients take part by chance, each with the contract's probability, drawn anew for every request;
2. their parts, clipped to C, are summed; the sum is clipped to n0 q C, the length of as many
   patients as the contract says (n0) in as many requests as they take part in (q). That moves no
   two sums apart, and a site with more patients than that pulls no harder;
3. Gaussian noise of standard deviation z C, or a member's share of it, is added;
4. the noised sum is divided by n0 q: not by the number of patients, which stays at home.

At granularity ``patient`` there are n0 blocks, with noise of z C on each and divided by q. Blocks
that are left over are noise alone and lie among the others; patients beyond n0 are left out.
"""

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.bounds import within_bounds
from shared.contract import Privacy, RunContract
from shared.gradients import (
    clip,
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
from site_agent.noise import noised
from site_agent.settings import SiteSettings
from site_agent.solitary import Tally

_RANDOM = secrets.SystemRandom()


@dataclass(frozen=True, eq=False)
class Inquiry:
    """A request whose arrays have been checked, and the patients who answer it."""

    header: ProbeHeader
    weights: Tensor  # (K, D)
    reduce: Reduction
    basis: Tensor | None  # (k, D), which local steps stay in
    patients: tuple[Tensor, ...]  # (n_i, 1, S, S) each; real pairs (n_i, 2, S, S): HQ, LQ
    taken: tuple[bool, ...]
    """Of an answer's blocks by patient, which have one: the patients' order is theirs."""
    seed: int

    @property
    def contract(self) -> RunContract:
        """What was agreed."""
        return self.header.contract

    @property
    def patients_at_least(self) -> int:
        """What may be told of the patients' number: in a secure sum or under noise, nothing new."""
        if self.contract.granularity == "federation" or self.contract.privacy.epsilon is not None:
            return patient_bucket(self.contract.min_patients)
        return patient_bucket(len(self.patients))

    @property
    def bound(self) -> float:
        """C: how much one patient may add to the answer, in L2 norm."""
        return self.contract.patient_bound(self.header.kind, rows=len(self.weights))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the answer: (K, R), at granularity patient (P, K, R)."""
        return values_shape(self.header, self.weights.shape, patients=len(self.taken))

    def parts(self, patients: Sequence[Tensor]) -> Iterator[Tensor]:
        """What is asked of one of ``patients`` after the other, reduced, not clipped: (K, R)."""
        return (self.reduce(part) for part in self.whole(patients))

    def whole(self, patients: Sequence[Tensor]) -> Iterator[Tensor]:
        """The same before it is reduced: (K, D)."""
        return patient_parts(
            contract=self.contract,
            kind=self.header.kind,
            network=self.header.network,
            weights=self.weights,
            patients=patients,
            seed=self.seed,
            device=self.weights.device,
            basis=self.basis,
        )


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
    images = images_of(cohort, contract.task.size_px, *contract.task.window, where)
    return Inquiry(
        header=header,
        weights=torch.from_numpy(np.array(weights, dtype=np.float32)).to(where),
        reduce=reduce,
        basis=torch.from_numpy(np.array(arrays["basis"])).to(where) if "basis" in arrays else None,
        patients=tuple(images[number] for number in speaking if number is not None),
        taken=tuple(number is not None for number in speaking),
        seed=request_seed(header.contract_digest, header.round, settings.name),
    )


def summarise(asked: Inquiry, *, noise_multiplier: float | None) -> FloatArray:
    """The answer, noised with a multiplier that has been charged, or clear.

    Raises ``RuntimeError`` where it is not one that may leave.
    """
    if not _by_patient(asked.header):
        numerator, weight = contribution(asked, noise_multiplier=noise_multiplier)
        result = (numerator / weight).reshape(asked.shape)
    elif noise_multiplier is None:
        result = _blocks(asked).detach().cpu().numpy()
    else:
        result = _noised_blocks(asked, noise_multiplier)
    values = result.astype(np.float32)
    if values.shape != asked.shape or not bool(np.isfinite(values).all()):
        raise RuntimeError("the result has another shape, or is not finite")
    if not within_bounds(values, asked.contract, asked.header.kind):
        raise RuntimeError("the result exceeds the contract's bound")
    return values


def contribution(
    asked: Inquiry, *, noise_multiplier: float | None
) -> tuple[NDArray[np.float64], float]:
    """A numerator (K * R,) and its weight: the sites' mean is the ratio of their sums.

    Clear, the weight is the number of patients, rounded down to its bucket; with noise it is n0 q.
    """
    if noise_multiplier is None:
        weight = float(patient_bucket(len(asked.patients)))
        mean = weight * _mean(asked).detach().double()
        return mean.flatten().cpu().numpy(), weight
    privacy = asked.contract.privacy
    weight = privacy.patients * privacy.sampling
    total = torch.zeros(asked.shape, dtype=torch.float64)
    present = [slices for slices in asked.patients if _takes_part(privacy)]
    if present:
        summed = patient_sum(asked.parts(present), bound=asked.bound)
        total = clip(summed.detach().cpu(), norm=weight * asked.bound)
    deviation = noise_multiplier * asked.bound
    if privacy.noise == "distributed":
        deviation /= max(1, math.floor(privacy.honest * len(asked.header.offers))) ** 0.5
    return noised(total.flatten().numpy(), deviation=deviation), weight


def _noised_blocks(asked: Inquiry, noise_multiplier: float) -> NDArray[np.float64]:
    """Noised gradients patient by patient (n0, K, R), divided by the chance to take part."""
    privacy = asked.contract.privacy
    blocks = torch.zeros(asked.shape, dtype=torch.float64)
    places = [place for place, taken in enumerate(asked.taken) if taken]
    for place, slices in zip(places, asked.patients, strict=True):
        if _takes_part(privacy):
            blocks[place] = patient_sum(asked.parts([slices]), bound=asked.bound).detach().cpu()
    return noised(blocks.numpy(), deviation=noise_multiplier * asked.bound) / privacy.sampling


def _takes_part(privacy: Privacy) -> bool:
    """Whether a patient takes part in this request: the operating system draws."""
    return _RANDOM.random() < privacy.sampling


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
            basis=asked.basis,
        )
        return asked.reduce(descent[None])
    if kind == "gradients":
        tally = Tally(contract.network(asked.header.network))
        for part in asked.whole(asked.patients):
            tally.add(_as_it_counts(part, asked))
        return asked.reduce(tally.mean().to(asked.weights))
    return patient_sum(asked.parts(asked.patients), bound=asked.bound) / len(asked.patients)


def _as_it_counts(part: Tensor, asked: Inquiry) -> Tensor:
    """One patient's gradients (K, D): row by row, or where they are sketched together, clipped."""
    if not asked.contract.privacy.sketch:
        bound = asked.contract.row_bound("gradients")
        return torch.stack([clip(row, norm=bound) for row in part.double()])
    length = asked.reduce(part).double().norm()
    if not bool(torch.isfinite(length)):
        return torch.zeros_like(part, dtype=torch.float64)
    return part.double() * torch.clamp(asked.bound / length.clamp_min(1e-30), max=1.0)


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
    return torch.stack([clip(part, norm=asked.bound) for part in asked.parts(asked.patients)])


def device() -> torch.device:
    """Where gradients are computed: the first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _by_patient(header: ProbeHeader) -> bool:
    return header.contract.granularity == "patient" and header.kind == "gradients"


def _speaking(
    header: ProbeHeader, weights: FloatArray, cohort: Cohort, *, at_most: int
) -> list[int | None]:
    """The patients an answer is of, by their places in the cohort, in the order of the answer.

    At granularity patient the order is that of a hash of contract and pseudonym: the same in all
    rounds of a run, another one in every run, so that patients of two runs cannot be matched by
    their places; and beyond ``at_most`` patients the rest is left out. With noise there are as many
    places as the contract says; those of nobody, None, are scattered by the same hash.
    """
    contract = header.contract
    if not _by_patient(header):
        return list(range(cohort.patients))
    if at_most < contract.min_patients:
        raise RefusedError(
            RefusalCode.POLICY,
            f"policy.max_patients {at_most} is below the contract's {contract.min_patients}",
        )

    def place(name: str) -> int:
        return request_seed(header.contract_digest, name)

    names = cohort.index.patients
    speaking = sorted(names, key=place)[:at_most]
    if contract.privacy.epsilon is not None:
        speaking = speaking[: contract.privacy.patients]
        # The pseudonyms, which nobody else knows, keep the places of nobody from being guessed.
        nobody = ["/".join([*names, str(n)]) for n in range(contract.privacy.patients)]
        speaking = sorted(speaking + nobody[len(speaking) :], key=place)
    size = 4 * math.prod(values_shape(header, weights.shape, patients=len(speaking)))
    if size > MAX_BYTES - MAX_HEADER_BYTES:
        raise RefusedError(
            RefusalCode.POLICY,
            f"an answer of {size} bytes, one block a patient, is larger than a message may be: "
            "lower policy.max_patients, or ask for fewer weights",
        )
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers.get(name) for name in speaking]


@lru_cache(maxsize=2)  # those asked, and those kept back
def images_of(
    cohort: Cohort, size_px: int, low: float, high: float, where: torch.device
) -> tuple[Tensor, ...]:
    """A cohort's images on the device: kept, as all requests of a run use the same ones."""
    images = cohort.images(size_px=size_px, low=low, high=high)
    return tuple(torch.from_numpy(image).to(where) for image in images)

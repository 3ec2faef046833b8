"""The training sets of the utility table: one row of it each, and how each is made.

No hospital's data:

- ``prior``: what the distilled images stand on, as it is. Of a phantom, without its texture.
- ``prior_warped``: the start images under random warps and tone curves, not matched to anything.
- ``prior_textured``: 48 textured phantoms.
- ``public_direct``: every public slice; ``public_and_textured``: those and 8 or 48 of the phantoms.
- ``public_anchored``: the start images, or all that is free, with the targets of the network that
  was trained on what is free. Whatever anchoring does by itself, without a hospital.
- ``noise_targets``: the same matching as the distilled set's, towards random vectors of the length
  that gradients have, with the same free network's targets. Whatever matching does by itself.

Hospitals' data:

- ``distilled``: the released pairs, as published.
- ``anchor``: no training set: the anchor network itself.
- ``real_same_bytes``: as many real slices as there are pairs, one degraded version each.
- ``full``: all of the hospitals' training slices.

Every set but the two whose bytes are counted is seen with eight or more draws of noise a slice.
Where a row has variants, all are judged and the best one is the row: nulls are given every chance.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregator.distill.controls import prior_warped
from aggregator.distill.prior import Prior, covering, phantoms
from shared.architectures import Network
from shared.contract import RunContract
from shared.gradients import request_seed
from shared.tasks.degradation import parts
from shared.tasks.settings import Task
from shared.training import enhance, enhance_symmetric, noisy_pool

Images = NDArray[np.float32]

LEAST_DRAWS = 8
LEAST_PAIRS = 96
TEXTURED = 48
FEW_TEXTURED = 8


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network and its weights (D,), which gives targets or is judged itself."""

    network: Network
    weights: Tensor
    symmetric: bool

    def restore(self, lq: Tensor) -> Tensor:
        """Its answers to (N, 1, S, S); ``symmetric``: their mean over the square's symmetries."""
        answer = enhance_symmetric if self.symmetric else enhance
        return answer(self.network, self.weights.to(lq.device), lq)


@dataclass(frozen=True, eq=False)
class Arm:
    """A row's training set, or one of its variants, of one distillation; made when it is needed.

    ``hq`` (N, 1, S, S) is degraded ``draws`` times from ``seed``, unless ``lq`` comes with it;
    ``teacher`` replaces the targets by its answers. An arm without ``hq`` is no training set: its
    teacher is judged, or the untouched input.
    """

    name: str
    hq: Tensor | None = None
    lq: Tensor | None = None
    draws: int = 0
    seed: int = 0
    teacher: Teacher | None = None
    variant: str = ""

    def pairs(self, task: Task) -> tuple[Tensor, Tensor]:
        """LQ (M, 1, S, S), and HQ of as many or, repeated draw by draw, fewer."""
        assert self.hq is not None
        lq = self.lq
        if lq is None:
            lq = noisy_pool(task, self.hq, draws=self.draws, seed=self.seed)
        return lq, self.hq if self.teacher is None else self.teacher.restore(lq)

    def digest(self) -> str:
        """SHA-256 (hex) of everything that a student's training on it depends on."""
        content = hashlib.sha256()
        weights = None if self.teacher is None else self.teacher.weights
        for tensor in (self.hq, self.lq, weights):
            if tensor is not None:
                content.update(str(tuple(tensor.shape)).encode())
                content.update(np.ascontiguousarray(tensor.cpu().numpy(), "<f4").tobytes())
            content.update(b";")
        taught = ""
        if self.teacher is not None:
            taught = f"{self.teacher.network.model_dump_json()} {self.teacher.symmetric}"
        content.update(repr((self.draws, self.seed, taught)).encode())
        return content.hexdigest()


@dataclass(frozen=True, eq=False)
class Distillation:
    """What one distillation leaves to be judged, and the nulls that go with it."""

    contract: RunContract
    lq: Tensor
    hq: Tensor
    anchor: Teacher | None = None
    public: Teacher | None = None  # the network trained on what is free
    noise: Tensor | None = None  # images matched towards random vectors


def training_sets(
    rows: Collection[str],
    *,
    contract: RunContract,
    distillations: Sequence[Distillation],
    prior: Prior,
    train: Sequence[Images],
    public: Sequence[Images] | None,
    every_variant: bool = True,
) -> list[Arm]:
    """The arms of the wanted ``rows`` that can be made of what is there, in the table's order.

    Args:
        contract: of the first distillation; the others differ in their seed.
        prior: of the contract.
        train: the hospitals' training patients, (n, 1, S, S) each; none: no such row.
        public: public patients, where there are any.
        every_variant: judge each variant of a null, not the one that was the best so far alone.
    """
    task, made = contract.task, [Arm("input")]
    # The texture of a phantom is a part of the method: `prior` is without it, where it can be.
    start = prior.start
    if contract.prior.kind == "phantom":
        start = covering(phantoms(contract, count=TEXTURED, textured=False), contract.images)
    textured = phantoms(contract, count=TEXTURED, textured=True)
    made.append(drawn("prior", start))
    for one in distillations:
        seed = request_seed(one.contract.digest(), "warped")
        made.append(drawn("prior_warped", prior_warped(one.contract, prior, seed=seed)))
    made.append(drawn("prior_textured", textured))
    if public:
        slices = torch.from_numpy(np.concatenate(list(public)))
        made.append(drawn("public_direct", slices))
        for count in (FEW_TEXTURED, TEXTURED) if every_variant else (FEW_TEXTURED,):
            both = torch.cat([slices, covering(textured, count)])
            made.append(drawn("public_and_textured", both, variant=f"{count} phantoms"))
    for one in distillations:
        if one.public is not None:
            made.append(drawn("public_anchored", prior.start, one.public, "start images"))
            if every_variant:
                made.append(drawn("public_anchored", prior.free, one.public, "all that is free"))
    made += [
        drawn("noise_targets", one.noise, one.public)
        for one in distillations
        if one.noise is not None
    ]
    made += [Arm("distilled", one.hq, lq=one.lq) for one in distillations]
    made += [Arm("anchor", teacher=one.anchor) for one in distillations if one.anchor is not None]
    if train:
        draws = len(parts(task))
        count = max(1, len(distillations[0].hq) // draws)
        real = Arm("real_same_bytes", evenly_over_patients(train, count), draws=draws, seed=_SEED)
        made += [real, drawn("full", torch.from_numpy(np.concatenate(list(train))))]
    return [arm for arm in made if arm.name in rows]


def drawn(name: str, hq: Tensor, teacher: Teacher | None = None, variant: str = "") -> Arm:
    """An arm that sees eight or more draws a slice."""
    draws = max(LEAST_DRAWS, LEAST_PAIRS // hq.shape[0])
    return Arm(name, hq, draws=draws, seed=_SEED, teacher=teacher, variant=variant)


_SEED = request_seed("utility")


def evenly_over_patients(patients: Sequence[Images], count: int) -> Tensor:
    """``count`` slices (count, 1, S, S) of as many different patients as there are.

    Patients evenly spread over their order, the middle slice of each; where more slices than
    patients are wanted, further ones of each, evenly spread over the patient; with repetition only
    where there are no more.
    """
    number = len(patients)
    shares = [count // number + (place < count % number) for place in range(number)]
    if count < number:
        chosen = np.linspace(0, number - 1, count).round().astype(int)
        shares = [int(place in chosen) for place in range(number)]
    slices = [
        patient[int((turn + 0.5) * len(patient) / share)]
        for patient, share in zip(patients, shares, strict=True)
        for turn in range(share)
    ]
    return torch.from_numpy(np.stack(slices))

"""What leaves the sites in each mode, computed as they compute it, with the truth beside it.

The attacks ask what the contract's run asks: the first request for descents, and the requests for
gradients at weights trained on the prior, as they are before any answer has moved it. Of every
patient the same part is computed as at a site (:func:`shared.gradients.patient_parts`), reduced and
clipped; a mode's answers are means of these, with the contract's noise where it has some.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregator.attacks.scene import Scene
from aggregator.distill.directions import OnStep
from aggregator.distill.distiller import Distiller
from aggregator.simulate import site_mean
from shared.contract import Granularity, Kind, Name
from shared.gradients import ROUNDING, clip, local_descent, patient_parts, request_seed
from shared.messages import patient_bucket
from shared.reduction import sketched, sketches_of
from shared.sketch import Sketch
from shared.subspace import lift, project

OnPatient = Callable[[], None]
"""Called when a patient's part is there."""
MODES: tuple[Granularity, ...] = ("patient", "cohort", "federation")


def _silent() -> None:
    """The default listener."""


@dataclass(frozen=True, eq=False)
class Question:
    """A request of the run: gradients or a descent, at weights that everybody knows."""

    round: int
    kind: Kind
    network: Name
    weights: Tensor  # (K, D)
    sketches: tuple[Sketch, ...]
    """One a probe, where gradients are sketched."""
    basis: Tensor | None
    """(R, D), orthonormal, where descents go along public directions."""
    is_of_site: bool
    """Whether a site answers for all of its patients at once, not patient by patient."""

    def reduced(self, rows: Tensor) -> Tensor:
        """Of (K, D), what is sent: (K, R)."""
        if self.sketches:
            return sketched(self.sketches, rows)
        return rows if self.basis is None else project(self.basis, rows)

    def lifted(self, values: Tensor) -> Tensor:
        """Descents (K, R) as vectors (K, D)."""
        return values if self.basis is None else lift(self.basis, values)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the aggregator learns of some patients together."""

    values: Tensor  # (K, R)
    patients: tuple[int, ...]
    """Places among the scene's participants of those who are in it."""


def questions(scene: Scene, *, on_step: OnStep) -> list[Question]:
    """The first request for descents, and every request for gradients, of the contract's run."""
    contract = scene.contract
    distiller = Distiller(
        contract, scene.prior, device=scene.device, on_step=on_step, foundation=scene.foundation
    )
    descents = [0] if contract.anchor.rounds else []
    if descents:
        distiller.prepare()
    else:
        distiller.anchor_weights = torch.empty(0)  # nobody asks for descents of it
    asked = []
    for done in [*descents, *range(contract.anchor.rounds, contract.rounds)]:
        distiller.round = done  # no answer is needed to ask: the set is the prior still
        asked.append(next_question(distiller))
    return asked


def next_question(distiller: Distiller) -> Question:
    """What a prepared distiller asks next."""
    contract = distiller.contract
    ask, weights = distiller.ask()
    arrays, sketches = distiller.reducing(), list[Sketch]()
    if "scales" in arrays:
        sketches = sketches_of(contract, arrays["scales"], network=ask.network, round=ask.round)
    return Question(
        round=ask.round,
        kind=ask.kind,
        network=ask.network,
        weights=weights,
        sketches=tuple(sketches),
        basis=arrays.get("basis"),
        is_of_site=ask.kind == "local-steps" and contract.anchor.descent == "site",
    )


def parts(
    scene: Scene,
    question: Question,
    patients: Sequence[Tensor],
    *,
    site: str,
    on_patient: OnPatient = _silent,
) -> Tensor:
    """Each patient's clipped part of ``site``'s answer: (P, K, R), of clear gradients (P, K, D).

    A patient's noise and crops follow from the site's name and the images, as at the site.
    """
    contract, kind = scene.contract, question.kind
    asked = _each(
        patient_parts(
            contract=contract,
            kind=kind,
            network=question.network,
            weights=question.weights,
            patients=patients,
            seed=_seed(scene, question, site),
            device=scene.device,
            basis=question.basis,
        ),
        on_patient,
    )
    clear = contract.noise_multiplier is None and kind == "gradients"
    if clear and not question.sketches:
        bound = contract.row_bound(kind)
        return torch.stack([torch.stack([clip(row, norm=bound) for row in part]) for part in asked])
    bound = _bound(scene, question) * (1 - ROUNDING)
    if not clear:
        return torch.stack([clip(question.reduced(part), norm=bound) for part in asked])
    # What only one patient moves is left out before a clear sum is sketched.
    lengths = ((part, question.reduced(part).norm().clamp_min(1e-30)) for part in asked)
    return torch.stack([part * torch.clamp(bound / length, max=1.0) for part, length in lengths])


def _each(found: Iterable[Tensor], on_patient: OnPatient) -> Iterator[Tensor]:
    for part in found:
        yield part
        on_patient()


def sent(question: Question, chosen: Tensor) -> Tensor:
    """Patients' parts as they are at granularity patient: (P, K, R)."""
    if question.sketches and chosen.shape[-1] == question.weights.shape[-1]:
        return torch.stack([question.reduced(part) for part in chosen])
    return chosen


def _together(scene: Scene, question: Question, patients: Sequence[Tensor], *, site: str) -> Tensor:
    """The one descent of a ``site`` with these patients, clipped and reduced: (1, R)."""
    descent = local_descent(
        contract=scene.contract,
        network=question.network,
        weights=question.weights[0],
        patients=patients,
        seed=_seed(scene, question, site),
        device=scene.device,
        basis=question.basis,
    )
    return question.reduced(descent[None])


def mixture(
    scene: Scene,
    question: Question,
    sites: Sequence[Tensor],
    *,
    patients: Sequence[int],
    generator: torch.Generator,
    releases: int = 1,
) -> Tensor:
    """What is learned of sites together, each of whose patients have parts (P, K, ...): (K, R).

    Clear, the mean that each site makes, weighted by its ``patients``. With noise, some take part
    by chance; their sum is clipped, noised as so many sites noise it, and divided by the public
    number of patients. The mean of several ``releases`` of the same patients has less noise.
    """
    privacy, count = scene.contract.privacy, len(sites)
    if scene.contract.noise_multiplier is None:
        weights = [patient_bucket(one) for one in patients]
        means = [_clear_mean(scene, question, chosen) for chosen in sites]
        shares = [weight / sum(weights) for weight in weights]
        return torch.stack([w * mean for w, mean in zip(shares, means, strict=True)]).sum(dim=0)
    weight = privacy.patients * privacy.sampling
    longest = weight * _bound(scene, question)
    present = [_of_those_present(chosen, privacy.sampling, generator) for chosen in sites]
    total = torch.stack([clip(one, norm=longest) for one in present]).sum(dim=0)
    noisy = max(1, math.floor(privacy.honest * count)) if privacy.noise == "distributed" else 1
    scale = math.sqrt(count / noisy / releases)
    return (total + scale * _noise(scene, question, total, generator)) / (weight * count)


def block(scene: Scene, question: Question, part: Tensor, *, generator: torch.Generator) -> Tensor:
    """What is learned of one patient's part (K, R) at granularity patient: (K, R)."""
    privacy = scene.contract.privacy
    if scene.contract.noise_multiplier is None:
        return part
    total = _of_those_present(part[None], privacy.sampling, generator)
    return (total + _noise(scene, question, total, generator)) / privacy.sampling


def gathered(
    scene: Scene, question: Question, *, on_patient: OnPatient = _silent
) -> dict[str, Tensor]:
    """What each site adds up: its patients' parts (P, K, ...), or its one descent (1, 1, R)."""
    return {
        site: added_up(scene, question, own, site=site, on_patient=on_patient)
        for site, own in scene.sites.items()
    }


def added_up(
    scene: Scene,
    question: Question,
    patients: Sequence[Tensor],
    *,
    site: str,
    on_patient: OnPatient = _silent,
) -> Tensor:
    """What a ``site`` with these patients adds up."""
    if not question.is_of_site:
        return parts(scene, question, patients, site=site, on_patient=on_patient)
    descent = _together(scene, question, patients, site=site)[None]
    for _ in patients:
        on_patient()
    return descent


def answers(
    scene: Scene,
    question: Question,
    sites: Mapping[str, Tensor],
    mode: Granularity,
    *,
    generator: torch.Generator,
) -> list[Answer]:
    """What the aggregator gets of the ``gathered`` in ``mode``: of a patient, of a site, of all.

    Descents are never of one patient alone: at granularity patient they are those of a cohort.
    """
    members = {site: tuple(scene.members(site)) for site in sites}
    if mode == "patient" and question.kind == "gradients":
        return [
            Answer(block(scene, question, part, generator=generator), (place,))
            for site, chosen in sites.items()
            for part, place in zip(sent(question, chosen), members[site], strict=True)
        ]
    groups = [list(sites)] if mode == "federation" else [[site] for site in sites]
    return [
        Answer(
            mixture(
                scene,
                question,
                [sites[site] for site in group],
                patients=[len(members[site]) for site in group],
                generator=generator,
            ),
            tuple(place for site in group for place in members[site]),
        )
        for group in groups
    ]


def _clear_mean(scene: Scene, question: Question, chosen: Tensor) -> Tensor:
    """The mean (K, R) that a site makes of its patients' parts."""
    if question.kind == "local-steps":
        return chosen.mean(dim=0)
    return question.reduced(site_mean(scene.contract.network(question.network), chosen))


def _of_those_present(chosen: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Sum of those of (P, K, R) who take part."""
    present = torch.rand(len(chosen), generator=generator) < chance
    return chosen[present.to(chosen.device)].sum(dim=0)


def _bound(scene: Scene, question: Question) -> float:
    """C: what one patient adds to an answer, at most."""
    return scene.contract.patient_bound(question.kind, rows=len(question.weights))


def _noise(scene: Scene, question: Question, like: Tensor, generator: torch.Generator) -> Tensor:
    """A site's noise, here of a seed: nobody is protected by it."""
    assert scene.contract.noise_multiplier is not None
    deviation = scene.contract.noise_multiplier * _bound(scene, question)
    return deviation * torch.randn(like.shape, generator=generator).to(like)


def _seed(scene: Scene, question: Question, site: str) -> int:
    return request_seed(scene.contract.digest(), question.round, site)

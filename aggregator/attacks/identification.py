"""Can a person be named? The true patient's rank among 20 candidates, of whom one took part.

The attacker holds images of all 20. At granularity patient it asks whose summary it has. A mean
over patients is nobody's; what could name a person is an image reconstructed from it. So there the
attacker reconstructs images (:mod:`aggregator.attacks.reconstruction`) and asks which candidate
they came nearer to than the images it started from were. That is *identification*, and the bar for
``cohort`` and ``federation`` is chance: one in twenty.

Beside it stands *linkage*: which candidate's own gradients agree best with the summary itself. It
takes the candidate's very images to compute them, and finds out who took part, not what anybody
looks like: it is membership by another name (:mod:`aggregator.attacks.membership`), of a clear mean
it succeeds more often than chance, and it is reported as it is. The attacker knows

- ``exact``: the candidates' images to the bit, and all seeds but those of differential privacy;
- ``images``: the same images, but not the noise that sites drew;
- ``other-images``: other slices of the same people.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from aggregator.attacks.intervals import mean_of
from aggregator.attacks.pool import Pool, group_sizes, parts_to_find, pool
from aggregator.attacks.reconstruction import LOOSE, nearest, observations, reconstruct
from aggregator.attacks.scene import Scene
from aggregator.attacks.summaries import Answer, Question
from aggregator.attacks.watch import Steps, Watch
from shared.contract import Granularity
from shared.gradients import request_seed
from shared.release.progress import Advance
from shared.similarity import to_patients

CANDIDATES = 20
DRAWS = 50
"""Sets of other candidates that each true one is ranked among."""
SITE, ELSEWHERE = "hospital", "attacker"
"""Names that noise is drawn for."""


class FewPeopleError(ValueError):
    """Too few people to rank one among; the text says how many there are."""


@dataclass(frozen=True)
class Effort:
    """How much is tried."""

    steps: int = 60
    images: int = 3
    groups: int = 2
    """Reconstructed from, in each mode of means."""
    patients: int = 6
    """Reconstructed at granularity patient."""
    linked: int = 40
    """Groups whose summaries are linked to people."""


@dataclass(frozen=True, eq=False)
class Known:
    """What was sent, what the attacker has of everybody, and whom it can be told of."""

    sent: Pool
    own: Pool
    whom: frozenset[int]


QUICK = Effort(steps=15, images=2, groups=1, patients=2, linked=10)


def measure(
    scene: Scene, asked: Sequence[Question], *, seed: int, effort: Effort, watch: Watch
) -> dict[str, Any]:
    """Rank-1 rates of identification and of linkage, mode by mode.

    Raises ``FewPeopleError`` where there are not enough people for 20 candidates.
    """
    people = scene.everybody
    if len(people) < CANDIDATES + 1:
        raise FewPeopleError(
            f"identification among {CANDIDATES} candidates needs more than {len(people)} patients"
        )
    generator = torch.Generator().manual_seed(seed)
    sizes = group_sizes(scene, others=CANDIDATES - 1)
    if all(question.kind == "local-steps" for question in asked):
        del sizes["patient"]  # descents are never of one patient alone
    with watch("everybody's parts") as shown:
        known = _known(scene, asked, shown)
    means = len(sizes) - ("patient" in sizes)
    rows: list[dict[str, Any]] = []
    with watch("identification") as shown:
        steps = effort.groups * means + effort.patients * (len(sizes) - means)
        step = Steps(shown, total=effort.steps * steps)
        for mode, (count, sites) in sizes.items():
            everybody = known["exact"].sent
            if mode == "patient":
                some = _group(len(people), effort.patients, generator)
                told = [([one], everybody.told_alone(one, generator=generator)) for one in some]
            else:
                drawn = [_group(len(people), count, generator) for _ in range(effort.groups)]
                told = [(g, everybody.told(g, sites=sites, generator=generator)) for g in drawn]
            images = 1 if mode == "patient" else effort.images
            rate = _reconstructed(scene, told, images, effort, generator, on_step=step)
            row = {"mode": mode, "from": "reconstruction", "knows": "images", "rank1": rate}
            rows.append(row)
    with watch("linkage") as shown:
        step = Steps(shown, total=len(known) * len(sizes))
        for knowledge, one in known.items():
            for mode, size in sizes.items():
                if one.sent.answered(mode):
                    rate = _linked(one, mode, size, effort.linked, generator)
                    rows.append(
                        {"mode": mode, "from": "summary", "knows": knowledge, "rank1": rate}
                    )
                step()
    chance = 1 / CANDIDATES
    alone = [row for row in rows if row["mode"] == "patient"]
    return {
        "rows": rows,
        "chance": chance,
        "candidates": CANDIDATES,
        "bar": {"modes": ["cohort", "federation"], "from": "reconstruction"},
        "passed": all(
            row["rank1"]["interval"][0] <= chance
            for row in rows
            if row["mode"] != "patient" and row["from"] == "reconstruction"
        ),
        # Descents are never of one patient: then there is no control, and it says so.
        "control_succeeded": any(row["rank1"]["interval"][0] > chance for row in alone)
        if alone
        else None,
        "seed": seed,
    }


def _reconstructed(
    scene: Scene,
    trials: Sequence[tuple[list[int], list[tuple[Question, Answer]]]],
    images: int,
    effort: Effort,
    generator: torch.Generator,
    *,
    on_step: Callable[[], None],
) -> dict[str, Any]:
    """Rank-1 rate of the people behind a reconstruction: whom it came nearer to than its start."""
    task, people, free = scene.contract.task, scene.everybody, scene.prior.free.to(scene.device)
    found: dict[int, list[float]] = {}
    for number, (group, told) in enumerate(trials):
        observed = observations(scene.contract, told)
        own = request_seed(number, "identification")
        start = nearest(observed, free, task=task, count=images, seed=own)
        made = reconstruct(
            observed, start, task=task, bounds=LOOSE, steps=effort.steps, seed=own, on_step=on_step
        )
        before, after = (to_patients(one.cpu(), people).best() for one in (start, made))
        for person, rate in _rates(after.ncc - before.ncc, group, generator).items():
            found.setdefault(person, []).append(rate)
    return _by_person(found)


def _known(scene: Scene, asked: Sequence[Question], advance: Advance) -> dict[str, Known]:
    """What was sent, and what an attacker may have of the candidates."""
    people = scene.everybody
    everyone = frozenset(range(len(people)))
    several = frozenset(place for place, slices in enumerate(people) if len(slices) > 1)
    step = Steps(advance, total=4 * parts_to_find(scene, asked))

    def found(of: Sequence[Tensor], site: str) -> Pool:
        return pool(scene, asked, of, site=site, on_patient=step)

    sent = found(people, SITE)
    rest = [slices[1::2] if len(slices) > 1 else slices for slices in people]
    return {
        "exact": Known(sent, sent, everyone),
        "images": Known(sent, found(people, ELSEWHERE), everyone),
        "other-images": Known(
            found([slices[::2] for slices in people], SITE), found(rest, ELSEWHERE), several
        ),
    }


def _linked(
    known: Known,
    mode: Granularity,
    size: tuple[int, int],
    groups: int,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Rank-1 rate of candidates' own parts against the summary."""
    signatures, (count, sites) = known.own.signatures(mode), size
    centre, spread = signatures.mean(dim=0), signatures.std(dim=0).clamp_min(1e-12)
    directions = normalize((signatures - centre) / spread, dim=1)
    trials = [[one] for one in sorted(known.whom)]
    if mode != "patient":
        trials = [_group(len(signatures), count, generator) for _ in range(groups)]
    rates: dict[int, list[float]] = {}
    for group in trials:
        summary = known.sent.summary(group, mode, sites=sites, generator=generator)
        scores = directions @ ((summary - centre) / spread)
        for person, rate in _rates(scores, group, generator).items():
            if person in known.whom:
                rates.setdefault(person, []).append(rate)
    return _by_person(rates)


def _rates(scores: Tensor, group: Sequence[int], generator: torch.Generator) -> dict[int, float]:
    """How often each of a group comes first among 20, the others drawn from outside the group."""
    outside = torch.tensor([place for place in range(len(scores)) if place not in group])
    picks = torch.stack(
        [torch.randperm(len(outside), generator=generator)[: CANDIDATES - 1] for _ in range(DRAWS)]
    )
    best = scores[outside[picks]].amax(dim=1)  # (DRAWS,)
    return {person: float((scores[person] > best).float().mean()) for person in group}


def _by_person(rates: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    return mean_of([sum(own) / len(own) for own in rates.values()])


def _group(people: int, count: int, generator: torch.Generator) -> list[int]:
    """So many different people."""
    group: list[int] = torch.randperm(people, generator=generator)[:count].tolist()
    return group

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
from aggregator.attacks.pool import Pool, Sizes, group_sizes, pool
from aggregator.attacks.reconstruction import nearest, observations, reconstruct
from aggregator.attacks.scene import Scene
from aggregator.attacks.similarity import to_patients
from aggregator.attacks.summaries import Answer, Question
from shared.gradients import request_seed

CANDIDATES = 20
DRAWS = 50
"""Sets of other candidates that each true one is ranked among."""
SITE, ELSEWHERE = "hospital", "attacker"
"""Names that noise is drawn for."""


class FewPeopleError(ValueError):
    """Too few people to rank one among; the text says how many there are."""


OnStep = Callable[[int, int], None]


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


QUICK = Effort(steps=15, images=2, groups=1, patients=2, linked=10)


def measure(
    scene: Scene, asked: Sequence[Question], *, seed: int, effort: Effort, on_step: OnStep
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
    means = len(sizes) - ("patient" in sizes)
    total = effort.steps * (effort.groups * means + effort.patients * (len(sizes) - means))
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        on_step(done, total)

    everybody = pool(scene, asked, people, site=SITE)
    rows: list[dict[str, Any]] = []
    for mode, (count, sites) in sizes.items():
        if mode == "patient":
            some = _group(len(people), effort.patients, generator)
            told = [([one], everybody.told_alone(one, generator=generator)) for one in some]
        else:
            drawn = [_group(len(people), count, generator) for _ in range(effort.groups)]
            told = [(g, everybody.told(g, sites=sites, generator=generator)) for g in drawn]
        images = 1 if mode == "patient" else effort.images
        rate = _reconstructed(scene, told, images, effort, generator, on_step=advance)
        rows.append({"mode": mode, "from": "reconstruction", "knows": "images", "rank1": rate})
    rows += linked(scene, asked, everybody, sizes, groups=effort.linked, generator=generator)
    chance = 1 / CANDIDATES
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
        "control_succeeded": any(
            row["rank1"]["interval"][0] > chance for row in rows if row["mode"] == "patient"
        ),
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
            observed, start, task=task, steps=effort.steps, seed=own, on_step=on_step
        )
        before, after = (to_patients(one.cpu(), people).best() for one in (start, made))
        for person, rate in _rates(after.ncc - before.ncc, group, generator).items():
            found.setdefault(person, []).append(rate)
    return _by_person(found)


def linked(
    scene: Scene,
    asked: Sequence[Question],
    everybody: Pool,
    sizes: Sizes,
    *,
    groups: int,
    generator: torch.Generator,
) -> list[dict[str, Any]]:
    """Rank-1 rates of candidates' own parts against the summary, by what is known of them."""
    people = scene.everybody
    several = [place for place, slices in enumerate(people) if len(slices) > 1]
    first = pool(scene, asked, [slices[::2] for slices in people], site=SITE)
    rest = [slices[1::2] if len(slices) > 1 else slices for slices in people]
    known = {
        "exact": (everybody, everybody, range(len(people))),
        "images": (everybody, pool(scene, asked, people, site=ELSEWHERE), range(len(people))),
        "other-images": (first, pool(scene, asked, rest, site=ELSEWHERE), several),
    }
    rows = []
    for knowledge, (sent, own, whom) in known.items():
        for mode, (count, sites) in sizes.items():
            if not sent.answered(mode):
                continue
            signatures = own.signatures(mode)
            centre, spread = signatures.mean(dim=0), signatures.std(dim=0).clamp_min(1e-12)
            directions = normalize((signatures - centre) / spread, dim=1)
            trials = [[one] for one in whom]
            if mode != "patient":
                trials = [_group(len(people), count, generator) for _ in range(groups)]
            rates: dict[int, list[float]] = {}
            for group in trials:
                summary = sent.summary(group, mode, sites=sites, generator=generator)
                scores = directions @ ((summary - centre) / spread)
                for person, rate in _rates(scores, group, generator).items():
                    if person in whom:
                        rates.setdefault(person, []).append(rate)
            rows.append(
                {"mode": mode, "from": "summary", "knows": knowledge, "rank1": _by_person(rates)}
            )
    return rows


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

"""Can anybody tell whether a person took part? Membership inference on summaries and on pairs.

LiRA (Carlini et al., IEEE S&P 2022): the attacker plays the run many times with and without each
person, learns how a statistic of the person is distributed in both cases, and compares. Who takes
part is drawn at random from everybody, trial by trial.

- *Summaries* that are sums of patients' parts. The attacker has the person's images to the bit and
  all seeds but those of differential privacy (``exact``), or not the noise that the site drew
  (``images``): the statistic is the product of the summary with the person's own parts, each
  coordinate in units of its deviation over trials. Or the attacker has the images of ``everybody``
  who may have taken part, exactly, and solves for how much of each is in the summary: that is the
  attacker of differential privacy's definition, and nothing clear is safe from it. Rounds of
  descents count as one question, noised anew each time.
- *Descents* that a site makes with all of its patients at once: the statistic is how much less the
  person's loss is after the step than before.
- *Pairs* of small distillations, of fewer steps than the contract's: the person's loss under a
  student of the pairs, and the likeness of the released images to the person's.

The controls: a clear mean of two people's parts; and pairs that are members' own slices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aggregator.attacks.intervals import Guesses, likelihood_ratios
from aggregator.attacks.pool import Pool, group_sizes, parts_to_find, pool
from aggregator.attacks.scene import Scene
from aggregator.attacks.shadows import Losses, distilled, small, student_of
from aggregator.attacks.summaries import Question, added_up
from aggregator.attacks.watch import Steps, Watch
from shared.gradients import request_seed
from shared.similarity import to_patients

SITE, ELSEWHERE = "hospital", "attacker"
"""Names that noise is drawn for."""
CONTROL_PEOPLE, CONTROL_TRIALS = 2, 24
CONTROL_AUC = 0.9
"""The controls must reach it."""


@dataclass(frozen=True)
class Effort:
    """How much is tried."""

    summaries: int = 200
    """Trials with summaries that are sums of parts."""
    descents: int = 16
    """Trials with descents of whole sites."""
    distillations: int = 16
    """Trials with pairs."""


QUICK = Effort(summaries=60, descents=6, distillations=6)


def measure(
    scene: Scene, asked: Sequence[Question], *, seed: int, effort: Effort, watch: Watch
) -> dict[str, Any]:
    """AUC and members found at one false positive in ten, by what the attacker sees."""
    generator = torch.Generator().manual_seed(seed)
    of_sites = [question for question in asked if question.is_of_site]
    rows, controls = [], []
    with watch("everybody's parts") as shown:
        step = Steps(shown, total=2 * parts_to_find(scene, asked))
        sent, others = (
            pool(scene, asked, scene.everybody, site=site, on_patient=step)
            for site in (SITE, ELSEWHERE)
        )
    if sent.parts:
        with watch("summaries") as shown:
            step = Steps(shown, total=2 * effort.summaries)
            rows += _of_summaries(scene, sent, others, effort.summaries, generator, on_step=step)
            controls.append(_control_of_summaries(sent, effort.summaries, generator))
    if of_sites:
        with watch("descents") as shown:
            step = Steps(shown, total=effort.descents * len(of_sites))
            for question in of_sites:
                row = _of_descents(scene, question, effort.descents, generator, on_step=step)
                rows.append(row)
    with watch("pairs") as shown:
        step = Steps(shown, total=effort.distillations + CONTROL_TRIALS)
        rows += _of_pairs(scene, asked, effort.distillations, generator, seed=seed, on_step=step)
        controls.append(_control_of_pairs(scene, generator, on_step=step))
    return {
        "rows": rows,
        "control": controls,
        "control_succeeded": all(control["auc"]["mean"] >= CONTROL_AUC for control in controls),
        "seed": seed,
    }


def _of_summaries(
    scene: Scene,
    sent: Pool,
    others: Pool,
    trials: int,
    generator: torch.Generator,
    *,
    on_step: Callable[[], None],
) -> list[dict[str, Any]]:
    rows = []
    for mode, (count, sites) in group_sizes(scene, others=len(scene.unseen)).items():
        if mode == "patient":
            continue  # whose it is, is identification's question
        groups = [_drawn(len(sent.people), count, generator) for _ in range(trials)]
        told = []
        for group in groups:
            told.append(sent.summary(group, mode, sites=sites, generator=generator))
            on_step()
        summaries = torch.stack(told)
        noise = sent.noise(count, sites=sites, generator=generator)
        found = {
            "exact": _products(summaries, sent.signatures(mode)),
            "images": _products(summaries, others.signatures(mode)),
            "everybody": _shares(summaries, sent.signatures(mode), noise=noise, count=count),
        }
        rows += [
            {
                "of": "summary",
                "mode": mode,
                "knows": knowledge,
                "people": count,
                "trials": trials,
                **_figures(statistics, groups),
            }
            for knowledge, statistics in found.items()
        ]
    return rows


def _products(summaries: Tensor, signatures: Tensor) -> Tensor:
    """Statistics (T, P) of summaries (T, F) for people with signatures (P, F)."""
    centre, spread = summaries.mean(dim=0), summaries.std(dim=0).clamp_min(1e-12)
    own = (signatures - signatures.mean(dim=0)) / spread
    return ((summaries - centre) / spread) @ own.T


def _shares(summaries: Tensor, signatures: Tensor, *, noise: Tensor, count: int) -> Tensor:
    """How much of everybody (T, P) is in summaries (T, F): the most probable shares.

    Ridge regression, as with shares of 1 / ``count`` for so many of P people, and ``noise`` (F,):
    its standard deviation. Without noise, what is below a thousandth counts as rounding.
    """
    people, centred = len(signatures), summaries - summaries.mean(dim=0)
    floor = 1e-3 * signatures.std(dim=0).mean()
    own, seen = (one.double() / (noise + floor) for one in (signatures, centred))
    variance = (1 - count / people) / (count * people)
    gram = own @ own.T + torch.eye(people, dtype=torch.double) / variance
    shares: Tensor = torch.linalg.solve(gram, own @ seen.T)
    return shares.T


def _control_of_summaries(sent: Pool, trials: int, generator: torch.Generator) -> dict[str, Any]:
    groups = [_drawn(len(sent.people), CONTROL_PEOPLE, generator) for _ in range(trials)]
    signatures = sent.signatures("cohort")
    summaries = torch.stack([signatures[group].mean(dim=0) for group in groups])
    figures = _figures(_products(summaries, signatures), groups)
    return {"of": "summary", "what": f"clear mean of {CONTROL_PEOPLE}", "trials": trials, **figures}


def _of_descents(
    scene: Scene,
    question: Question,
    trials: int,
    generator: torch.Generator,
    *,
    on_step: Callable[[], None],
) -> dict[str, Any]:
    losses = Losses(scene, scene.contract.anchor_network)
    people = scene.everybody
    count, _ = group_sizes(scene, others=len(scene.unseen))["cohort"]
    before, after, groups = losses.of(question.weights[0]), [], []
    for _ in range(trials):
        group = _drawn(len(people), count, generator)
        descent = added_up(scene, question, [people[place] for place in group], site=SITE)[0]
        after.append(losses.of(question.weights[0] - question.lifted(descent)[0]))
        groups.append(group)
        on_step()
    statistics = (before - torch.stack(after)) / before
    return {
        "of": "descent",
        "mode": "cohort",
        "knows": "images",
        "people": count,
        "trials": trials,
        **_figures(statistics, groups),
    }


def _of_pairs(
    scene: Scene,
    asked: Sequence[Question],
    trials: int,
    generator: torch.Generator,
    *,
    seed: int,
    on_step: Callable[[], None],
) -> list[dict[str, Any]]:
    contract, people = small(scene.contract), scene.everybody
    count = len(people) // 2
    losses = Losses(scene, contract.student)
    by_loss, by_likeness, groups = [], [], []
    for trial in range(trials):
        group = _drawn(len(people), count, generator)
        chosen = [people[place] for place in group]
        lq, hq = distilled(scene, contract, asked, chosen, seed=request_seed(seed, trial))
        by_loss.append(-losses.of(student_of(scene, lq, hq, seed=trial)))
        by_likeness.append(to_patients(hq.cpu(), people).best().ssim)
        groups.append(group)
        on_step()
    return [
        {
            "of": "pairs",
            "mode": scene.contract.granularity,
            "by": name,
            "knows": "images",
            "people": count,
            "trials": trials,
            **_figures(torch.stack(statistics), groups),
        }
        for name, statistics in (("loss", by_loss), ("likeness", by_likeness))
    ]


def _control_of_pairs(
    scene: Scene, generator: torch.Generator, *, on_step: Callable[[], None]
) -> dict[str, Any]:
    people, likeness, groups = scene.everybody, [], []
    for _ in range(CONTROL_TRIALS):
        group = _drawn(len(people), scene.contract.images, generator)
        slices = torch.cat([people[one][:1] for one in group])
        likeness.append(to_patients(slices, people).best().ssim)
        groups.append(group)
        on_step()
    return {
        "of": "pairs",
        "by": "likeness",
        "what": "members' own slices",
        "trials": CONTROL_TRIALS,
        **_figures(torch.stack(likeness), groups),
    }


def _figures(statistics: Tensor, groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Of statistics (T, P), higher for members, when these groups took part."""
    members = np.zeros(statistics.shape, dtype=np.bool_)
    for row, group in zip(members, groups, strict=True):
        row[list(group)] = True
    ratios = likelihood_ratios(statistics.double().cpu().numpy(), members)
    return Guesses(ratios, members).figures()


def _drawn(people: int, count: int, generator: torch.Generator) -> list[int]:
    drawn: list[int] = torch.randperm(people, generator=generator)[:count].tolist()
    return drawn

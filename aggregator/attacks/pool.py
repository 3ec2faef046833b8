"""Everybody's parts of an answer, and groups of people drawn from them.

Who took part is drawn at random from everybody, participants and others, whichever hospital they
came from: a summary then tells members from others by nothing but that they are members. At the
hospitals themselves scanners would. Parts are computed once; means over groups cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aggregator.attacks.scene import Scene
from aggregator.attacks.summaries import (
    Answer,
    OnPatient,
    Question,
    added_up,
    block,
    mixture,
    parts,
    sent,
)
from shared.contract import Granularity

Told = list[tuple[Question, Answer]]
Sizes = dict[Granularity, tuple[int, int]]
"""People and sites behind an answer in each mode."""


@dataclass(frozen=True, eq=False)
class Pool:
    """People, what they are asked, and their parts (P, K, R) of what is answered by patient."""

    scene: Scene
    people: tuple[Tensor, ...]
    site: str
    parts: tuple[tuple[Question, Tensor], ...]
    of_sites: tuple[Question, ...]

    def signatures(self, mode: Granularity) -> Tensor:
        """(P, F): each person's parts of what is answered in ``mode``, by sums of parts."""
        own = [sent(question, chosen).flatten(1) for question, chosen in self._of(mode)]
        return torch.cat(own, dim=1)

    def answered(self, mode: Granularity) -> bool:
        """Whether anything in ``mode`` is a sum of parts."""
        return bool(self._of(mode))

    def summary(
        self, group: Sequence[int], mode: Granularity, *, sites: int, generator: torch.Generator
    ) -> Tensor:
        """(F,): what is learned of a group, or in mode patient of its only member, alike."""
        if mode == "patient":
            told = self.told_alone(group[0], generator=generator)
        else:
            told = self._sums(group, sites, generator)
        return torch.cat([answer.values.flatten() for _, answer in told])

    def noise(self, count: int, *, sites: int, generator: torch.Generator) -> Tensor:
        """(F,): standard deviation of differential privacy's noise in a summary of so many."""
        silent = replace(self, parts=tuple((one, torch.zeros_like(x)) for one, x in self.parts))
        told = silent._sums(range(count), sites, generator)
        return torch.cat([answer.values.std().expand(answer.values.numel()) for _, answer in told])

    def told(self, group: Sequence[int], *, sites: int, generator: torch.Generator) -> Told:
        """All that is learned of a group that ``sites`` add up."""
        told, dealt = self._sums(group, sites, generator), _dealt(group, sites)
        for question in self.of_sites:
            descents = [
                added_up(self.scene, question, [self.people[one] for one in own], site=self.site)
                for own in dealt
            ]
            told.append((question, self._mixed(question, descents, dealt, generator)))
        return told

    def told_alone(self, person: int, *, generator: torch.Generator) -> Told:
        """What is learned of one person at granularity patient: gradients, but no descent."""
        told = []
        for question, chosen in self._of("patient"):
            (part,) = sent(question, chosen[[person]])
            values = block(self.scene, question, part, generator=generator)
            told.append((question, Answer(values, (person,))))
        return told

    def _of(self, mode: Granularity) -> list[tuple[Question, Tensor]]:
        """Parts of the questions that are answered in ``mode``."""
        return [one for one in self.parts if mode != "patient" or one[0].kind == "gradients"]

    def _sums(self, group: Sequence[int], sites: int, generator: torch.Generator) -> Told:
        dealt, told = _dealt(group, sites), []
        for question, chosen in self.parts:
            own = [chosen[list(site)] for site in dealt]
            told.append((question, self._mixed(question, own, dealt, generator)))
        return told

    def _mixed(
        self,
        question: Question,
        sums: Sequence[Tensor],
        dealt: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> Answer:
        values = mixture(
            self.scene,
            question,
            sums,
            patients=[len(own) for own in dealt],
            generator=generator,
            releases=releases(self.scene, question),
        )
        return Answer(values, tuple(one for own in dealt for one in own))


def _dealt(group: Sequence[int], sites: int) -> list[Sequence[int]]:
    """A group as the patients of so many sites."""
    return [group[site::sites] for site in range(sites)]


def releases(scene: Scene, question: Question) -> int:
    """How often the run asks such a question.

    Every round of descents begins somewhere else; to the attacker's advantage all count as the same
    question, noised anew.
    """
    return scene.contract.anchor.rounds if question.kind == "local-steps" else 1


def pool(
    scene: Scene,
    asked: Sequence[Question],
    people: Sequence[Tensor],
    *,
    site: str,
    on_patient: OnPatient,
) -> Pool:
    """The parts of ``people`` as patients of one ``site``."""
    return Pool(
        scene,
        tuple(people),
        site,
        tuple(
            (one, parts(scene, one, people, site=site, on_patient=on_patient))
            for one in asked
            if not one.is_of_site
        ),
        tuple(one for one in asked if one.is_of_site),
    )


def parts_to_find(scene: Scene, asked: Sequence[Question]) -> int:
    """How many parts a pool of everybody has."""
    return len(scene.everybody) * sum(not one.is_of_site for one in asked)


def group_sizes(scene: Scene, *, others: int) -> Sizes:
    """How many stand behind an answer in each mode, so that at least ``others`` are left over."""
    sites, everybody = len(scene.sites), len(scene.everybody)
    cohort = round(len(scene.participants) / sites)
    return {
        "patient": (1, 1),
        "cohort": (min(cohort, everybody - others), 1),
        "federation": (min(len(scene.participants), everybody - others), sites),
    }

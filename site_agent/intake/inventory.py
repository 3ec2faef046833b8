"""What a folder's images are like: series by maker, kernel, thickness and pixel size, in counts."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from pydantic import Field

from shared.frozen import Frozen
from site_agent.intake.acquisition import UNSAID
from site_agent.intake.dicom import DicomSlice
from site_agent.intake.series import Candidate

THICKNESS_EDGES_MM = (0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.5)
SPACING_EDGES_MM = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5)

Counts = dict[str, int]


class Inventory(Frozen):
    """Series of the usable images, counted; ``slices`` counts series by how many they have."""

    patients: int = 0
    series: int = 0
    makers: Counts = Field(default_factory=dict)
    kernels: Counts = Field(default_factory=dict)
    thickness_mm: Counts = Field(default_factory=dict)
    spacing_mm: Counts = Field(default_factory=dict)
    slices: Counts = Field(default_factory=dict)


def inventory_of(candidates: Mapping[str, Sequence[Candidate]]) -> Inventory:
    """The inventory of the slices that could be read, by patient."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    series = 0
    for items in candidates.values():
        own: dict[str, list[Candidate]] = defaultdict(list)
        for item in items:
            own[item.order[0]].append(item)
        series += len(own)
        for members in own.values():
            source = members[0].source
            told = source.acquisition if isinstance(source, DicomSlice) else None
            found["makers"][told.maker if told else UNSAID] += 1
            found["kernels"][told.kernel if told else UNSAID] += 1
            found["thickness_mm"][between(source.thickness_mm, THICKNESS_EDGES_MM)] += 1
            found["spacing_mm"][between(max(source.spacing_mm), SPACING_EDGES_MM)] += 1
            found["slices"][between(len(members), (1, 4, 16, 64, 256))] += 1
    patients = sum(1 for items in candidates.values() if items)
    return Inventory(
        patients=patients, series=series, **{name: dict(counts) for name, counts in found.items()}
    )


def between(value: float | None, edges: Sequence[float]) -> str:
    """The range of ``value`` among those that end at ``edges``, each its end's own, in words."""
    if value is None:
        return UNSAID
    for low, high in zip((None, *edges), edges, strict=False):
        if value <= high:
            return f"up to {high:g}" if low is None else f"{low:g} to {high:g}"
    return f"above {edges[-1]:g}"

"""The data-quality report: what a site's images are like, for the hospital's own eyes.

Counts and measured values alone: no identifier, no date of an image, no path, and no text out of a
file but a maker's name and a kernel's code that are on a list (``intake.acquisition``). It does not
leave the site by itself, so that counts are exact.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import AwareDatetime

from shared.frozen import Frozen, Slug
from shared.tasks.settings import Modality
from site_agent.cohort import CohortError, open_cohort
from site_agent.intake.inventory import Inventory
from site_agent.intake.reasons import Finding, SkipReason
from site_agent.intake.record import read_record
from site_agent.quality.meanings import MEANINGS, ODDITIES
from site_agent.quality.noise import Noise, cohort_noise
from site_agent.settings import SiteSettings


class Quarantined(Frozen):
    """What was not taken in for one reason: files, of volumes and frames also slices."""

    code: SkipReason
    count: int
    meaning: str
    remedy: str


class Oddity(Frozen):
    """Series that are used, and odd in one way."""

    code: Finding
    series: int
    meaning: str


class Eligible(Frozen):
    """Patients who can take part, against what the site's policy asks."""

    patients: int
    wanted: int
    enough: bool


class RealPairs(Frozen):
    """Pairs of reconstructions of one kind, and the patients who have some."""

    kind: str
    patients: int
    pairs: int
    enough: bool


class QualityReport(Frozen):
    """All of the report; its JSON is this, its page shows this."""

    version: int = 1
    site: Slug
    made: AwareDatetime
    modality: Modality
    files: int
    quarantined: int
    inventory: Inventory
    kept_patients: int
    kept_slices: int
    not_needed: int
    eligible: Eligible
    codes: tuple[Quarantined, ...]
    oddities: tuple[Oddity, ...]
    real_pairs: tuple[RealPairs, ...]
    noise: Noise


def quality_report(
    settings: SiteSettings, *, on_progress: Callable[[int, int], None] | None = None
) -> QualityReport:
    """The report of the last index; ``on_progress`` hears patients measured, of all.

    Raises ``CohortError`` where nothing is indexed, or by a version that kept no counts.
    """
    cohort = open_cohort(settings.cohort_path)
    record = read_record(settings.cohort_path, data=cohort.index.data)
    if record is None:
        raise CohortError(
            f"{settings.cohort_path}: what the last index saw is not kept; run `site-agent index`"
        )
    wanted = settings.policy.min_patients
    return QualityReport(
        site=settings.name,
        made=datetime.now(UTC).replace(microsecond=0),
        modality=cohort.index.modality,
        files=record.files,
        quarantined=sum(record.skipped.values()),
        inventory=record.inventory,
        kept_patients=cohort.patients,
        kept_slices=cohort.slices,
        not_needed=record.not_needed,
        eligible=Eligible(
            patients=cohort.patients, wanted=wanted, enough=cohort.patients >= wanted
        ),
        codes=tuple(
            Quarantined(code=code, count=count, meaning=MEANINGS[code][0], remedy=MEANINGS[code][1])
            for code, count in _largest_first(record.skipped)
        ),
        oddities=tuple(
            Oddity(code=code, series=count, meaning=ODDITIES[code])
            for code, count in _largest_first(record.findings)
        ),
        real_pairs=tuple(
            RealPairs(
                kind=kind,
                patients=patients,
                pairs=record.pairs.get(kind, 0),
                enough=patients >= wanted,
            )
            for kind, patients in _largest_first(record.paired_patients)
        ),
        noise=cohort_noise(cohort, on_progress=on_progress),
    )


Code = TypeVar("Code", bound=str)


def _largest_first(counts: Mapping[Code, int]) -> list[tuple[Code, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))

"""Pulling from an archive by DICOMweb: list what matches, fetch what the spool does not hold.

1. Ask for studies, their series, and the objects of each.
2. Leave out what the spool holds: an interrupted pull goes on where it stopped.
3. Fetch a series at once where none of it is there, else its missing objects one by one.
4. A series that breaks off is tried again; one that keeps failing stops no other.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from site_agent.importer.archive import Archive, ArchiveError, Series, TransferError
from site_agent.importer.objects import identify, silence
from site_agent.importer.spool import FullError, RefusedObjectError, Spool

_ATTEMPTS = 3
_PAUSE_S = 1.0

Progress = Callable[[str, int, int], None]
"""Hears ("list" | "fetch", done, total)."""


@dataclass
class PullReport:
    """What a pull did: filled while it runs."""

    studies: int = 0
    series: int = 0
    objects: int = 0  # that matched
    present: int = 0  # of them, in the spool before
    fetched: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # that came and were not taken, by code
    missing: int = 0  # of those that matched, not in the spool afterwards

    def summary(self) -> str:
        """One line of counts."""
        refused = ", ".join(f"{count} {code}" for code, count in sorted(self.refused.items()))
        return (
            f"{self.studies} studies, {self.series} series, {self.objects} objects: "
            f"{self.fetched} fetched, {self.present} there before, {self.missing} missing; "
            f"refused: {refused or 'none'}"
        )

    def as_json(self) -> dict[str, object]:
        """The counts, for machines."""
        return {
            "studies": self.studies,
            "series": self.series,
            "objects": self.objects,
            "present": self.present,
            "fetched": self.fetched,
            "missing": self.missing,
            "refused": dict(sorted(self.refused.items())),
        }


def pull(archive: Archive, spool: Spool, *, report: PullReport, on_progress: Progress) -> None:
    """Fetches what matches into the spool.

    Raises ``ArchiveError`` where the archive cannot be used as set, and ``FullError`` where the
    spool takes no more; what had come by then stays.
    """
    silence()
    wanted: list[tuple[Series, list[str]]] = []
    studies = archive.studies()
    report.studies = len(studies)
    for done, study in enumerate(studies, start=1):
        for series in archive.series(study):
            missing = [uid for uid in series.instances if not spool.holds(uid)]
            report.series += 1
            report.objects += len(series.instances)
            report.present += len(series.instances) - len(missing)
            if missing:
                wanted.append((series, missing))
        on_progress("list", done, len(studies))
    total, done = sum(len(missing) for _, missing in wanted), 0
    on_progress("fetch", 0, total)
    for series, missing in wanted:
        for _ in _fetched(archive, series, missing, spool, report):
            done += 1
            on_progress("fetch", done, total)
        report.missing += sum(not spool.holds(uid) for uid in missing)


def _fetched(
    archive: Archive, series: Series, missing: list[str], spool: Spool, report: PullReport
) -> Iterator[None]:
    """Fetches the missing objects of a series; yields once an object that is now there."""
    whole = len(missing) == len(series.instances)
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S * attempt)
        broken: list[str] = []
        for instance in [None] if whole and not attempt else missing:
            try:
                for content in archive.objects(series, instance):
                    fate = _spooled(content, spool)
                    if fate is None:
                        report.fetched += 1
                        yield
                    elif fate != "already-there":
                        report.refused[fate] += 1
            except TransferError:
                broken += missing if instance is None else [instance]
        missing = [uid for uid in broken if not spool.holds(uid)]
        if not missing:
            return


def _spooled(content: Iterator[bytes], spool: Spool) -> str | None:
    """Writes one object into the spool. Returns None, or the code why it was not kept."""
    try:
        with spool.part() as part:
            for piece in content:
                part.write(piece)
            part.flush()
            identity = identify(part.path)
            if identity is None:
                return "not-dicom"
            if not identity.wanted:
                return "other-kind"
            return None if part.keep(identity.sop_instance) else "already-there"
    except FullError:
        raise
    except RefusedObjectError as error:
        return error.code


__all__ = ["Archive", "ArchiveError", "PullReport", "pull"]

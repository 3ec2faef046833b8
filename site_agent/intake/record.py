"""What the last index saw, in counts, kept beside its cohort for the data-quality report."""

from pathlib import Path

from pydantic import ValidationError

from shared.durable import write_durably
from shared.frozen import Frozen
from site_agent.intake.inventory import Inventory
from site_agent.intake.pairing import PairKind
from site_agent.intake.reasons import Finding, IntakeReport, SkipReason

RECORD_FILE = "intake.json"


class IntakeRecord(Frozen):
    """Counts of one index; ``data`` names the cohort's file that it wrote."""

    data: str
    files: int
    patients: int
    slices: int
    not_needed: int
    skipped: dict[SkipReason, int]
    findings: dict[Finding, int]
    pairs: dict[PairKind, int]
    paired_patients: dict[PairKind, int]
    inventory: Inventory


def keep_record(folder: Path, report: IntakeReport, *, data: str) -> None:
    """Writes what an index saw beside the cohort in ``folder``."""
    record = IntakeRecord.model_validate(
        {
            "data": data,
            **{name: value for name, value in report.as_json().items() if name != "remembered"},
            "inventory": report.inventory or Inventory(),
        }
    )
    write_durably(folder / RECORD_FILE, record.model_dump_json().encode())


def read_record(folder: Path, *, data: str) -> IntakeRecord | None:
    """What the index saw that wrote the cohort's file ``data``; None where that is not kept."""
    try:
        record = IntakeRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return record if record.data == data else None

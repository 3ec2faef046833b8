"""The whole federation in one process, without Flower: for research and tests.

The one place where site code and aggregator code meet. Sites are folders of images; each is indexed
into a cohort and asked through the same worker function, encoded messages and admission checks as
in a deployment; only the transport is missing. Ends with the utility table of the pairs.
"""

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from aggregator.federation import PAIRS, RESULT, Exchange, federate
from aggregator.utility import OnProgress, utility_rows
from shared.contract import ContractError, RunContract, read_contract
from shared.durable import write_durably
from shared.readers import ReaderError, read_images
from shared.release.progress import progress
from shared.tasks.settings import Modality
from site_agent.cohort import Cohort, CohortError, build_cohort
from site_agent.intake import IntakeError, read_folder
from site_agent.intake.reasons import IntakeReport
from site_agent.intake.slices import PatientSlices
from site_agent.intake.windowing import windowed
from site_agent.outbox import Outbox
from site_agent.settings import SiteSettings
from site_agent.worker import answer

KEPT_BACK = 5
"""One patient in so many is kept back for the table, where no holdout folder is given."""
SLICES_PER_PATIENT = 8


@dataclass(frozen=True)
class Hospital:
    """A simulated site and what its worker is called with."""

    settings: SiteSettings
    cohort: Cohort
    outbox: Outbox


def open_hospital(
    folder: Path,
    *,
    home: Path,
    keep_back: bool,
    modality: Modality,
    sequence: str | None = None,
) -> tuple[Hospital, list[Any]]:
    """Indexes a folder of images into ``home``; returns the site and the patients kept back.

    Raises ``IntakeError`` or ``CohortError`` where the folder holds too little.
    """
    patients = list(
        read_folder(
            folder,
            pseudonym_key=hashlib.sha256(b"fedstill simulation").digest(),
            slices_per_patient=SLICES_PER_PATIENT,
            report=IntakeReport(),
            modality=modality,
            sequence=sequence,
        )
    )
    apart = patients[::KEPT_BACK] if keep_back else []
    names = {patient.pseudonym for patient in apart}
    kept = (one for one in patients if one.pseudonym not in names)
    cohort = build_cohort(home / "cohort", kept, modality=modality)
    settings = SiteSettings(
        home=home,
        name=folder.name.lower(),
        aggregator="localhost:1",
        images=folder,
        modality=modality,
        sequence=sequence,
    )
    return Hospital(settings, cohort, Outbox(settings.outbox_path)), apart


def in_process(hospitals: Sequence[Hospital]) -> Exchange:
    """An exchange that asks each hospital's worker function in turn."""

    def exchange(payload: bytes, round: int) -> Mapping[str, bytes]:
        return {
            one.settings.name: answer(
                payload, settings=one.settings, cohort=one.cohort, outbox=one.outbox
            )
            for one in hospitals
        }

    return exchange


def simulate(
    contract: RunContract,
    *,
    data: Path,
    holdout: Path | None,
    public: Path | None,
    run: Path,
    steps: int,
    seeds: int,
    workers: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Runs a contract over the hospitals below ``data`` and judges the pairs.

    ``run`` keeps the sites' homes and the run's checkpoint, so that an interrupted simulation goes
    on. Raises ``ReaderError``, ``IntakeError``, ``CohortError`` or ``FederationError``.
    """
    folders = sorted(entry for entry in data.iterdir() if entry.is_dir()) if data.is_dir() else []
    folders = [entry for entry in folders if entry.name.startswith("hospital")]
    if not folders:
        raise ReaderError(data, "holds no folder named hospital-*, one for each site")
    opened = [
        open_hospital(
            folder,
            home=run / "sites" / folder.name,
            keep_back=holdout is None,
            modality=contract.task.modality,
        )
        for folder in folders
    ]
    hospitals = [hospital for hospital, _ in opened]
    federate(
        contract=contract,
        sites=[one.settings.name for one in hospitals],
        exchange=in_process(hospitals),
        run=run,
        public=public,
    )
    if holdout is None:
        judged = [_windowed(patient, contract) for _, apart in opened for patient in apart]
    else:
        judged = _read(holdout, contract)
    started = time.monotonic()
    table = utility_rows(
        contract=contract,
        pairs=run / PAIRS,
        train=[images for one in hospitals for images in _trained_on(one, contract)],
        holdout=judged,
        public=_read(public, contract) if public else None,
        steps=steps,
        seeds=seeds,
        workers=workers,
        on_progress=on_progress,
    )
    result = json.loads((run / RESULT).read_text("utf-8"))
    seconds = {**result["seconds"], "utility": round(time.monotonic() - started, 2)}
    return {**table, **result, "seconds": seconds, "judged_patients": len(judged)}


def _read(folder: Path, contract: RunContract) -> list[NDArray[np.float32]]:
    task = contract.task
    return read_images(
        folder,
        size_px=task.size_px,
        low=task.window[0],
        high=task.window[1],
        modality=task.modality,
    )


def _trained_on(hospital: Hospital, contract: RunContract) -> list[NDArray[np.float32]]:
    task = contract.task
    return hospital.cohort.images(size_px=task.size_px, low=task.window[0], high=task.window[1])


def _windowed(patient: PatientSlices, contract: RunContract) -> NDArray[np.float32]:
    task = contract.task
    return windowed(
        [(one.pixels, one.spacing_mm) for one in patient.slices],
        size_px=task.size_px,
        low=task.window[0],
        high=task.window[1],
    )


def command(
    data: Annotated[Path, typer.Option(help="Folder with one folder hospital-* a site.")],
    contract: Annotated[
        Path | None, typer.Option(help="Contract in TOML; the defaults where absent.")
    ] = None,
    holdout: Annotated[
        Path | None,
        typer.Option(help="Images to judge on; else one patient in five is kept back."),
    ] = None,
    public: Annotated[
        Path | None, typer.Option(help="Public images, for a contract whose prior is public.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder to keep the run in, to go on from if interrupted.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each judge.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, help="Judges of each arm.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Judging processes.")] = 2,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything there as JSON.")
    ] = None,
) -> None:
    """Distil with simulated hospitals in this one process, and print what the pairs are worth.

    No Flower, no release. Interrupted, it goes on where it stopped if --run was given.
    """
    with contextlib.ExitStack() as stack:
        try:
            agreed = read_contract(contract) if contract else RunContract(name="simulation")
            place = run or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            shown = stack.enter_context(progress("judging", unit="steps"))
            table = simulate(
                agreed,
                data=data,
                holdout=holdout,
                public=public,
                run=place / agreed.digest()[:16],
                steps=steps,
                seeds=seeds,
                workers=workers,
                on_progress=lambda done, total, eta_s: shown(done, total),
            )
        except (ContractError, ReaderError, IntakeError, CohortError, RuntimeError) as error:
            if type(error) is RuntimeError:
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
    typer.echo(table_text(table))
    if json_file is not None:
        write_durably(json_file.absolute(), json.dumps(table, indent=2).encode(), mode=0o644)


def table_text(table: Mapping[str, Any]) -> str:
    """The utility table for people: a line a row, then what follows from it."""
    lines = [f"{'trained on':<16} {'PSNR, dB':>16} {'SSIM':>18}"]
    for name, row in table["rows"].items():
        psnr, ssim = row["psnr"], row["ssim"]
        lines.append(
            f"{name:<16} {psnr['mean']:>8.2f} ± {psnr['std']:<5.2f} "
            f"{ssim['mean']:>9.4f} ± {ssim['std']:<6.4f}"
        )
    for name in ("gain_over_best_null", "worth_of_hospital_data"):
        lines.append(f"{name:<24} {table[name]:+.2f} dB")
    for name in ("gap_closed", "share_recovered"):
        value = table[name]
        lines.append(f"{name:<24} {'–' if value is None else format(value, '.0%')}")
    return "\n".join(lines)

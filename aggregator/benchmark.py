"""`aggregator simulate`: the whole federation on one machine, without Flower, and what it is worth.

Folders of images stand for sites (`aggregator/simulate.py`); they are asked through the same worker
function, encoded messages and admission checks as in a deployment; only the transport is missing.
Several distillations, which differ in their seed alone, are judged together. Ends with the utility
table and what the gate says to it.

Everything is kept in one folder, so that an interrupted benchmark goes on: a folder a distillation,
named by contract and images, and the judges' trainings, which all of them share.
"""

import contextlib
import hashlib
import json
import statistics
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from aggregator.benchmark_contract import settled
from aggregator.distill.prior import Prior, PriorError, build_prior
from aggregator.federation import RESULT
from aggregator.judges import Judge, utility_rows
from aggregator.simulate import Hospital, HospitalError, Split, open_hospitals
from aggregator.trials import Trial, distil_all, read_trial
from aggregator.utility import ROWS, gate, table_text
from shared.architectures import Network, read_network
from shared.contract import ContractError, RunContract
from shared.durable import write_durably
from shared.readers import ReaderError, read_images
from shared.release.progress import progress

CONVERGED_STEPS = 4_800
"""Training steps of a judge from which on no row moves much."""
QUICK_STEPS = 1_200
PRIOR_FOLDER = "public-prior"
"""Taken from ``--data`` where a public prior is wanted and no folder is named."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Sources:
    """Where a benchmark's images come from."""

    data: Path
    holdout: Path | None = None
    public: Path | None = None
    split: Split = "choosing"
    sequence: str | None = None


def simulate(
    contract: RunContract,
    sources: Sources,
    *,
    judge: Judge,
    distillations: int,
    place: Path,
    rows: Collection[str] = ROWS,
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs ``distillations`` contracts of consecutive seeds over the hospitals, and judges them.

    ``place`` keeps what an interrupted benchmark goes on from. Raises ``ReaderError``,
    ``HospitalError``, ``PriorError`` or ``FederationError``.
    """
    place = place.absolute()
    keeps_apart = sources.split if sources.holdout is None else None
    hospitals, holdout = open_hospitals(
        sources.data,
        contract=contract,
        homes=place / "sites" / _short(sources, contract.task.modality, contract.min_patients),
        split=keeps_apart,
        sequence=sources.sequence,
    )
    if sources.holdout is not None:
        holdout = _read(sources.holdout, contract, sequence=sources.sequence)
    public = _read(sources.public, contract) if sources.public is not None else None
    train = [patient for one in hospitals for patient in one.training_images(contract.task)]
    images = hashlib.sha256(b"".join(one.tobytes() for one in [*train, *(public or [])]))
    trials = []
    for number in range(distillations):
        one = contract.model_copy(update={"seed": contract.seed + number})
        run = place / f"{one.digest()[:16]}-{images.hexdigest()[:8]}"
        trials.append(Trial(one, tuple(hospitals), run, sources.public))
    with progress("distilling", unit="rounds", quiet=quiet) as shown:
        distil_all(trials, workers=judge.workers, on_round=shown)
    with progress("judging", unit="steps", quiet=quiet) as shown:
        table = utility_rows(
            contract=contract,
            distillations=[read_trial(trial) for trial in trials],
            prior=_prior(contract, public),
            train=train,
            holdout=holdout,
            public=public,
            judge=judge,
            cache=place / "judged",
            rows=rows,
            on_progress=lambda done, total, eta_s: shown(done, total),
        )
    decided = gate(table)
    return {
        "contract": contract.model_dump(mode="json"),
        "contract_digest": contract.digest(),
        "task": contract.task.name,
        "split": keeps_apart,
        "converged": judge.steps >= CONVERGED_STEPS,
        **table,
        **_cost(trials, train=train, hospitals=hospitals, judging_s=table["judging_seconds"]),
        "gate": asdict(decided),
    }


def _cost(
    trials: Sequence[Trial],
    *,
    train: Sequence[FloatArray],
    hospitals: Sequence[Hospital],
    judging_s: float,
) -> dict[str, Any]:
    """Summaries, requests, seconds and bytes; seconds of the mean distillation."""
    results = [json.loads((trial.run / RESULT).read_bytes()) for trial in trials]
    spent = [result["seconds"] for result in results]
    phases = {
        "prepare": ("public",),
        "sites": ("sites-anchor", "sites-probes"),
        "distil": ("anchor", "probes", "distil"),
    }
    seconds = {
        name: round(statistics.mean(sum(one.get(part, 0.0) for part in of) for one in spent), 2)
        for name, of in phases.items()
    }
    indices = [hospital.cohort.index for hospital in hospitals]
    return {
        "releases": results[0]["releases"],
        "releases_of_all_sites": sum(one["releases"] for one in results[0]["sites"].values()),
        "requests": results[0]["requests"],
        "seconds": {**seconds, "utility": judging_s},
        "bytes_raw_native": sum(
            2 * rows * columns
            for index in indices
            for rows, columns in zip(index.rows, index.columns, strict=True)
        ),
        "training_patients": len(train),
        "training_slices": sum(len(slices) for slices in train),
        "sites": results[0]["sites"],
        "pooled": {one.name: list(one.folders) for one in hospitals if len(one.folders) > 1},
        "provenance": results[0]["provenance"],
    }


def _read(folder: Path, contract: RunContract, sequence: str | None = None) -> list[FloatArray]:
    task = contract.task
    return read_images(
        folder,
        size_px=task.size_px,
        low=task.window[0],
        high=task.window[1],
        modality=task.modality,
        sequence=sequence,
    )


def _prior(contract: RunContract, public: Sequence[FloatArray] | None) -> Prior:
    shown = None if public is None else torch.from_numpy(np.concatenate(list(public)))
    return build_prior(contract, public=shown)


def _short(sources: Sources, *more: object) -> str:
    """A name for the sites' homes: of the same patients under the same name."""
    about = (sources.data.resolve(), sources.split, sources.holdout is None, sources.sequence)
    return hashlib.sha256(repr((*about, *more)).encode()).hexdigest()[:16]


def _network(text: str | None, contract: RunContract) -> Network:
    """The judges' network: the contract's student, unless another one is named."""
    if text is None:
        return contract.student
    try:
        return read_network(text)
    except ValueError as error:
        raise ContractError(f"--judge {text}: {error}") from None


def command(
    data: Annotated[Path, typer.Option(help="Folder with one folder hospital-* a site.")],
    contract: Annotated[
        Path | None, typer.Option(help="Contract in TOML; the defaults where absent.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task instead of the contract's, with its defaults.")
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="phantom, public or both, instead of the contract's.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Distilled pairs, instead of the contract's.")
    ] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="Images to judge on, instead of a split of --data.")
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Which third of each hospital's patients is judged on.")
    ] = "choosing",
    public: Annotated[
        Path | None,
        typer.Option(help=f"Public images; else {PRIOR_FOLDER} in --data, if it is there."),
    ] = None,
    sequence: Annotated[
        str | None, typer.Option(help="MR series to take, such as FLAIR, by their name.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Network to judge with, such as unet:width=16; else the student."),
    ] = None,
    distillations: Annotated[
        int | None, typer.Option(min=1, help="Distillations of consecutive seeds. [default: 3]")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Judges of each set. [default: 3]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help=f"Training steps of each judge. [default: {CONVERGED_STEPS}]"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A smaller benchmark, far from convergence.")
    ] = False,
    run: Annotated[
        Path | None, typer.Option(help="Folder to keep everything in, to go on from.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 2,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything there as JSON.")
    ] = None,
) -> None:
    """Distil with simulated hospitals, and print what the pairs are worth beside every control.

    No Flower, no release. Interrupted, it goes on where it stopped if --run was given.
    """
    with contextlib.ExitStack() as stack:
        try:
            agreed = settled(contract, task=task, prior=prior, images=images, quick=quick)
            beside = data / PRIOR_FOLDER
            if public is None and (agreed.prior.kind != "phantom" or beside.is_dir()):
                public = beside  # nulls have it even where the distilled images do not
            table = simulate(
                agreed,
                Sources(data, holdout, public, split, sequence),
                judge=Judge(
                    task=agreed.task,
                    network=_network(judge, agreed),
                    steps=steps or (QUICK_STEPS if quick else CONVERGED_STEPS),
                    seeds=seeds or (2 if quick else 3),
                    workers=workers,
                    device="cuda" if torch.cuda.is_available() else "cpu",
                ),
                distillations=distillations or (1 if quick else 3),
                place=run or Path(stack.enter_context(tempfile.TemporaryDirectory())),
            )
        except (ContractError, ReaderError, HospitalError, PriorError) as error:
            _fail(str(error))
        except RuntimeError as error:
            if type(error) is RuntimeError:
                raise
            _fail(str(error))
        except KeyboardInterrupt:
            typer.echo("interrupted; nothing finished is lost" if run else "interrupted", err=True)
            raise typer.Exit(130) from None
    typer.echo(text_of(table))
    if json_file is not None:
        write_durably(json_file.absolute(), json.dumps(table, indent=2).encode(), mode=0o644)


def text_of(table: dict[str, Any]) -> str:
    """The table, what the gate says, and how far the figures may be trusted."""
    verdict = "passed" if table["gate"]["passed"] else "REFUSED"
    lines = [
        table_text(table),
        f"{'gate':<24} {verdict}: {table['gate']['reason']}",
        f"{table['judged_patients']} judged patients, {table['judged_slices']} slices; "
        "intervals are 95% over patients",
    ]
    if table["pooled"]:
        together = "; ".join(" + ".join(folders) for folders in table["pooled"].values())
        lines.append(f"too few patients a hospital: pooled {together}")
    if not table["converged"]:
        lines.append(
            f"NOT CONVERGED: {table['steps']} steps a judge, not {CONVERGED_STEPS}; "
            "every row would rise, full most"
        )
    return "\n".join(lines)


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1) from None

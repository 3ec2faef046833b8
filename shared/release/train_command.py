"""`distilled train`: fits a network on a release and scores it on one's own images."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shared.architectures import FAMILIES, read_network
from shared.durable import write_durably
from shared.release.command_line import (
    Folder,
    KeyFile,
    print_json,
    reporting,
    say,
    usage,
    verified,
)
from shared.release.errors import LocalError
from shared.release.model_card import MODEL, MODEL_CARD
from shared.release.progress import progress
from shared.threads import yield_cores


def train(
    folder: Folder,
    evaluate: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Images to score on: DICOM or NIfTI, by patient."),
    ],
    steps: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training steps.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Trainings to average over.")] = 3,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures here; - prints."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="KIND[:KEY=VALUE,…]",
            help=f"{', '.join(FAMILIES)}, as unet or unet:levels=2,width=8; the release's own by "
            "default.",
        ),
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which MR series of a patient; all if absent."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the first network here, with its model card."),
    ] = None,
    key_file: KeyFile = None,
) -> None:
    """Fits a network on the release and scores it on your images, beside the untouched input.

    The release is verified first. Your images are degraded as the release's task says; figures are
    means over patients, plus or minus the standard deviation over seeds.
    """
    prints_json = str(json_file) == "-"
    with reporting(prints_json):
        described = None if network is None else usage(read_network, network, "--network")
        for output in (save, None if prints_json else json_file):
            _refuse_output_inside(folder, output)
        if save is not None and save.exists() and not save.is_dir():
            raise LocalError(str(save), "is a file", "--save takes the folder to write into")
        release = verified(folder, key_file)
        yield_cores()
        from shared.release import train as training  # needs torch, which `get` does not

        contract = training.read_contract_of(folder)
        say(f"reading {evaluate}", err=True)
        patients = training.read_patients(evaluate, contract, sequence=sequence)
        with progress("training", unit="steps", quiet=prints_json) as advance:
            trained = training.train(
                folder,
                verified=release,
                patients=patients,
                steps=steps,
                seeds=seeds,
                network=described,
                on_step=advance,
            )
        if save is not None:
            _write(save / MODEL_CARD, trained.card.encode("utf-8"))
            _write(save / MODEL, trained.model)
        if prints_json:
            print_json(trained.report)
            return
        if json_file is not None:
            _write(json_file, json.dumps(trained.report, indent=1).encode() + b"\n")
        say(training.report_text(trained.report))
        if save is not None:
            say(f"the network of the first seed and its card are in {save}")


def _refuse_output_inside(folder: Path, output: Path | None) -> None:
    if output is not None and output.resolve().is_relative_to(folder.resolve()):
        raise LocalError(
            str(output),
            "would lie in the release's folder, which then no longer verifies",
            "write it elsewhere",
        )
    if output is not None and not output.resolve().parent.is_dir():
        raise LocalError(str(output), "its folder does not exist", "make the folder first")


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        write_durably(path, content, mode=0o644)
    except OSError as error:
        raise LocalError(str(path), f"cannot be written ({error.strerror})") from None

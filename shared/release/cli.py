"""`distilled`: get, verify, inspect and train on distilled datasets."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from shared.architectures import FAMILIES, read_network
from shared.durable import write_durably
from shared.release import client, publishers
from shared.release.errors import KINDS, LocalError, ReleaseError, UntrustedKeyError
from shared.release.keys import key_id, read_public_key
from shared.release.manifest import (
    MANIFEST,
    VERSION,
    Verified,
    VersionRecord,
    parse_manifest,
    read_document,
    sha256,
    verify_folder,
)
from shared.release.model_card import MODEL, MODEL_CARD
from shared.release.progress import progress
from shared.threads import yield_cores

EXIT_CODES = "\n".join(
    ["Exit codes:", "", "- 0 done", "- 2 wrong command line"]
    + [f"- {kind.exit_code} {kind.code}: {(kind.__doc__ or '').rstrip('.')}" for kind in KINDS]
    + ["- 130 interrupted"]
)

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Get, verify and train on distilled datasets of medical images.\n\n" + EXIT_CODES,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a release.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="The publisher's public key (PEM). Without it the pinned key is used.",
    ),
]
Address = Annotated[
    str, typer.Option("--from", metavar="URL", help="Address of the server that publishes.")
]


@app.command()
def get(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME[@VERSION]", help="Dataset; VERSION as v3, or a digest."),
    ],
    url: Address,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to put it; NAME-vN by default.")
    ] = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Downloads a release and verifies it; the folder is complete and genuine, or absent.

    The publisher's key is pinned when a server is first used; later releases must be signed by it.
    Give --key with a key you had from the publisher to trust that one instead.
    """
    with _reporting(as_json):
        reference = _usage(client.parse_reference, name, "NAME")
        _usage(publishers.origin, url, "--from")
        key = read_public_key(key_file) if key_file else None
        with progress("downloading", unit="bytes", quiet=as_json) as advance:
            fetched = client.get(reference, url=url, to=to, key=key, on_progress=advance)
        report = {
            **_about(fetched.verified),
            "folder": str(fetched.folder),
            "key": key_id(fetched.key),
            "key_pinned_now": fetched.newly_pinned,
            "already_there": fetched.already_there,
        }
        if as_json:
            _print_json(report)
            return
        if fetched.newly_pinned:
            _say(f"key {key_id(fetched.key)} of {publishers.origin(url)} is trusted from now on")
            _say(f"  and pinned in {publishers.known_publishers_file()}")
            if key is None:
                _say("  (first use: compare it with the key the publisher tells you)")
        what = "was already there" if fetched.already_there else "downloaded"
        _say(f"{fetched.folder}: {_title(fetched.verified)}, {what}, verified")


@app.command()
def verify(folder: Folder, key_file: KeyFile = None, as_json: Json = False) -> None:
    """Checks signatures and every file of a release; ends with a distinct code for each fault."""
    with _reporting(as_json):
        verified = verify_folder(folder, keys=_trusted(key_file))
        report = {**_about(verified), "folder": str(folder), "key": verified.version.key}
        if as_json:
            _print_json({**report, "verified": True})
            return
        _say(f"{folder}: {_title(verified)}, verified ({len(verified.manifest.files)} files)")


@app.command()
def info(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[DIR|NAME[@VERSION]]", help="A folder; or a name with --from."),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="Ask this server instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Shows what a release says of itself, without verifying it; with --from alone, the list."""
    with _reporting(as_json):
        if url is None:
            if target is None:
                raise typer.BadParameter("give the folder of a release, or --from URL")
            document = _folder_info(Path(target))
        else:
            _usage(publishers.origin, url, "--from")
            if target is None:
                document = client.catalogue(url)
            else:
                document = client.describe(_usage(client.parse_reference, target, "NAME"), url=url)
        if as_json:
            _print_json(document)
        elif isinstance(document.get("datasets"), list):
            for one in document["datasets"]:
                _say(f"{one.get('id')}  v{one.get('version')}  {str(one.get('digest'))[:16]}")
        else:
            for name, value in document.items():
                _say(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")


@app.command()
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
    with _reporting(prints_json):
        described = None if network is None else _usage(read_network, network, "--network")
        for output in (save, None if prints_json else json_file):
            _refuse_output_inside(folder, output)
        if save is not None and save.exists() and not save.is_dir():
            raise LocalError(str(save), "is a file", "--save takes the folder to write into")
        verified = verify_folder(folder, keys=_trusted(key_file))
        yield_cores()
        from shared.release import train as training  # needs torch, which `get` does not

        contract = training.read_contract_of(folder)
        _say(f"reading {evaluate}", err=True)
        patients = training.read_patients(evaluate, contract, sequence=sequence)
        with progress("training", unit="steps", quiet=prints_json) as advance:
            trained = training.train(
                folder,
                verified=verified,
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
            _print_json(trained.report)
            return
        if json_file is not None:
            _write(json_file, json.dumps(trained.report, indent=1).encode() + b"\n")
        _say(training.report_text(trained.report))
        if save is not None:
            _say(f"the network of the first seed and its card are in {save}")


def main() -> None:
    """The `distilled` command; a polite kill cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _terminate)
    app()


def _terminate(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(143)


@contextmanager
def _reporting(as_json: bool) -> Iterator[None]:
    """Turns a ``ReleaseError`` into its message and exit code."""
    try:
        yield
    except ReleaseError as error:
        if as_json:
            _print_json(
                {
                    "error": error.code,
                    "exit_code": error.exit_code,
                    "file": error.file,
                    "message": str(error),
                    "hint": error.hint,
                }
            )
        else:
            _say(f"error: {error}", err=True)
            if error.hint:
                _say(f"  {error.hint}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        _say("interrupted, nothing was left behind", err=True)
        raise typer.Exit(130) from None


def _usage(read: Callable[[str], T], text: str, parameter: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint=parameter) from None


def _trusted(key_file: Path | None) -> Sequence[Ed25519PublicKey]:
    if key_file is not None:
        return [read_public_key(key_file)]
    keys = publishers.pinned_keys()
    if not keys:
        raise UntrustedKeyError(
            VERSION,
            "no publisher's key is known yet",
            "pass it with --key FILE, or fetch a release with `distilled get` first",
        )
    return keys


def _about(verified: Verified) -> dict[str, Any]:
    version = verified.version
    return {
        "name": f"{version.namespace}/{version.name}",
        "version": version.number,
        "digest": verified.digest,
        "bytes": sum(file.bytes for file in verified.manifest.files),
    }


def _title(verified: Verified) -> str:
    version = verified.version
    return f"{version.namespace}/{version.name} v{version.number} ({verified.digest[:16]})"


def _folder_info(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise LocalError(str(folder), "is not a folder", "give a release's folder, or --from URL")
    manifest_content = read_document(folder, MANIFEST)
    manifest = parse_manifest(manifest_content)
    try:
        version = VersionRecord.model_validate_json(read_document(folder, VERSION))
        provenance = json.loads(read_document(folder, "provenance.json"))
        task = provenance["contract"]["task"]
    except (ValidationError, ValueError, KeyError, TypeError):
        raise LocalError(str(folder), "cannot be read as a release") from None
    return {
        "name": f"{version.namespace}/{version.name}",
        "version": version.number,
        "digest": sha256(manifest_content),
        "license": manifest.license,
        "files": {file.path: file.bytes for file in manifest.files},
        **{
            key: provenance.get(key)
            for key in ("pairs", "sites", "rounds", "prior", "privacy", "utility")
        },
        "task": task,
        "verified": "not checked here; run `distilled verify`",
    }


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


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, sort_keys=True))


def _say(text: str, *, err: bool = False) -> None:
    typer.echo(text, err=err)

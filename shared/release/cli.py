"""`distilled`: get, verify, inspect and train on distilled datasets."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import ValidationError

from shared.architectures import FAMILIES, read_network
from shared.durable import write_durably
from shared.release import agreements, client, publishers
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
    str | None, typer.Option("--from", metavar="URL", help="Address of the server that publishes.")
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="FEDSTILL_TOKEN",
        show_default=False,
        help="Your access token, for datasets that are not public. The variable is safer: other "
        "users of this machine can see a command line.",
    ),
]


@app.command()
def get(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]|URL",
            help="Dataset; VERSION as v3, or a digest. Or the address of its page.",
        ),
    ],
    url: Address = None,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to put it; NAME-vN by default.")
    ] = None,
    key_file: KeyFile = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Downloads a release and verifies it; the folder is complete and genuine, or absent.

    What came before an interruption is kept in the cache, and the next `get` goes on from there.
    The publisher's keys are pinned when a server is first used; later ones must follow from them.
    Give --key with a key you had from the publisher to trust that one instead.
    """
    with _reporting(as_json):
        server, reference = _target(name, url)
        key = read_public_key(key_file) if key_file else None
        with progress("downloading", unit="bytes", quiet=as_json) as advance:
            fetched = client.get(
                reference,
                url=server,
                to=to,
                key=key,
                token=_checked(token),
                on_progress=advance,
                say=_aside,
            )
        if fetched.newly_pinned:
            _aside(
                f"key {key_id(fetched.key)} of {publishers.origin(server)} is trusted from now on"
            )
            _aside(f"  and pinned in {publishers.known_publishers_file()}")
            if key is None:
                _aside("  (first use: compare it with the key the publisher tells you)")
        if fetched.rotated:
            _aside(f"{publishers.origin(server)} has new keys; they follow from those pinned")
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
        what = "was already there" if fetched.already_there else "downloaded"
        _say(f"{fetched.folder}: {_title(fetched.verified)}, {what}, verified")


@app.command()
def verify(folder: Folder, key_file: KeyFile = None, as_json: Json = False) -> None:
    """Checks signatures and every file of a release; ends with a distinct code for each fault."""
    with _reporting(as_json):
        verified = _verified(folder, key_file)
        report = {**_about(verified), "folder": str(folder), "key": verified.version.key}
        if as_json:
            _print_json({**report, "verified": True})
            return
        _say(f"{folder}: {_title(verified)}, verified ({len(verified.manifest.files)} files)")


@app.command()
def info(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR|NAME[@VERSION]|URL]",
            help="A folder; a name with --from; or the address of a dataset's page.",
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="Ask this server instead.")
    ] = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Shows what a release says of itself, without verifying it; with --from alone, the list."""
    with _reporting(as_json):
        if target is None:
            if url is None:
                raise typer.BadParameter("give the folder of a release, or --from URL")
            _usage(publishers.origin, url, "--from")
            document = client.catalogue(url, token=_checked(token))
        elif url is None and "://" not in target:
            document = _folder_info(Path(target))
        else:
            server, reference = _target(target, url)
            document = client.describe(reference, url=server, token=_checked(token))
        if as_json:
            _print_json(document)
        elif isinstance(document.get("datasets"), list):
            for one in document["datasets"]:
                _say(f"{one.get('id')}  v{one.get('version')}  {str(one.get('digest'))[:16]}")
        else:
            for name, value in document.items():
                _say(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")


@app.command()
def accept(
    name: Annotated[
        str, typer.Argument(metavar="NAME|URL", help="Dataset, or the address of its page.")
    ],
    url: Address = None,
    token: Token = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Accept without being asked, having read it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Shows the data-use agreement of a dataset and accepts it for the owner of your token."""
    with _reporting(as_json):
        server, reference = _target(name, url)
        given = _checked(token)
        agreement = agreements.read(reference, url=server, token=given)
        _aside(agreement.text)
        if not yes and not typer.confirm(
            f"accept version {agreement.version} of this agreement?", err=True
        ):
            _aside("not accepted")
            raise typer.Exit(1)
        agreements.accept(reference, agreement.version, url=server, token=given)
        dataset = f"{reference.namespace}/{reference.name}"
        if as_json:
            _print_json({"name": dataset, "agreement": agreement.version, "accepted": True})
            return
        _say(f"{dataset}: agreement {agreement.version} accepted")


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
        verified = _verified(folder, key_file)
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
        _say("interrupted; nothing incomplete was left at the destination", err=True)
        raise typer.Exit(130) from None


def _usage(read: Callable[[str], T], text: str, parameter: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint=parameter) from None


def _target(text: str, url: str | None) -> tuple[str, client.Reference]:
    """The server and what to get there, from a page's address or a name with ``--from``."""
    if "://" in text:
        if url is not None:
            raise typer.BadParameter(
                "leave it out where a page's address is given", param_hint="--from"
            )
        return _usage(client.parse_address, text, "URL")
    reference = _usage(client.parse_reference, text, "NAME")
    if url is None:
        raise typer.BadParameter("give the server's address", param_hint="--from")
    _usage(publishers.origin, url, "--from")
    return url, reference


def _checked(token: str | None) -> str | None:
    """The token, if it can be one; what is wrong is said without it."""
    if not token:
        return None
    if not token.isascii() or not token.isprintable() or " " in token or len(token) > 512:
        raise typer.BadParameter("is no token: paste it without spaces", param_hint="--token")
    return token


def _verified(folder: Path, key_file: Path | None) -> Verified:
    """The release in ``folder``, verified by the key given, or by those pinned."""
    revoked = publishers.revoked_keys()
    if key_file is not None:
        return verify_folder(folder, keys=[read_public_key(key_file)], revoked=revoked)
    keys = publishers.pinned_keys()
    if not keys:
        raise UntrustedKeyError(
            VERSION,
            "no publisher's key is known yet",
            "pass it with --key FILE, or fetch a release with `distilled get` first",
        )
    return verify_folder(folder, keys=keys, revoked=revoked)


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


def _aside(text: str) -> None:
    """To standard error: what a person should see whatever the output is used for."""
    _say(text, err=True)

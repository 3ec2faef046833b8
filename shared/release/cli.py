"""`distilled`: get, verify, inspect and train on distilled datasets."""

import json
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from shared.release import agreements, client, publishers
from shared.release.command_line import (
    Address,
    Folder,
    Json,
    KeyFile,
    Token,
    about,
    aside,
    checked,
    print_json,
    reporting,
    say,
    target,
    title,
    usage,
    verified,
)
from shared.release.errors import KINDS, LocalError
from shared.release.keys import key_id, read_public_key
from shared.release.manifest import (
    MANIFEST,
    VERSION,
    VersionRecord,
    parse_manifest,
    read_document,
    sha256,
)
from shared.release.progress import progress
from shared.release.provenance import read_predicate
from shared.release.train_command import train

EXIT_CODES = "\n".join(
    ["Exit codes:", "", "- 0 done", "- 2 wrong command line"]
    + [f"- {kind.exit_code} {kind.code}: {(kind.__doc__ or '').rstrip('.')}" for kind in KINDS]
    + ["- 130 interrupted"]
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Get, verify and train on distilled datasets of medical images.\n\n" + EXIT_CODES,
)


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
    with reporting(as_json):
        server, reference = target(name, url)
        key = read_public_key(key_file) if key_file else None
        with progress("downloading", unit="bytes", quiet=as_json) as advance:
            fetched = client.get(
                reference,
                url=server,
                to=to,
                key=key,
                token=checked(token),
                on_progress=advance,
                say=aside,
            )
        for line in client.news_of_keys(fetched, url=server, given=key is not None):
            aside(line)
        report = {
            **about(fetched.verified),
            "folder": str(fetched.folder),
            "key": key_id(fetched.key),
            "key_pinned_now": fetched.newly_pinned,
            "already_there": fetched.already_there,
        }
        if as_json:
            print_json(report)
            return
        what = "was already there" if fetched.already_there else "downloaded"
        say(f"{fetched.folder}: {title(fetched.verified)}, {what}, verified")


@app.command()
def verify(folder: Folder, key_file: KeyFile = None, as_json: Json = False) -> None:
    """Checks signatures and every file of a release; ends with a distinct code for each fault."""
    with reporting(as_json):
        release = verified(folder, key_file)
        report = {**about(release), "folder": str(folder), "key": release.version.key}
        if as_json:
            print_json({**report, "verified": True})
            return
        say(f"{folder}: {title(release)}, verified ({len(release.manifest.files)} files)")


@app.command()
def info(
    what: Annotated[
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
    with reporting(as_json):
        if what is None:
            if url is None:
                raise typer.BadParameter("give the folder of a release, or --from URL")
            usage(publishers.origin, url, "--from")
            document = client.catalogue(url, token=checked(token))
        elif url is None and "://" not in what:
            document = _folder_info(Path(what))
        else:
            server, reference = target(what, url)
            document = client.describe(reference, url=server, token=checked(token))
        if as_json:
            print_json(document)
        elif isinstance(document.get("datasets"), list):
            for one in document["datasets"]:
                say(f"{one.get('id')}  v{one.get('version')}  {str(one.get('digest'))[:16]}")
        else:
            for name, value in document.items():
                say(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")


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
    with reporting(as_json):
        server, reference = target(name, url)
        given = checked(token)
        agreement = agreements.read(reference, url=server, token=given)
        aside(agreement.text)
        if not yes and not typer.confirm(
            f"accept version {agreement.version} of this agreement?", err=True
        ):
            aside("not accepted")
            raise typer.Exit(1)
        agreements.accept(reference, agreement.version, url=server, token=given)
        dataset = f"{reference.namespace}/{reference.name}"
        if as_json:
            print_json({"name": dataset, "agreement": agreement.version, "accepted": True})
            return
        say(f"{dataset}: agreement {agreement.version} accepted")


app.command()(train)


def main() -> None:
    """The `distilled` command; a polite kill cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _terminate)
    app()


def _terminate(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(143)


def _folder_info(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise LocalError(str(folder), "is not a folder", "give a release's folder, or --from URL")
    manifest_content = read_document(folder, MANIFEST)
    manifest = parse_manifest(manifest_content)
    try:
        version = VersionRecord.model_validate_json(read_document(folder, VERSION))
        provenance = read_predicate(read_document(folder, "provenance.json"))
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

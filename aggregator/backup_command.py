"""``aggregator backup`` and ``aggregator restore``: a home in one file, and out of it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from aggregator.command_line import DEFAULT_HOME, Home, Json, clear_errors, existing


def backup(
    file: Annotated[Path, typer.Argument(help="The archive to write, a tar; must not exist yet.")],
    home: Home = DEFAULT_HOME,
    with_keys: Annotated[
        bool,
        typer.Option(
            "--with-keys", help="Take the private keys too: keep the file as you keep those."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Writes the home into one file, also while `aggregator up` runs.

    Catalog, published files, runs, sites, settings, public keys. Not Flower's database, which `up`
    makes anew, nor logs.
    """
    with clear_errors():
        from aggregator.archive import ArchiveError
        from aggregator.backup import back_up
        from shared.release.progress import progress

        try:
            with progress("backing up", unit="bytes", quiet=as_json) as advance:
                made = back_up(existing(home), file, with_keys=with_keys, advance=advance)
        except OSError as error:
            raise ArchiveError(f"{error.filename or file}: {error.strerror}") from None
    told = made.manifest
    if as_json:
        document = {
            "file": str(made.file),
            "bytes": made.bytes,
            "files": len(told.files),
            "digest": told.digest(),
            "private_keys": told.private_keys,
            "left_out": told.left_out,
            "storage": told.storage,
        }
        typer.echo(json.dumps(document))
        return
    typer.echo(f"{made.file}: {len(told.files)} files, {made.bytes} bytes, read back")
    typer.echo(f"  digest {told.digest()}")
    if told.private_keys:
        typer.echo(
            "  PRIVATE KEYS ARE IN IT: who has it can sign releases and contracts in your name"
        )
    else:
        typer.echo(
            f"  {len(told.left_out)} private keys are not in it, and without them nobody can sign: "
            "keep them apart, or --with-keys"
        )
    if told.storage:
        typer.echo(
            f"  published files stay in {told.storage}, {len(told.elsewhere)} by name: turn on "
            "versioning of the bucket, and forbid to delete"
        )


def restore(
    file: Annotated[Path, typer.Argument(help="What `aggregator backup` wrote.")],
    home: Annotated[Path, typer.Option(help="Folder to make; must not exist, or be empty.")],
    database: Annotated[
        str | None,
        typer.Option(help="An empty PostgreSQL database, in place of the one in the settings."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Makes a home out of a backup: every byte is verified first, and nothing is left half made."""
    with clear_errors():
        from aggregator.archive import ArchiveError
        from aggregator.restore import restore as make
        from shared.release.progress import progress

        try:
            with progress("restoring", unit="bytes", quiet=as_json) as advance:
                made = make(file, home, database=database, advance=advance)
        except OSError as error:
            raise ArchiveError(f"{error.filename or home}: {error.strerror}") from None
    told = made.manifest
    if as_json:
        document = {
            "home": str(made.home.root),
            "files": len(told.files),
            "digest": told.digest(),
            "missing": told.left_out,
        }
        typer.echo(json.dumps(document))
        return
    typer.echo(f"{made.home.root}: as it was on {told.created}, digest {told.digest()}")
    if told.left_out:
        typer.echo("  put these private keys back, mode 0600: " + ", ".join(told.left_out))
    if told.storage:
        typer.echo(f"  published files are in {told.storage}: `doctor --deep` reads them")
    typer.echo(f"Next: `aggregator doctor --home {home}`, then `aggregator up --home {home}`.")

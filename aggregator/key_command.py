"""``aggregator key``: the keys releases and heads are signed with, and the lists that name them."""

import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aggregator.catalog import Catalog, Version
from aggregator.command_line import DEFAULT_HOME, Home, Json, clear_errors, existing
from aggregator.home import AggregatorHome
from aggregator.publisher_keys import PublisherKeys
from aggregator.store import BlobStore
from shared.release.key_list import KeyList
from shared.release.keys import decode_key, key_id
from shared.release.manifest import VERSION, VersionRecord

app = typer.Typer(help="The keys releases are signed with.", no_args_is_help=True)


class Which(StrEnum):
    """Which key."""

    release = "release"
    head = "head"


@app.command("list")
def list_keys(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Shows the keys in force, the retired and the revoked ones."""
    with clear_errors():
        newest = _keys(home).newest()
    _show(newest, as_json=as_json)


@app.command()
def rotate(
    which: Annotated[Which, typer.Argument(help="release, or head.")] = Which.release,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Makes a new key. What the old release key signed stays genuine: it is retired."""
    with clear_errors():
        newest = _keys(home).rotate(which.value)
    _show(newest, as_json=as_json)


@app.command()
def revoke(
    fingerprint: Annotated[str, typer.Argument(help="The key's, or its first 8 digits at least.")],
    reason: Annotated[str, typer.Option(help="What researchers are told.")],
    honour_published: Annotated[
        bool,
        typer.Option(
            "--honour-published",
            help="Vouch for what the catalog holds now: those versions stay genuine. Without it "
            "all that the key signed is refused.",
        ),
    ] = False,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Revokes a key, for good; one in force is replaced by a new one in the same step."""
    with clear_errors():
        place = existing(home)

        def honoured(key: str) -> Sequence[str]:
            return _published_by(place, key) if honour_published else ()

        newest = _keys(home).revoke(fingerprint, reason=reason, honoured=honoured)
    _show(newest, as_json=as_json)


def _keys(home: Path) -> PublisherKeys:
    keys = PublisherKeys(existing(home).release_key.parent)
    keys.ensure()
    return keys


def _show(newest: KeyList, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(newest.model_dump(mode="json")))
        return
    typer.echo(f"key list {newest.sequence}")
    for one in newest.keys:
        typer.echo(f"  {one.use:<8} {key_id(decode_key(one.key))}  since {one.since}")
    for gone in newest.revoked:
        honoured = f", {len(gone.honoured)} versions honoured" if gone.honoured else ""
        typer.echo(f"  revoked  {key_id(decode_key(gone.key))}  {gone.reason}{honoured}")


def _published_by(home: AggregatorHome, key: str) -> list[str]:
    """SHA-256 of each VERSION.json in the catalog, not withdrawn, that names that key."""
    catalog, store = Catalog(home.catalog), BlobStore(home.blobs)
    try:
        found = []
        for version in _versions(catalog):
            file = version.file(VERSION)
            if file is not None:
                content = b"".join(store.read(file.sha256, start=0, end=file.bytes))
                if VersionRecord.model_validate_json(content).key == key:
                    found.append(file.sha256)
        return found
    finally:
        catalog.close()


def _versions(catalog: Catalog) -> Iterator[Version]:
    """Every version of every dataset that is not withdrawn."""
    page = 100
    total, _ = catalog.datasets(limit=1, visible_to=None)
    for offset in range(0, total, page):
        for newest in catalog.datasets(offset=offset, limit=page, visible_to=None)[1]:
            for number in range(newest.number, 0, -1):
                version = catalog.find(newest.namespace, newest.name, f"v{number}")
                if version is not None and version.withdrawn is None:
                    yield version

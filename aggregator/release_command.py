"""``aggregator release``: what was published, and taking a version back."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aggregator.command_line import DEFAULT_HOME, Home, Json, clear_errors, existing
from shared.release.client import NAMESPACE, parse_reference

if TYPE_CHECKING:
    from aggregator.catalog import VersionEntry

app = typer.Typer(help="The published versions.", no_args_is_help=True)
PAGE = 100


@app.command("list")
def list_versions(
    name: Annotated[str, typer.Argument(help="The dataset's name.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Shows a dataset's versions, newest first, withdrawn ones with their reason."""
    with clear_errors():
        from aggregator.catalog import Catalog

        catalog = Catalog(existing(home).catalog)
        versions: list[VersionEntry] = []
        while page := catalog.versions(NAMESPACE, name, offset=len(versions), limit=PAGE):
            versions += page
        catalog.close()
    if as_json:
        typer.echo(json.dumps({"name": name, "versions": [_facts(one) for one in versions]}))
        return
    for one in versions:
        gone = one.withdrawn
        typer.echo(
            f"v{one.number}  {one.created_at[:10]}  {one.commit}"
            + (f"  withdrawn {gone.at[:10]}: {gone.reason}" if gone else "")
        )
    if not versions:
        typer.echo(f"nothing is published as {name}")


@app.command()
def withdraw(
    version: Annotated[str, typer.Argument(help="Dataset and version, as NAME@v3.")],
    reason: Annotated[
        str, typer.Option(help="Why, for all who ask for it: at most 500 characters.")
    ],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Hands out a version no more, for good: who asks for it is told the reason."""
    with clear_errors():
        from aggregator.catalog import Catalog

        namespace, name, number = _parsed(version)
        catalog = Catalog(existing(home).catalog)
        try:
            catalog.withdraw(namespace, name, number, reason)
            head = catalog.head(namespace, name)
        finally:
            catalog.close()
    newest = head.newest if head else None
    if as_json:
        typer.echo(
            json.dumps({"name": name, "version": number, "main": newest.number if newest else None})
        )
        return
    now = f"main is v{newest.number}" if newest else "no version is left"
    typer.echo(f"{name}@v{number} is withdrawn; {now}. Copies that were downloaded remain.")


def _parsed(version: str) -> tuple[str, str, int]:
    try:
        reference = parse_reference(version)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not reference.revision.startswith("v"):
        raise typer.BadParameter("name one version by its number, as in ct-demo@v3")
    return reference.namespace, reference.name, int(reference.revision[1:])


def _facts(one: "VersionEntry") -> dict[str, Any]:
    gone = one.withdrawn
    return {
        "version": one.number,
        "digest": one.digest,
        "created_at": one.created_at,
        "withdrawn": {"at": gone.at, "reason": gone.reason} if gone else None,
    }

"""``aggregator dataset`` and ``aggregator downloads``: who may have a dataset, and who had it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aggregator.access.audit import Audit
from aggregator.catalog import Catalog, CatalogError, Visibility
from aggregator.command_line import DEFAULT_HOME, Home, Json, clear_errors, existing
from aggregator.database import Database
from aggregator.token_command import full_name
from shared.release.client import NAMESPACE, parse_reference

app = typer.Typer(help="Who may have a dataset.", no_args_is_help=True)
MAX_AGREEMENT_BYTES = 65_536


@app.command("set")
def configure(
    name: Annotated[str, typer.Argument(help="The dataset's name; it need not be there yet.")],
    visibility: Annotated[
        Visibility | None,
        typer.Option(help="public; gated: an agreement first; private: those with a token."),
    ] = None,
    agreement: Annotated[
        Path | None,
        typer.Option(help="Text of the data-use agreement; a changed one is asked for again."),
    ] = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Sets who may have a dataset, at once, also where the API is running."""
    with clear_errors():
        _check_name(name)
        catalog = Catalog(existing(home).catalog)
        try:
            text = read_agreement(agreement) if agreement else None
            made = catalog.configure(NAMESPACE, name, visibility=visibility, agreement=text)
        finally:
            catalog.close()
    document = {
        "name": name,
        "visibility": made.visibility,
        "agreement_version": made.agreement_version,
        "published": made.last_number > 0,
    }
    if as_json:
        typer.echo(json.dumps(document))
        return
    agreed = f", agreement {made.agreement_version}" if made.agreement_version else ""
    none = "" if made.last_number else "; no version of it is published yet"
    typer.echo(f"{name} is {made.visibility}{agreed}{none}")


def list_downloads(
    dataset: Annotated[str | None, typer.Option(help="Of this dataset alone.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many.")] = 100,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Shows what was downloaded by whom, newest first. Of anonymous ones no address is kept."""
    with clear_errors():
        database = Database(existing(home).catalog)
        found = Audit(database).newest(dataset=full_name(dataset) if dataset else None, limit=limit)
        database.close()
    if as_json:
        typer.echo(json.dumps({"downloads": [asdict(one) for one in found]}))
        return
    for one in found:
        who = one.principal or "anonymous"
        typer.echo(f"{one.at}  {who}  {one.dataset}@v{one.number}  {one.path}  {one.bytes} bytes")
    if not found:
        typer.echo("nothing was downloaded")


def read_agreement(path: Path) -> str:
    """The text of an agreement; raises ``CatalogError``."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8").strip()
    except OSError as error:
        raise CatalogError(f"--agreement {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CatalogError(f"--agreement {path}: is not UTF-8") from None
    if not text or len(content) > MAX_AGREEMENT_BYTES or "\0" in text:
        raise CatalogError(f"--agreement {path}: has 1 to {MAX_AGREEMENT_BYTES} bytes of text")
    return text + "\n"


def _check_name(name: str) -> None:
    try:
        reference = parse_reference(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if name != reference.name:
        raise typer.BadParameter("a dataset's name alone, without namespace and version")

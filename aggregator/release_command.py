"""``aggregator release``: from a run to a version in three steps, and taking a version back."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aggregator.command_line import (
    DEFAULT_HOME,
    EXIT_REFUSED,
    TOKEN_VARIABLE,
    Home,
    Json,
    clear_errors,
    existing,
)
from shared.release.client import NAMESPACE, parse_reference

if TYPE_CHECKING:
    from aggregator.catalog import VersionEntry
    from aggregator.home import AggregatorHome

app = typer.Typer(
    help="Publishing a run step by step, and what is published.", no_args_is_help=True
)
PAGE = 100

Run = Annotated[str, typer.Argument(help="The run: its contract's digest, its begin, or its name.")]
As = Annotated[str | None, typer.Option("--as", help="Who acts, for the record; else the user.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with a token of scope launch:run, whose owner acts; else FEDSTILL_TOKEN."
    ),
]


@app.command()
def build(
    run: Run,
    home: Home = DEFAULT_HOME,
    named: As = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Makes a finished run's release in its folder, to look at. Nothing is published."""
    with clear_errors():
        from aggregator.publishing import RELEASE, build_release, find_run

        place = existing(home)
        folder, by = find_run(place, run), _acting(place, named, token_file)
        built = build_release(place, folder, by=by)
    if as_json:
        typer.echo(built.model_dump_json())
        return
    typer.echo(f"built by {by}, not published\n  digest {built.manifest}\n  {folder / RELEASE}")


@app.command("gate")
def ask_gates(
    run: Run,
    home: Home = DEFAULT_HOME,
    named: As = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Asks every gate about a finished run and records what they say: gates.json in its folder.

    Exit code 4 where one refuses.
    """
    with clear_errors():
        from aggregator.publishing import find_run, gate_release

        place = existing(home)
        folder, by = find_run(place, run), _acting(place, named, token_file)
        report = gate_release(place, folder, by=by)
    if as_json:
        typer.echo(json.dumps({**report.model_dump(mode="json"), "passed": report.passed}))
    else:
        for one in report.findings:
            hint = f"; {one.hint}" if one.hint else ""
            typer.echo(
                f"{one.gate:<10} {'passed' if one.passed else 'REFUSED'}: {one.reason}{hint}"
            )
    if not report.passed:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def publish(
    run: Run,
    home: Home = DEFAULT_HOME,
    named: As = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Publishes what was built, where the gates passed on just that. Exit code 4 where not."""
    with clear_errors():
        from aggregator.publishing import find_run, publish_release

        place = existing(home)
        folder, by = find_run(place, run), _acting(place, named, token_file)
        release = publish_release(place, folder, by=by)
    if as_json:
        typer.echo(json.dumps({**asdict(release), "by": by, "run": str(folder)}))
        return
    typer.echo(
        f"published {release.name} v{release.version}\n  digest {release.digest}\n  {release.url}"
    )


def _acting(home: "AggregatorHome", named: str | None, token_file: Path | None) -> str:
    """Who acts. Raises ``PrincipalError``, or ends the command where the file cannot be read."""
    from aggregator.publishing import principal

    token = os.environ.get(TOKEN_VARIABLE)
    if token_file is not None:
        try:
            token = token_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            raise typer.BadParameter(f"--token-file {token_file}: cannot be read") from None
    return principal(home, named=named, token=token)


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

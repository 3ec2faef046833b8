"""``aggregator coordinator``: who signs contracts, with keys that sites pin."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from aggregator.command_line import DEFAULT_HOME, Home, Json, clear_errors, existing
from aggregator.coordinators import (
    Coordinator,
    add_coordinator,
    coordinators,
    revoke_coordinator,
)

app = typer.Typer(help="Who signs contracts, with keys that sites pin.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The coordinator's name: a-z, 0-9 and hyphens.")]


@app.command()
def add(name: Name, home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Makes a coordinator's key. New kits have it; sites that joined before add it themselves."""
    with clear_errors():
        made = add_coordinator(existing(home), name)
    if as_json:
        typer.echo(json.dumps(asdict(made)))
        return
    typer.echo(f"{_told(made)}\ntell sites that have joined: add it to policy.toml, coordinators")


@app.command("list")
def list_coordinators(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Shows who signs, with the public keys as sites list them, and who was revoked."""
    with clear_errors():
        found = coordinators(existing(home))
    if as_json:
        typer.echo(json.dumps({"coordinators": [asdict(one) for one in found]}))
        return
    for one in found:
        typer.echo(_told(one))


@app.command()
def revoke(name: Name, home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Removes a coordinator's key for good. Tell the sites, which drop it from policy.toml."""
    with clear_errors():
        gone = revoke_coordinator(existing(home), name)
    if as_json:
        typer.echo(json.dumps(asdict(gone)))
        return
    typer.echo(
        f"{_told(gone)}\nif the key may be in other hands, tell every site to remove it from "
        "policy.toml, coordinators: until then a site takes what it signed"
    )


def _told(one: Coordinator) -> str:
    return f"{one.name}  {'revoked' if one.revoked else 'signs'}  key {one.key}"

"""``aggregator vacuum``: gives back what databases hold without using it."""

import json
from typing import Annotated

import typer

from aggregator.command_line import DEFAULT_HOME, Home, Json, clear_errors, existing

MIB = 1 << 20


def vacuum(
    home: Home = DEFAULT_HOME,
    wait_s: Annotated[
        float,
        typer.Option("--wait", min=0, help="How long to wait for `up` to find a moment, seconds."),
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Makes Flower's database, and a catalog in SQLite, as small as what is in them.

    Nothing is dropped. Where `up` runs, it ends the SuperLink for that, once no run is worked on;
    sites connect again by themselves.
    """
    with clear_errors():
        from aggregator.vacuum import vacuum_home

        won = vacuum_home(existing(home), wait_s=wait_s)
    if as_json:
        typer.echo(json.dumps({"databases": [one.model_dump() for one in won]}))
        return
    for one in won:
        typer.echo(
            f"{one.database}: {one.before / MIB:.1f} MiB before, {one.after / MIB:.1f} MiB now"
        )
    if not won:
        typer.echo("there is no database yet")

"""``aggregator run``: the runs of this home, and what is wanted of them."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from aggregator.command_line import DEFAULT_HOME, EXIT_FAILED, Home, Json, clear_errors, existing
from aggregator.lifecycle import RunState, Wanted

app = typer.Typer(help="The runs: what they do, and whether they should.", no_args_is_help=True)
Run = Annotated[
    str, typer.Argument(help="The contract's digest, its beginning, or the run's name.")
]


@app.command("list")
def list_runs(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Shows all runs, the newest first."""
    with clear_errors():
        from aggregator.desk_api import survey
        from aggregator.run_view import headline

        found = survey(existing(home))
    if as_json:
        keys = {"digest", "name", "state", "round", "rounds"}
        listed = [one.model_dump(mode="json", include=keys) for one in found.runs]
        damaged = [one.model_dump() for one in found.unreadable]
        typer.echo(json.dumps({"runs": listed, "unreadable": damaged}))
        return
    for one in found.runs:
        typer.echo(headline(one))
    for two in found.unreadable:
        typer.echo(f"{two.folder}  unreadable: {two.reason}", err=True)
    if not found.runs and not found.unreadable:
        typer.echo("no run yet: `aggregator contract new`, then `aggregator launch`")


@app.command()
def show(run: Run, home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Shows a run: state and why, each site and why it waits, the rounds that are done."""
    with clear_errors():
        from aggregator.desk_api import run_view
        from aggregator.run_view import render

        view = run_view(existing(home), run)
    if as_json:
        typer.echo(view.model_dump_json())
        return
    Console(width=None if sys.stdout.isatty() else 160).print(render(view))


@app.command()
def watch(run: Run, home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Follows a run until nobody works on it; Ctrl-C stops watching, not the run.

    With --json the run is one object a line, whenever something has changed. Ends with code 0
    where the run has finished, 1 where it was paused, aborted or failed.
    """
    with clear_errors():
        from aggregator.desk_api import run_view
        from aggregator.publishing import find_run
        from aggregator.run_view import headline, looks, render

        place = existing(home)
        folder = find_run(place, run)
        seen, before = run_view(place, folder.name), ""
        views = looks(folder, lambda: run_view(place, folder.name))
        if sys.stdout.isatty() and not as_json:
            with Live(render(seen), console=Console(), refresh_per_second=4) as live:
                for seen in views:
                    live.update(render(seen))
        else:
            for seen in views:
                waits = "; ".join(site.reason for site in seen.sites if site.reason)
                line = seen.model_dump_json() if as_json else f"{headline(seen)}  {waits}".rstrip()
                if line != before:
                    typer.echo(line)
                before = line
    if seen.state.state not in ("finished", "published"):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def pause(run: Run, home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Ends a run's work after the round it is in; `run resume` goes on with the next."""
    _ask(run, "pause", home=home, as_json=as_json)


@app.command()
def stop(run: Run, home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Ends a run's work within seconds; `run resume` asks the round again, which costs nothing."""
    _ask(run, "stop", home=home, as_json=as_json)


@app.command()
def abort(
    run: Run,
    home: Home = DEFAULT_HOME,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether it is meant.")] = False,
    as_json: Json = False,
) -> None:
    """Ends a run for good: it can neither be resumed nor published."""
    if not yes:
        typer.confirm(f"End run {run} for good?", abort=True, err=True)
    _ask(run, "abort", home=home, as_json=as_json)


@app.command()
def resume(run: Run, home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Goes on with a run that was paused or has failed, after its last finished round."""
    with clear_errors():
        from aggregator.lifecycle import read_state, request, submit
        from aggregator.publishing import find_run
        from aggregator.superlink import superlink

        place = existing(home)
        folder = find_run(place, run)
        request(folder, "run")
        with superlink(place) as link:
            submit(link, folder)
        state = read_state(folder)
    _tell(folder.name, state, as_json=as_json)


def _ask(run: str, wanted: Wanted, *, home: Home, as_json: bool) -> None:
    with clear_errors():
        from aggregator.lifecycle import request
        from aggregator.publishing import find_run

        folder = find_run(existing(home), run)
        state = request(folder, wanted)
    _tell(folder.name, state, as_json=as_json)


def _tell(name: str, state: RunState, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"run": name, **state.model_dump(mode="json")}))
        return
    typer.echo(f"run {name} is {state.state}" + (f": {state.reason}" if state.reason else ""))

"""The ``aggregator`` command: init, up, site add, list and revoke, launch, simulate, attack."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from aggregator import (
    contract_command,
    dataset_command,
    key_command,
    release_command,
    run_command,
    token_command,
)
from aggregator.backup_command import backup, restore
from aggregator.command_line import (
    DEFAULT_HOME,
    EXIT_REFUSED,
    Home,
    Json,
    clear_errors,
    existing,
)
from aggregator.coordinator_command import app as coordinator_app
from aggregator.doctor_command import doctor
from aggregator.home import AggregatorHome, create_home
from aggregator.vacuum_command import vacuum
from shared.contract import read_contract
from shared.log_lines import LogFormat
from shared.threads import yield_cores

app = typer.Typer(
    help="The coordinator's side of fedstill: enrols sites, distils with them, publishes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
site = typer.Typer(help="The hospitals that take part.", no_args_is_help=True)
app.add_typer(site, name="site")
app.add_typer(coordinator_app, name="coordinator")
app.add_typer(contract_command.app, name="contract")
app.add_typer(key_command.app, name="key")
app.add_typer(release_command.app, name="release")
app.add_typer(run_command.app, name="run")
app.add_typer(token_command.app, name="token")
app.add_typer(dataset_command.app, name="dataset")
app.command("downloads")(dataset_command.list_downloads)
app.command()(doctor)
app.command()(backup)
app.command()(restore)
app.command()(vacuum)


@app.command()
def init(
    home: Home = DEFAULT_HOME,
    public_name: Annotated[
        str | None, typer.Option(help="Name or IP address the sites reach this machine under.")
    ] = None,
    public_port: Annotated[
        int | None, typer.Option(help="Port the sites reach, the edge proxy's.")
    ] = None,
    superlink_port: Annotated[
        int | None, typer.Option(help="Loopback port of the SuperLink (never public).")
    ] = None,
    api_host: Annotated[
        str | None, typer.Option(help="Address the release API listens on.")
    ] = None,
    api_port: Annotated[int | None, typer.Option(help="Port of the release API.")] = None,
    as_json: Json = False,
) -> None:
    """Creates the home: settings, own CA, server certificate, release key. Safe to repeat."""
    given = {
        "public_name": public_name,
        "public_port": public_port,
        "superlink_port": superlink_port,
        "api_host": api_host,
        "api_port": api_port,
    }
    with clear_errors():
        made = create_home(home, {name: value for name, value in given.items() if value})
    settings = made.settings
    document = {
        "home": str(made.root),
        "superlink": settings.public_address,
        "api": made.api_url,
        "release_key": str(made.release_key.with_suffix(".pub")),
    }
    if as_json:
        typer.echo(json.dumps(document))
        return
    typer.echo(
        f"Aggregator home {made.root}\n"
        f"  tell each site the address: {document['superlink']}\n"
        f"  give researchers: {document['release_key']}\n"
        f"Next: `aggregator up --home {home}`, then `aggregator site add ENROLMENT.json`."
    )


@app.command()
def up(
    home: Home = DEFAULT_HOME,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            envvar="FEDSTILL_LOG_FORMAT",
            help="One line an event: json, or text; auto is text in a terminal.",
        ),
    ] = LogFormat.AUTO,
) -> None:
    """Runs the SuperLink and the release API until Ctrl-C, and starts them again if they end."""
    from aggregator.events import begin

    with clear_errors():
        from aggregator.services import run_services

        place = create_home(existing(home).root, {})
        code = run_services(place, form=begin(log_format))
    raise typer.Exit(code)


@site.command("add")
def add_site(
    enrolment: Annotated[Path, typer.Argument(help="The enrolment.json a site handed over.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Enrols a site and writes the kit it joins with. With the SuperLink up or not; repeatable."""
    with clear_errors():
        from aggregator.enrolment import read_enrolment, record_site, write_kit

        place = existing(home)
        read = read_enrolment(enrolment)
        new = record_site(place, read)
        kit = write_kit(place, read)
        registered = _tell_superlink(place)
    document = {"name": read.name, "new": new, "registered": registered, "kit": str(kit)}
    if as_json:
        typer.echo(json.dumps(document))
        return
    typer.echo(
        f"site {read.name} {'enrolled' if new else 'was enrolled already'}"
        + ("" if registered else "; the SuperLink is not up and learns of it at `aggregator up`")
        + f"\nhand over to the site, for `site-agent join`: {kit}"
    )


@site.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="The site's name.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Refuses a site's keys from now on, for good. Works whether or not the aggregator is up."""
    with clear_errors():
        from aggregator.enrolment import revoke_site

        place = existing(home)
        new = revoke_site(place, name)
        applied = _tell_superlink(place)
    if as_json:
        typer.echo(json.dumps({"name": name, "new": new, "applied": applied}))
        return
    typer.echo(
        f"site {name} {'revoked' if new else 'was revoked already'}"
        + ("" if applied else "; the SuperLink is not up, and refuses it when it starts again")
    )


@site.command("list")
def list_sites(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Shows the sites: enrolled and revoked ones, who is online, and what each last told."""
    with clear_errors():
        from aggregator.enrolment import site_states

        states = site_states(existing(home))
    if as_json:
        typer.echo(json.dumps({"sites": [asdict(state) for state in states]}))
        return
    for state in states:
        line = f"{state.name}  {state.state}  key {state.key}"
        if state.heard is not None:
            policy = "not told" if state.policy is None else state.policy[:16]
            line += (
                f"  version {state.version or 'not told'}  policy {policy}  on {state.heard[:10]}"
            )
        typer.echo(line)
    if not states:
        typer.echo("no site is enrolled: `aggregator site add ENROLMENT.json`")


def _tell_superlink(home: AggregatorHome) -> bool:
    """Whether the SuperLink is up, and now accepts and refuses whom it should."""
    from aggregator.enrolment import register_sites
    from aggregator.superlink import SuperLinkError, superlink

    try:
        with superlink(home) as link:
            register_sites(home, link)
    except SuperLinkError:
        return False
    return True


def _dry_run(
    home: Path, contract: Path, *, sites: list[str], coordinator: str | None, as_json: bool
) -> None:
    with clear_errors():
        from aggregator.dry_run import dry_run, told

        asked = read_contract(contract)
        verdicts = dry_run(existing(home), asked, sites=sites, coordinator=coordinator)
    table = told(verdicts, real_pairs=asked.real_pairs)
    typer.echo(json.dumps({"sites": verdicts}) if as_json else table)
    if any(one["verdict"] != "accept" for one in verdicts):
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def launch(
    contract: Annotated[Path, typer.Argument(help="The run's contract, TOML.")],
    home: Home = DEFAULT_HOME,
    sites: Annotated[
        list[str] | None,
        typer.Option("--site", help="A site to ask; repeat. Without it: all enrolled."),
    ] = None,
    public: Annotated[
        Path | None,
        typer.Option(help="Folder of public volumes, for contracts with the public prior."),
    ] = None,
    wait_s: Annotated[
        float, typer.Option(help="How long to wait for sites to come online, seconds.")
    ] = 120.0,
    no_publish: Annotated[
        bool,
        typer.Option(
            "--no-publish",
            help="Stop when the pairs are there; launch again without it to publish.",
        ),
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Submit and return: `aggregator up` does the rest, `run watch` shows it. "
            "Nothing is published.",
        ),
    ] = False,
    coordinator: Annotated[
        str | None,
        typer.Option(help="Who signs the contract; without it the key `init` made, or the only."),
    ] = None,
    quorum: Annotated[
        float | None, typer.Option(help="Share of the sites whose answers a round needs.")
    ] = None,
    round_timeout_s: Annotated[
        float | None,
        typer.Option("--round-timeout", help="How long a round waits for answers, seconds."),
    ] = None,
    patience_s: Annotated[
        float | None,
        typer.Option("--patience", help="How long it waits for a site that is offline, seconds."),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Ask the sites that are online whether they would take part; nothing is computed.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Distils with the sites and publishes a release.

    The same contract again goes on with the same run: after the last round where it was stopped,
    with publishing where it had finished. Where the run's folder holds a utility.json, its gate
    decides about publishing. Ctrl-C stops watching, not the run. A dry run ends with code 4 where
    a site would refuse, or did not answer.
    """
    if dry:
        _dry_run(home, contract, sites=sites or [], coordinator=coordinator, as_json=as_json)
        return
    terms = {"quorum": quorum, "round_timeout_s": round_timeout_s, "patience_s": patience_s}
    with clear_errors():
        from aggregator.launch import launch_run

        release = launch_run(
            existing(home),
            read_contract(contract),
            sites=sites or [],
            public=public.resolve() if public else None,
            wait_s=wait_s,
            quiet=as_json,
            publishes=not no_publish,
            detached=detach,
            coordinator=coordinator,
            terms={name: value for name, value in terms.items() if value is not None},
        )
    if as_json:
        typer.echo(json.dumps(release))
        return
    if detach:
        run = Path(release["run"]).name
        typer.echo(
            f"{release['state']}\n  digest {release['digest']}\n  aggregator run watch {run}"
        )
        return
    if no_publish:
        typer.echo(f"distilled, not published\n  {release['run']}")
        return
    if "built" in release:
        typer.echo(
            f"built and gated as {release['by']}, not published: somebody else runs\n"
            f"  aggregator release publish {Path(release['run']).name}"
        )
        return
    typer.echo(
        f"published {release['name']} v{release['version']}\n"
        f"  digest {release['digest']}\n  {release['url']}"
    )


def main() -> Any:
    """Entry point. ``simulate`` and ``attack`` bring torch and are loaded when asked for."""
    everything = "--help" in sys.argv[1:2] or len(sys.argv) == 1
    if "simulate" in sys.argv[1:2] or everything:
        yield_cores()
        from aggregator.benchmark import command as simulate

        app.command("simulate")(simulate)
    if "attack" in sys.argv[1:2] or everything:
        yield_cores()
        from aggregator.attack_command import command as attack

        app.command("attack")(attack)
    return app()


if __name__ == "__main__":
    main()

"""``site-agent``: what a hospital runs."""

import json
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from shared.log_lines import LogFormat
from shared.messages import Message, MessageError, StatusHeader, StatusQueryHeader, decode, encode
from shared.threads import yield_cores
from site_agent.cohort import CohortError, build_cohort
from site_agent.command_line import (
    DEFAULT_HOME,
    EXIT_FAILED,
    Form,
    Home,
    Json,
    intake_progress,
)
from site_agent.command_line import told as _told
from site_agent.enrolment import enrol, pseudonym_key
from site_agent.events import begin
from site_agent.frames import call
from site_agent.importer.cli import app as importer
from site_agent.kit import ENROLMENT_FILE
from site_agent.policy_file import POLICY_FILE, PolicyError, default_policy_text, read_policy
from site_agent.quality.command import report
from site_agent.records import audit, outbox
from site_agent.settings import SiteSettings, read_settings

STATUS_TIMEOUT_S = 10.0

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Takes a hospital's images part in a study without letting them out.\n\n"
        "Begin with `init`, hand enrolment.json to the aggregator, `join` with the kit that comes "
        "back, then `index` and `up`. Exit codes: 0 done, 1 failed, 2 something needs a fix first."
    ),
)

app.add_typer(audit, name="audit")
app.add_typer(importer, name="import")


@app.command()
def init(
    name: Annotated[
        str,
        typer.Option(prompt=True, help="The site's name in the study: a-z, 0-9 and hyphens."),
    ],
    aggregator: Annotated[
        str,
        typer.Option(prompt="Aggregator, HOST:PORT", help="Where the aggregator listens."),
    ],
    images: Annotated[
        Path,
        typer.Option(
            prompt="Folder of images", help="Folder with the hospital's DICOM or NIfTI files."
        ),
    ],
    home: Home = DEFAULT_HOME,
) -> None:
    """Make the site's home: settings to read through, its key, and enrolment.json to hand over.

    Asks for what is not given.
    Nothing secret is in enrolment.json. Keys stay in the home's folder `keys`, readable by this
    user alone.
    """
    with _told():
        settings = enrol(home=home, name=name, aggregator=aggregator, images=images)
    print(f"made {settings.home}")
    print(f"1. read through {settings.home / 'site.toml'}, and {settings.home / POLICY_FILE}: what")
    print("   the site allows is your decision")
    print(f"2. hand {settings.home / ENROLMENT_FILE} to the aggregator")
    print("3. site-agent join KIT, with the kit that comes back")
    print("4. site-agent index, site-agent preflight, site-agent up")


@app.command()
def join(
    kit: Annotated[Path, typer.Argument(help="The NAME.kit.json the aggregator handed back.")],
    home: Home = DEFAULT_HOME,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take another certificate than the one installed.")
    ] = False,
) -> None:
    """Check the aggregator's kit and install its certificate. Safe to repeat.

    A policy.toml that names no coordinator yet names those of the kit afterwards.
    """
    from site_agent.kit import KitError
    from site_agent.kit import join as join_site

    with _told(KitError, PolicyError):
        settings = read_settings(home)
        joined = join_site(settings, kit, replace=replace)
        pinned = read_policy(settings.home).coordinators or ()
    print(f"joined: {settings.name} trusts {joined.aggregator}")
    print(f"its releases are signed with key {joined.release_key}")
    for key in pinned:
        print(f"answers contracts signed with {key}: policy.toml, coordinators")
    for key in joined.coordinators:
        if key not in pinned:
            print(f"the kit names {key} too: add it to policy.toml, coordinators, if you agree")


@app.command()
def separate(
    connector: Annotated[Path, typer.Option(help="The connector's home: made, or to be filled.")],
    socket: Annotated[
        Path, typer.Option(help="Where the worker listens, in a folder of both users' group.")
    ],
    home: Home = DEFAULT_HOME,
) -> None:
    """Give the connector a home of its own, so that it can be another user than the worker.

    Run by root, it gives what it writes to the owner of the folder it writes it to.
    """
    from site_agent.apart import set_apart

    with _told():
        made = set_apart(read_settings(home), connector=connector, socket=socket)
    print(f"the connector's home is {made.home}; worker and connector meet at {made.socket_path}")


@app.command()
def index(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Read the image folder into the cohort that the worker computes on.

    Files that cannot be used are counted by reason and stop nothing. The old cohort stays until
    the new one is complete; a running worker takes the new one by itself.
    """
    from site_agent.intake.folder import IntakeError, read_folder
    from site_agent.intake.reasons import IntakeReport
    from site_agent.intake.record import keep_record

    with _told(IntakeError, interrupted="The cohort is as it was; run it again to go on."):
        settings = read_settings(home)
        with intake_progress() as on_progress:
            seen = IntakeReport(on_progress=on_progress)
            patients = read_folder(
                settings.images,
                pseudonym_key=pseudonym_key(settings),
                slices_per_patient=settings.slices_per_patient,
                report=seen,
                modality=settings.modality,
                sequence=settings.sequence,
                memory=settings.cohort_path,
            )
            try:
                cohort = build_cohort(settings.cohort_path, patients, modality=settings.modality)
            except CohortError as error:
                raise CohortError(f"{error} ({seen.summary()})") from None
        keep_record(settings.cohort_path, seen, data=cohort.index.data)
    if as_json:
        print(json.dumps(seen.as_json()))
        return
    print(seen.summary())
    if seen.not_needed:
        print(f"{seen.not_needed} more slices were good but not needed")
    if seen.patients < settings.policy.min_patients:
        print(
            f"The site's policy wants {settings.policy.min_patients} patients: "
            "requests will be refused."
        )


@app.command()
def preflight(
    home: Home = DEFAULT_HOME,
    part: Annotated[
        str, typer.Option(help="all, worker or connector, where the two are kept apart.")
    ] = "all",
    as_json: Json = False,
) -> None:
    """Look at everything that can keep the site from taking part. Changes nothing.

    Exit codes: 0 all is well, 1 a check failed, 4 one cannot be judged yet.
    """
    yield_cores()
    from shared.findings import examine
    from site_agent.preflight import Part, checks

    if part not in get_args(Part):
        raise typer.BadParameter(f"is none of {', '.join(get_args(Part))}", param_hint="--part")
    with _told():
        code = examine(checks(home, part=cast(Part, part)), as_json=as_json)
    raise typer.Exit(code)


@app.command()
def worker(home: Home = DEFAULT_HOME, log_format: Form = LogFormat.AUTO) -> None:
    """Answer requests on the home's Unix socket, until stopped. Uses no network.

    FEDSTILL_THREADS limits the threads. What goes wrong is in the home's logs/worker.log, under
    the incident id that the aggregator was told.
    """
    yield_cores()
    from site_agent.service import ServiceError, serve

    with _told(ServiceError):
        settings = read_settings(home)
        begin("worker", log_format)
        serve(settings)


@app.command()
def connect(home: Home = DEFAULT_HOME, log_format: Form = LogFormat.AUTO) -> None:
    """Connect the site to the aggregator, and stay connected. Reads no image."""
    from shared.metrics_server import PortError

    with _told(PortError):
        settings = read_settings(home, policy=False)
        from site_agent.supernode import connect as connect_site

        begin("connector", log_format)
        raise typer.Exit(connect_site(settings))


@app.command()
def up(home: Home = DEFAULT_HOME, log_format: Form = LogFormat.AUTO) -> None:
    """Run worker and connect together, each started again when it fails. Stop with Ctrl-C."""
    from site_agent.supervision import SupervisionError, keep_up

    with _told(SupervisionError):
        settings = read_settings(home)
        keep_up(settings, form=begin("site", log_format), say=_say)


@app.command()
def status(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Ask the worker whether it is ready, and with what."""
    with _told():
        settings = read_settings(home)
        header = _ask_status(settings)
    if header is None:
        if as_json:
            print(json.dumps({"site": settings.name, "running": False}))
        else:
            print(
                f"{settings.name}: no worker answers at {settings.socket_path}; "
                "start one with `site-agent up`"
            )
        raise typer.Exit(EXIT_FAILED)
    if as_json:
        print(json.dumps({"running": True, **header.model_dump(mode="json", exclude={"type"})}))
        return
    print(f"{header.site}: {'ready' if header.ready else 'not ready: too few patients indexed'}")
    print(f"  version {header.version}, {header.device}")
    print(f"  patients: at least {header.patients_at_least}")
    print(f"  answers given: {header.answered}")


@app.command()
def budget(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Say what was released and what it cost in privacy, run by run, and what is left.

    Each answer, noised or not, is in the ledger before it is given; what it cost in privacy is
    known of noised ones. Needs no worker.
    """
    from site_agent.budget import budget_of
    from site_agent.ledger import Ledger, LedgerError
    from site_agent.outbox import Outbox

    with _told(LedgerError):
        settings = read_settings(home)
        found = budget_of(
            Ledger(settings.ledger_path),
            outbox=Outbox(settings.outbox_path),
            site=settings.name,
            policy=settings.policy,
        )
    if as_json:
        print(json.dumps(found.as_json()))
        return
    for line in found.lines():
        print(line)


@app.command()
def policy(
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
    default: Annotated[
        bool, typer.Option("--default", help="Print a policy.toml with every default, explained.")
    ] = False,
) -> None:
    """Say what policy.toml allows, limit by limit, and its digest. Changes nothing."""
    if default:
        print(default_policy_text(), end="")
        return
    with _told():
        allowed = read_settings(home).policy
    limits = allowed.model_dump(mode="json")
    if as_json:
        print(json.dumps({"digest": allowed.digest(), **limits}))
        return
    print(f"digest {allowed.digest()}")
    for name, value in limits.items():
        print(f"  {name}: {'no limit' if value is None else json.dumps(value)}")


@app.command("kernel-fit")
def kernel_fit(
    sharp: Annotated[Path, typer.Option(help="Folder of CT reconstructed with the sharp kernel.")],
    soft: Annotated[Path, typer.Option(help="The same acquisitions with the soft kernel.")],
    steps: Annotated[int, typer.Option(min=4, max=64, help="Points of each curve.")] = 16,
    size: Annotated[int, typer.Option(min=32, max=512, help="size_px of the contract.")] = 128,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the table to this file, as JSON.")
    ] = None,
) -> None:
    """Fit the task ct-kernel to real pairs: two reconstructions of the same acquisitions.

    Slices are paired by their position in the patient. Prints the [task] table of a contract: two
    curves over spatial frequency and the number of pairs. It is for you to hand it over or not;
    nothing is sent, and nothing else of the images is in it.
    """
    yield_cores()
    from site_agent.intake.folder import IntakeError
    from site_agent.kernel import KernelFitError, as_toml, kernel_task

    with _told(IntakeError, KernelFitError):
        task = kernel_task(sharp=sharp, soft=soft, steps=steps, size_px=size)
        print(as_toml(task))
        if json_file is not None:
            json_file.write_bytes(task.model_dump_json(indent=2).encode() + b"\n")


app.command()(outbox)
app.command()(report)


def _ask_status(settings: SiteSettings) -> StatusHeader | None:
    try:
        reply = call(
            settings.socket_path,
            encode(Message(header=StatusQueryHeader())),
            timeout_s=STATUS_TIMEOUT_S,
        )
        header = decode(reply).header
    except (OSError, MessageError):
        return None
    return header if isinstance(header, StatusHeader) else None


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Entry point of the command ``site-agent``."""
    app()


if __name__ == "__main__":
    main()

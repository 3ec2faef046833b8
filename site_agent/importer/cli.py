"""``site-agent import``: the importer's commands."""

import json
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.log_lines import LogFormat
from site_agent.command_line import DEFAULT_HOME, EXIT_FAILED, Form, Home, Json, told
from site_agent.enrolment import pseudonym_key
from site_agent.events import Event, begin, hashed, log_salt, note
from site_agent.importer.spool import FullError, Spool, SpoolError
from site_agent.settings import SettingsError, SiteSettings, read_settings

_INTERRUPTED = "Stopped; what has come stays. Run it again to go on."

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Bring images from the imaging network into the spool folder, which `index` reads.\n\n"
        "A process of its own: it reaches the archive, never the aggregator. Exit codes: 0 done, "
        "1 not everything came, 2 something needs a fix first."
    ),
)


@app.command()
def listen(home: Home = DEFAULT_HOME, log_format: Form = LogFormat.AUTO) -> None:
    """Take what an archive or a scanner pushes by C-STORE, until stopped.

    Senders and address are in [importer.listen] of site.toml.
    """
    from site_agent.importer.listener import Listener, ListenerError

    with _told(ListenerError):
        settings = read_settings(home, policy=False)
        wanted = settings.importer.listen
        if wanted is None:
            raise SettingsError(
                "importer.listen: is not set; add to site.toml a table [importer.listen] with "
                'callers = ["AE_TITLE"], those who may send'
            )
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        begin("importer", log_format)
        place = wanted.beside(settings.home)
        with Listener(place, _spool(settings), salt=log_salt(home), note=note):
            note(Event.IMPORTER_READY, ae_title=wanted.ae_title, port=wanted.port)
            stopped.wait()


@app.command()
def pull(
    home: Home = DEFAULT_HOME, as_json: Json = False, log_format: Form = LogFormat.AUTO
) -> None:
    """Fetch by DICOMweb what [importer.dicomweb] of site.toml asks for, once.

    What the spool holds already is not fetched again: run it anew after an interruption, or by a
    timer. Its log, one line, goes to stderr.
    """
    from site_agent.importer.archive import Archive, ArchiveError
    from site_agent.importer.dicomweb import PullReport
    from site_agent.importer.dicomweb import pull as fetch

    with _told(ArchiveError):
        settings = read_settings(home, policy=False)
        wanted = settings.importer.dicomweb
        if wanted is None:
            raise SettingsError(
                "importer.dicomweb: is not set; add to site.toml a table [importer.dicomweb] with "
                'url = "https://..."'
            )
        report = PullReport()
        spool = _spool(settings)
        with (
            Archive(wanted.beside(settings.home), modality=settings.modality) as archive,
            _progress() as on_progress,
        ):
            fetch(archive, spool, report=report, on_progress=on_progress)
    if begin("importer", log_format, stream=sys.stderr) is LogFormat.JSON:
        note(Event.PULL_ENDED, fetched=report.fetched, missing=report.missing)
    print(json.dumps(report.as_json()) if as_json else report.summary())
    if report.missing:
        typer.echo(f"{report.missing} objects did not come; run it again for them", err=True)
        raise typer.Exit(EXIT_FAILED)


@app.command("sender")
def sender(
    address: Annotated[str, typer.Argument(help="An IP address, such as 10.1.2.3.")],
    home: Home = DEFAULT_HOME,
) -> None:
    """Print what stands for an IP address in this site's log."""
    with _told():
        print(hashed(address, salt=log_salt(read_settings(home, policy=False).home)))


def _spool(settings: SiteSettings) -> Spool:
    return Spool(
        settings.spool_path,
        key=pseudonym_key(settings),
        quota_bytes=settings.importer.quota_bytes,
        max_object_bytes=settings.importer.max_object_bytes,
        group_reads=settings.importer.group_reads,
    )


@contextmanager
def _told(*errors: type[Exception]) -> Iterator[None]:
    """Turns expected failures into a message and an exit code; keeps libraries' warnings quiet."""
    # They repeat values of the objects that pass through.
    with warnings.catch_warnings(), told(SpoolError, *errors, interrupted=_INTERRUPTED):
        warnings.simplefilter("ignore")
        try:
            yield
        except FullError:
            raise SpoolError(
                "importer.quota_gb: the spool is full, or its disk is; index, remove files from "
                "the spool, or raise the quota, and run it again"
            ) from None


class _ProgressListener:
    """Shows a pull's two stages on stderr, with the time left."""

    names = {"list": "listing studies", "fetch": "fetching objects"}  # noqa: RUF012

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage = "list"
        self._task = progress.add_task(self.names[self._stage], total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._progress.reset(self._task, description=self.names[stage])
            self._stage = stage
        self._progress.update(self._task, completed=done, total=total or None)


@contextmanager
def _progress() -> Iterator[_ProgressListener]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        yield _ProgressListener(progress)

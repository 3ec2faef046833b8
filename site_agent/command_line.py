"""What all commands of ``site-agent`` have in common: options, exit codes, failures, progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.log_lines import LogFormat
from site_agent.cohort import CohortError
from site_agent.settings import SettingsError

EXIT_FAILED = 1
EXIT_NEEDS_A_FIX = 2
DEFAULT_HOME = Path("site")
Home = Annotated[
    Path,
    typer.Option(
        "--home", envvar="FEDSTILL_SITE_HOME", help="The site's folder: settings, keys, cohort."
    ),
]
Form = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        envvar="FEDSTILL_LOG_FORMAT",
        help="One line an event: json, or text; auto is text in a terminal.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


@contextmanager
def told(*errors: type[Exception], interrupted: str = "Stopped.") -> Iterator[None]:
    """Turns expected failures into a message and an exit code."""
    expected: tuple[type[Exception], ...] = (SettingsError, CohortError, *errors)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(interrupted, err=True)
        raise typer.Exit(130) from None
    except expected as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_NEEDS_A_FIX) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"{place}{error.strerror or 'the system refused'}", err=True)
        raise typer.Exit(EXIT_FAILED) from None


class _ProgressListener:
    """Shows intake's stages on stderr; the screen never sees a file's name."""

    names = {"list": "listing files", "headers": "reading headers", "pixels": "reading patients"}  # noqa: RUF012

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage = ""
        self._task = progress.add_task("listing files", total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._progress.reset(self._task, description=self.names[stage])
            self._stage = stage
        self._progress.update(self._task, completed=done, total=total or None)


@contextmanager
def intake_progress() -> Iterator[_ProgressListener]:
    """A bar for intake, whose listener it gives; gone when it is left."""
    with _progress() as progress:
        yield _ProgressListener(progress)


@contextmanager
def bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time that is left; it gives what takes how much is done, of how much."""
    with _progress() as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )

"""What all commands of ``site-agent`` have in common: options, exit codes, failures as messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

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

"""What all commands of `aggregator` share: options, exit codes, and how errors end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from aggregator.home import HOME_VARIABLE, AggregatorHome, HomeError
from shared.contract import ContractError
from shared.release.errors import ReleaseError

Home = Annotated[
    Path,
    typer.Option(envvar=HOME_VARIABLE, help="Folder with everything the aggregator keeps."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for machines.")]
TOKEN_VARIABLE = "FEDSTILL_TOKEN"
"""A coordinator's token, where two principals are wanted for a release."""
DEFAULT_HOME = Path("aggregator-home")
EXIT_FAILED = 1
EXIT_REFUSED = 4
"""The gate: what was distilled is worth no more than what needs no hospital. Or a dry run's no."""
EXIT_INTERRUPTED = 130


def existing(home: Path) -> AggregatorHome:
    """The home in that folder; raises ``HomeError`` where there is none."""
    place = AggregatorHome(home.resolve())
    _ = place.settings
    return place


@contextmanager
def clear_errors() -> Iterator[None]:
    """Errors that a user can act on end as one message and exit code 1, never as a traceback."""
    try:
        yield
    except (HomeError, ContractError) as error:
        _fail(error)
    except ReleaseError as error:
        _fail(error, hint=error.hint, code=EXIT_REFUSED if error.code == "gate" else EXIT_FAILED)
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing is lost", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (RuntimeError, ValueError) as error:
        if type(error).__module__.partition(".")[0] not in ("aggregator", "shared"):
            raise
        _fail(error)


def _fail(error: Exception, *, hint: str = "", code: int = EXIT_FAILED) -> None:
    typer.echo(f"error: {error}" + (f"; {hint}" if hint else ""), err=True)
    raise typer.Exit(code) from None

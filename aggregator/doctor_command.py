"""``aggregator doctor``: looks at everything, and says how to fix what is wrong."""

from typing import Annotated

import typer

from aggregator.command_line import DEFAULT_HOME, Home, Json, clear_errors


def doctor(
    home: Home = DEFAULT_HOME,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every published file, not a sample of them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Looks at everything that keeps the aggregator from working, or soon will. Changes nothing.

    Exit codes: 0 all is well, 1 a check failed, 4 one cannot be judged yet.
    """
    with clear_errors():
        from aggregator.doctor import checks
        from shared.findings import examine

        code = examine(checks(home, deep=deep), as_json=as_json)
    raise typer.Exit(code)

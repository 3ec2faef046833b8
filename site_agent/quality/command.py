"""``site-agent report``."""

from pathlib import Path
from typing import Annotated

import typer

from site_agent.command_line import DEFAULT_HOME, Home, Json, bar, told
from site_agent.settings import read_settings

PAGE = "report.html"


def report(
    home: Home = DEFAULT_HOME,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the page; else HOME/report.html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a page on what the images of the last index are like. Sends nothing.

    Counts and measured noise: no patient, file or date is in it. It needs no network to be read.
    """
    from shared.durable import write_durably
    from site_agent.quality import quality_report
    from site_agent.quality.page import as_html

    with told():
        settings = read_settings(home)
        with bar("measuring noise") as on_progress:
            found = quality_report(settings, on_progress=on_progress)
        if as_json:
            typer.echo(found.model_dump_json())
            return
        page = out or settings.home / PAGE
        write_durably(page, as_html(found).encode())
    typer.echo(f"wrote {page}")

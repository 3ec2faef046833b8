"""``site-agent audit`` and ``site-agent outbox``: what the site did, and what left it."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from shared.messages import payload_digest
from site_agent.audit import AuditError, AuditLog
from site_agent.command_line import DEFAULT_HOME, EXIT_FAILED, Home, Json, told
from site_agent.outbox import Entry, Outbox, OutboxError
from site_agent.settings import read_settings

audit = typer.Typer(
    no_args_is_help=True, help="The audit log: a chain of lines about all that the site did."
)


@audit.command()
def show(
    home: Home = DEFAULT_HOME,
    last: Annotated[
        int | None, typer.Option(min=1, help="Only so many lines, the latest ones.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Print what the site did, oldest first: answers, refusals, charges, changes, starts, stops."""
    with told(AuditError):
        lines = list(AuditLog(read_settings(home).audit_path).lines())
    for line in lines[-last:] if last else lines:
        if as_json:
            typer.echo(line.model_dump_json())
        else:
            fields = " ".join(f"{name}={value}" for name, value in line.fields.items())
            typer.echo(
                f"{line.sequence} {line.time.isoformat(timespec='seconds')} {line.event} {fields}"
            )


@audit.command()
def verify(
    home: Home = DEFAULT_HOME,
    head: Annotated[
        str | None,
        typer.Option(help="A head that the aggregator was told: the log must hold its line."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find any line that was flipped, dropped, reordered or cut off.

    Exit codes: 0 the log is whole, 1 it is not, 2 something needs a fix first. The coordinator has
    the site's last head in the run's result.json, as audit_head.
    """
    with told():
        settings = read_settings(home)
        verdict = AuditLog(settings.audit_path).verify(head)
    if as_json:
        typer.echo(
            json.dumps({"site": settings.name, "whole": not verdict.faults, **asdict(verdict)})
        )
    else:
        for fault in verdict.faults:
            typer.echo(fault)
        typer.echo(f"{'NOT WHOLE' if verdict.faults else 'whole'}: {verdict.lines} lines")
        typer.echo(f"head {verdict.head}")
        if verdict.torn_bytes:
            typer.echo(
                f"{verdict.torn_bytes} bytes after it are a line that a crash cut off before "
                "anything followed from it; the next line replaces them"
            )
    if verdict.faults:
        raise typer.Exit(EXIT_FAILED)


def outbox(
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
    content: Annotated[
        str | None,
        typer.Option("--bytes", help="Write the answer with this digest (or its begin) to stdout."),
    ] = None,
) -> None:
    """List every answer that left: when, of which round, its shape, norm, size, digest and file.

    With --bytes the answer itself, a safetensors file, byte for byte as it left.
    """
    with told(OutboxError):
        kept = Outbox(read_settings(home).outbox_path)
        entries = sorted(kept.entries(), key=lambda entry: entry.answered)
        if content is not None:
            sys.stdout.buffer.write(_bytes_of(kept, content))
            return
    if as_json:
        answers = [
            {**entry.model_dump(mode="json"), "path": str(kept.path(entry))} for entry in entries
        ]
        typer.echo(json.dumps({"answers": answers}))
        return
    for entry in entries:
        typer.echo(
            f"{entry.answered.isoformat(timespec='seconds')} {entry.name or entry.contract[:16]} "
            f"round {entry.round}{f'-{entry.attempt}' if entry.attempt > 1 else ''} {entry.kind} "
            f"{entry.granularity or '-'}{' noised' if entry.noised else ''} "
            f"{'x'.join(map(str, entry.shape))} "
            f"norm {_norm(entry)} {entry.bytes} bytes"
        )
        typer.echo(f"  {entry.digest} {kept.path(entry)}")
    typer.echo(
        f"{len(entries)} answers, {sum(entry.gradients for entry in entries)} gradients, "
        f"{sum(entry.bytes for entry in entries)} bytes"
    )


def _norm(entry: Entry) -> str:
    if entry.norm is not None:
        return f"{entry.norm:.4g}"
    return "masked" if entry.gradients else "-"


def _bytes_of(kept: Outbox, begin: str) -> bytes:
    found = [entry for entry in kept.entries() if entry.digest.startswith(begin.lower())]
    if len(found) != 1:
        raise OutboxError(f"--bytes: {len(found)} answers have a digest that begins so")
    payload = kept.path(found[0]).read_bytes()
    if payload_digest(payload) != found[0].digest:
        raise OutboxError(f"{kept.path(found[0])}: is not what left: it was changed")
    return payload

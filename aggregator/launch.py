"""`aggregator launch`: waits for the sites, submits, shows progress, publishes."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from aggregator.command_line import TOKEN_VARIABLE
from aggregator.coordinators import coordinators, mandate_of
from aggregator.enrolment import enrolled_sites, members_of, revoked_sites
from aggregator.home import AggregatorHome
from aggregator.hospital_table import is_judged
from aggregator.lifecycle import is_lost, read_state, submit
from aggregator.runs import (
    FOUNDATION,
    RunError,
    Terms,
    is_finished,
    keep_mandate,
    prepare_run,
    read_plan,
    wait_for_sites,
    watch_run,
)
from aggregator.superlink import SuperLink, superlink
from shared.contract import RunContract
from shared.durable import write_durably
from shared.enrolment import Enrolment
from shared.masking import MIN_MEMBERS

RESUMED_WITHIN_S = 120.0
"""`aggregator up` goes on with an interrupted run within this time, or does not run."""


def launch_run(
    home: AggregatorHome,
    contract: RunContract,
    *,
    sites: Sequence[str],
    public: Path | None,
    wait_s: float,
    quiet: bool,
    publishes: bool = True,
    detached: bool = False,
    coordinator: str | None = None,
    terms: Terms = MappingProxyType({}),
) -> dict[str, Any]:
    """Runs or resumes the contract and publishes; gives name, version, digest, url and run folder.

    Without ``publishes`` the run folder alone; ``detached``: that, digest and state, as soon as it
    was submitted. Progress goes to stderr. Raises ``RunError``, ``CoordinatorError``,
    ``EnrolmentError``, ``SuperLinkError`` or ``ReleaseError``.
    """
    records = enrolled_sites(home)
    enrolled = [site.name for site in records]
    unknown = sorted(set(sites) - set(enrolled))
    if unknown:
        gone = {site.name for site in revoked_sites(home)}
        named = ", ".join(f"{name} (revoked)" if name in gone else name for name in unknown)
        raise RunError(f"not enrolled: {named} (enrolled: {', '.join(enrolled)})")
    display = Display(quiet=quiet)
    contract = with_members(contract, [one for one in records if one.name in (sites or enrolled)])
    contract, foundation = _founded(home, contract, public=public, display=display)
    planned = (home.run_folder(contract.digest()) / "plan.json").exists()
    asked = sites or ([] if planned else enrolled)
    run = prepare_run(home, contract, sites=asked, public=public, terms=terms)
    ended = is_finished(run) and is_judged(run, contract)
    if not ended:
        mandate = mandate_of(home, coordinator, contract_digest=contract.digest())
        trusted = [one.key for one in coordinators(home) if not one.revoked]
        keep_mandate(run, mandate, trusted=trusted)
        display.say(f"contract {contract.digest()}, signed with {mandate.coordinator}")
    if foundation is not None and not is_finished(run):
        write_durably(run / FOUNDATION, foundation.read_bytes())
    if detached:
        if not ended:
            with superlink(home) as link:
                submit(link, run)
        return {"run": str(run), "digest": contract.digest(), "state": read_state(run).state}
    if not ended:
        _distil(home, run, wait_s=wait_s, display=display)
    return publish(home, run, contract) if publishes else {"run": str(run)}


def with_members(contract: RunContract, sites: Sequence[Enrolment]) -> RunContract:
    """The contract with the sites' names and signing keys, where it is for a secure sum.

    Raises ``RunError`` where they are too few, or not those that the contract names already;
    ``EnrolmentError`` where a key is missing.
    """
    if contract.granularity != "federation":
        return contract
    members = members_of(sites)
    if len(members) < MIN_MEMBERS:
        names = ", ".join(member.name for member in members) or "none"
        raise RunError(f"granularity federation needs {MIN_MEMBERS} sites, these are: {names}")
    if contract.members not in ((), members):
        raise RunError(
            "the contract names other members than the sites: remove them, launch fills them in"
        )
    return RunContract.model_validate({**dict(contract), "members": members})


def _founded(
    home: AggregatorHome, contract: RunContract, *, public: Path | None, display: "Display"
) -> tuple[RunContract, Path | None]:
    """The contract with its public directions, and the file that holds them; None if it has none.

    Computed once for a contract: minutes, of torch, which nothing else of a launch needs.
    """
    if not contract.privacy.directions:
        return contract, None
    from aggregator.foundation import founded

    file = home.foundations / f"{contract.foundation()[:16]}.safetensors"
    with display:
        filled = founded(contract, public=public, file=file, on_step=display.prepares)
    return filled, file


def _distil(home: AggregatorHome, run: Path, *, wait_s: float, display: "Display") -> None:
    with superlink(home) as link, display:
        planned, enrolled = read_plan(run).sites, {site.name for site in enrolled_sites(home)}
        remaining = [site for site in planned if site in enrolled]
        if not remaining:
            raise RunError(f"every site of this run was revoked: {', '.join(planned)}")
        if len(remaining) < len(planned):
            display.say(f"without {', '.join(sorted(set(planned) - enrolled))}: revoked")
        for missing in wait_for_sites(link, remaining, timeout_s=wait_s):
            if missing:
                display.say(f"waiting for {', '.join(missing)} to come online")
        from_byte = _told(run)
        if submit(link, run):
            display.say("submitted")
        else:
            display.say("the run is on already: watching it")
        _watch(link, run, from_byte=from_byte, display=display)


def _watch(link: SuperLink, run: Path, *, from_byte: int, display: "Display") -> None:
    """Follows the run to its end, through deaths of its ServerApp where `up` goes on with it."""
    while True:
        interrupted = RunError("the run was interrupted while it was being judged: launch it again")
        try:
            for event in watch_run(run, link, from_byte=from_byte):
                display.show(event)
        except RunError as error:
            interrupted = error
        state = read_state(run)
        if state.state in ("finished", "published"):
            return
        if state.state in ("paused", "aborted") and not is_lost(run):
            raise RunError(
                f"the run is {state.state}: {state.reason}"
                + (f"; `aggregator run resume {run.name}`" if state.state == "paused" else "")
            )
        if state.state == "failed":
            raise RunError(f"the run failed: {state.reason}")
        display.say("the run was interrupted: `aggregator up` is about to go on with it")
        from_byte = _told(run)
        deadline = time.monotonic() + RESUMED_WITHIN_S
        while is_lost(run):
            if time.monotonic() >= deadline:
                raise interrupted
            time.sleep(0.5)


def _told(run: Path) -> int:
    """Bytes of the journal so far: what is told from here on is new."""
    events = run / "events.jsonl"
    return events.stat().st_size if events.exists() else 0


def publish(home: AggregatorHome, run: Path, contract: RunContract) -> dict[str, Any]:
    """Builds, gates and publishes a finished run; the same run again gives the same version.

    Where two principals are wanted, it is built and gated, and somebody else publishes it. Raises
    ``GateError`` where a gate refuses (:mod:`aggregator.gates`).
    """
    from aggregator.publishing import build_release, gate_release, principal, publish_release

    by = principal(home, named=None, token=os.environ.get(TOKEN_VARIABLE))
    gate_release(home, run, by=by).refuse_failed()
    build = build_release(home, run, by=by)
    if home.settings.two_principals:
        return {"name": contract.name, "built": build.manifest, "by": by, "run": str(run)}
    release = publish_release(home, run, by=by)
    return {
        "name": release.name,
        "version": release.version,
        "digest": release.digest,
        "url": release.url,
        "run": str(run),
    }


class Display:
    """Phase, round and ETA: a bar on a terminal, one line a change elsewhere, nothing if quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last_line = ""
        self._last_time = 0.0
        self._bar: Progress | None = None
        if not quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[eta]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("waiting", total=1, eta="")

    def __enter__(self) -> None:
        (self._bar or nullcontext()).__enter__()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """One line, not repeated."""
        if self._quiet or text == self._last_line:
            return
        self._last_line = text
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        else:
            typer.echo(text, err=True)

    def prepares(self, phase: str, done: int, total: int) -> None:
        """A step of what comes before a run."""
        self.show({"phase": phase, "rounds": 0, "done": done, "total": total})

    def show(self, event: dict[str, Any]) -> None:
        """One event of ``events.jsonl``."""
        if self._quiet:
            return
        heading = describe(event)
        eta = describe_eta(event.get("eta_s"))
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=heading,
                completed=float(event.get("done") or 0),
                total=float(event.get("total") or 1),
                eta=eta,
            )
            return
        # Without a terminal: a change of phase or round at once, steps every few seconds.
        if heading != self._last_line or time.monotonic() - self._last_time > 5.0:
            self._last_line, self._last_time = heading, time.monotonic()
            typer.echo(f"{heading} {event.get('done')}/{event.get('total')} {eta}", err=True)


def describe(event: dict[str, Any]) -> str:
    """``phase round 2/6: message``."""
    text = str(event.get("phase"))
    if event.get("rounds"):
        text += f" round {event.get('round')}/{event.get('rounds')}"
    if event.get("message"):
        text += f": {event['message']}"
    return text


def describe_eta(seconds: object) -> str:
    """``about 1:05 left``, or nothing."""
    if not isinstance(seconds, int | float):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"about {minutes}:{rest:02d} left"

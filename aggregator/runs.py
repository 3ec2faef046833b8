"""Runs: one folder each, named by the contract's digest, so that the same contract is the same run.

``contract.json``   what the sites agree to
``mandate.json``    the signature of the coordinator who launched it first
``plan.json``       which sites, where public volumes are, quorum and deadlines
``state.json``      of ``aggregator.lifecycle``: running, paused, finished ...
``events.jsonl``    progress, appended by the ServerApp
``lock``            held by the ServerApp; the kernel lets go of it, however its life ends
``dry-...``         beside it, a folder of the same for `aggregator launch --dry-run`
``foundation.safetensors``  public directions and their network, of a contract that has some
``checkpoint.safetensors``, ``pairs.safetensors``, ``result.json``   of ``aggregator.federation``
``snapshots/``      the pairs as they were after each round, of ``aggregator.snapshots``
``utility.json``    what the pairs were measured to be worth, if they were; the gate reads it
``attacks.json``    what `aggregator attack` found on this contract, if anybody ran it
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, ValidationError

from aggregator.bundle import build_bundle
from aggregator.home import AggregatorHome
from aggregator.superlink import SuperLink, SuperLinkError
from shared.contract import RunContract
from shared.durable import write_durably
from shared.frozen import Frozen, Slug, explain
from shared.mandate import Mandate

FOUNDATION = "foundation.safetensors"
MANDATE = "mandate.json"
ATTACKS = "attacks.json"
LOCK = "lock"
"""Made, and held, by the ServerApp that works on the run."""
FLOWER_RUN = "flower-run"
NETWORKS = "networks.safetensors"
"""Students that the hospitals judge."""
START_WITHIN_S = 90.0
"""How long a submitted run may take until its ServerApp holds the lock."""
POLL_S = 0.3
ASK_S = 2.0
"""How often the SuperLink is asked about a run that has not begun."""


class RunError(RuntimeError):
    """A run that cannot start or did not end well; the text says what to do."""


class RunPlan(Frozen):
    """What a run needs to know besides its contract."""

    sites: tuple[Slug, ...] = Field(min_length=1)
    public: Path | None = None
    quorum: float = Field(
        0.5, ge=0, le=1, description="share of the sites whose answers a round needs"
    )
    round_timeout_s: float = Field(3600.0, gt=0, description="how long a round waits for answers")
    patience_s: float = Field(
        100.0, ge=0, description="how long for a site that is offline; a killed one needs 40"
    )
    below_quorum: Literal["pause", "fail"] = Field(
        "pause", description="what becomes of a run whose round has too few answers"
    )


Terms = Mapping[str, Any]
"""Of a plan, what may change from launch to launch: quorum and deadlines."""


def prepare_run(
    home: AggregatorHome,
    contract: RunContract,
    *,
    sites: Sequence[str],
    public: Path | None,
    terms: Terms = MappingProxyType({}),
) -> Path:
    """The run's folder, with its contract and plan. What the first launch planned holds for all.

    ``sites`` empty and ``public`` None mean: as planned before, and so does a term that is left
    out. Raises ``RunError`` where sites or public volumes differ from the plan, there is no plan
    and no site, or a term is out of range.
    """
    run = home.run_folder(contract.digest())
    present = read_plan(run) if (run / "plan.json").exists() else None
    plan = RunPlan.model_construct(
        sites=tuple(sorted(set(sites))) or (present.sites if present else ()),
        public=public or (present.public if present else None),
    )
    if present is not None and (plan.sites, plan.public) != (present.sites, present.public):
        raise RunError(
            f"this contract was launched with sites {', '.join(present.sites)}"
            f"{f' and --public {present.public}' if present.public else ''}: "
            "launch it the same way, or change its seed for a new run"
        )
    if not plan.sites:
        raise RunError("no site is enrolled: run `aggregator site add ENROLMENT.json` first")
    if contract.prior.kind != "phantom" and plan.public is None:
        raise RunError(
            f"the contract's prior is '{contract.prior.kind}': "
            "give the volumes with --public FOLDER"
        )
    try:
        planned = RunPlan.model_validate({**(present or plan).model_dump(), **terms})
    except ValidationError as error:
        raise RunError(explain(error)) from None
    if present is None:
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(run / "contract.json", contract.model_dump_json(indent=2).encode())
    if planned != present:
        write_durably(run / "plan.json", planned.model_dump_json(indent=2).encode())
    return run


def keep_mandate(run: Path, mandate: Mandate, *, trusted: Sequence[str]) -> None:
    """Signs the run's contract with ``mandate``, where no coordinator still trusted has already.

    The first one's stays: a request that was asked before must go out again to the last bit.
    """
    present = read_mandate(run)
    if present is None or present.coordinator not in trusted:
        write_durably(run / MANDATE, mandate.model_dump_json().encode())


def read_mandate(run: Path) -> Mandate | None:
    """The run's mandate; None where nobody has signed. Raises ``RunError``."""
    try:
        return Mandate.model_validate_json((run / MANDATE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise RunError(f"{run / MANDATE} is damaged: remove it and launch again") from None


def read_plan(run: Path) -> RunPlan:
    """The run's plan; raises ``RunError``."""
    try:
        return RunPlan.model_validate_json((run / "plan.json").read_bytes())
    except (OSError, ValidationError):
        raise RunError(f"{run / 'plan.json'} is missing or damaged") from None


def read_run_contract(run: Path) -> RunContract:
    """The run's contract; raises ``RunError``."""
    try:
        contract = RunContract.model_validate_json((run / "contract.json").read_bytes())
    except (OSError, ValidationError):
        raise RunError(f"{run / 'contract.json'} is missing or damaged") from None
    if contract.digest()[:16] != run.name.removeprefix("dry-"):
        raise RunError(f"{run / 'contract.json'} is not the contract of this run")
    return contract


@contextmanager
def hold_run(run: Path, *, within_s: float = 10.0) -> Iterator[None]:
    """Holds the run's lock: at most one process works on a run. Raises ``RunError``."""
    descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + within_s
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise RunError("another process works on this run already")
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def is_held(run: Path) -> bool:
    """Whether a ServerApp works on the run right now."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_finished(run: Path) -> bool:
    """Whether the distilled pairs are there."""
    return (run / "result.json").exists() and (run / "pairs.safetensors").exists()


def start_run(link: SuperLink, run: Path) -> bool:
    """Submits the run to Flower; gives False where a ServerApp works on it already.

    A run of an earlier launch whose ServerApp died is stopped first. Raises ``SuperLinkError``.
    """
    if is_held(run):
        return False
    earlier = flower_run(run)
    if earlier and not link.has_ended(earlier):
        link.stop(earlier)
    bundle, digest = build_bundle()
    started = link.start(bundle=bundle, digest=digest, config={"run": run.name})
    write_durably(run / FLOWER_RUN, str(started).encode())
    return True


def flower_run(run: Path) -> int:
    """What Flower calls the run since it was last submitted; 0 where it never was."""
    try:
        return int((run / FLOWER_RUN).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def wait_for_sites(
    link: SuperLink, sites: Sequence[str], *, timeout_s: float
) -> Iterator[tuple[str, ...]]:
    """Yields the sites still missing, about once a second, until all are online.

    Raises ``RunError`` naming the missing ones after ``timeout_s``, ``SuperLinkError`` where the
    SuperLink does not answer.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        online = {node.name for node in link.nodes() if node.online}
        missing = tuple(site for site in sites if site not in online)
        yield missing
        if not missing:
            return
        if time.monotonic() >= deadline:
            raise RunError(
                f"not online after {timeout_s:.0f} s: {', '.join(missing)}; start `site-agent up` "
                "there, or leave a site out with --site"
            )
        time.sleep(0.5)


def watch_run(run: Path, link: SuperLink, *, from_byte: int) -> Iterator[dict[str, object]]:
    """Yields the events after ``from_byte`` until the run has ended; returns where it finished.

    Raises ``RunError`` where it failed or its ServerApp is gone: the text says so.
    """
    deadline = time.monotonic() + START_WITHIN_S
    position, last = from_byte, None
    seen_alive = False
    next_question = time.monotonic() + ASK_S
    while True:
        held = is_held(run)  # before the events are read: none is missed
        events, position = read_events(run, from_byte=position)
        for event in events:
            last = event
            yield event
        seen_alive = seen_alive or held or bool(events)
        if not held and seen_alive:
            break
        if not seen_alive and time.monotonic() >= next_question:
            next_question = time.monotonic() + ASK_S
            if time.monotonic() >= deadline or _ended_early(run, link):
                raise RunError(
                    "the run did not start; see logs/executor.log in the aggregator's home"
                )
        time.sleep(POLL_S)
    if is_finished(run):
        return
    if last is not None and last.get("phase") == "failed":
        raise RunError(f"the run failed: {last.get('message')}")
    raise RunError(
        "the run was interrupted: launch the same contract again, it goes on after the last round"
    )


def _ended_early(run: Path, link: SuperLink) -> bool:
    try:
        return link.has_ended(flower_run(run)) and not is_held(run)
    except SuperLinkError:
        return False  # it may be restarting; the deadline decides


def read_events(run: Path, *, from_byte: int) -> tuple[list[dict[str, object]], int]:
    """The whole lines of ``events.jsonl`` after ``from_byte``, and where the next begins."""
    try:
        with (run / "events.jsonl").open("rb") as file:
            file.seek(from_byte)
            content = file.read()
    except FileNotFoundError:
        return [], from_byte
    whole = content[: content.rfind(b"\n") + 1]
    events = []
    for line in whole.splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue  # half a line of a process that was killed, closed by the next one
    return events, from_byte + len(whole)

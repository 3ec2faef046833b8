"""Launching: a contract as a form or as text, checked, asked about at the sites, submitted.

Whoever launches here has a key of this home's coordinators sign: the desk asks for a token of scope
``launch:run``, the hospitals for the signature. Where a coordinator keeps the key elsewhere, the
contract is taken there as a file and launched by command.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import Field, ValidationError

from aggregator.access.principals import Principal
from aggregator.api.datasets import strict
from aggregator.api.models import NOT_DONE
from aggregator.coordinators import CoordinatorError, coordinators
from aggregator.desk.clerk import NotDoneError, order, refused
from aggregator.desk.contract_form import TASKS, Draft, draft_of_form, draft_of_text, groups
from aggregator.desk.frame import render
from aggregator.desk.session import Fields, reader, writer
from aggregator.desk.trail import recorded
from aggregator.enrolment import EnrolmentError, enrolled_sites
from aggregator.home import AggregatorHome
from aggregator.meanings import REFUSALS, SITES
from aggregator.pages.site import readable_size
from shared.frozen import Frozen, Slug

ASKED_WITHIN_S = 150.0
SUBMITTED_WITHIN_S = 90.0
MOST_BYTES = 16_000
"""Of a contract: a form of it stays below what a request may carry."""
TERMS = {
    "quorum": ("--quorum", "share of the sites whose answers a round needs; 0.5"),
    "round_timeout_s": ("--round-timeout", "how long a round waits for answers, seconds"),
    "patience_s": ("--patience", "how long it waits for a site that is offline, seconds"),
}
router = APIRouter()
Acting = Annotated[Principal, Depends(writer)]


class Order(Frozen):
    """What is to be checked, asked or launched."""

    toml: str = Field(max_length=MOST_BYTES, description="the contract")
    sites: tuple[Slug, ...] = Field((), max_length=1000, description="none: all that are enrolled")
    coordinator: Slug | None = Field(None, description="who signs; none: the first, or the only")
    quorum: float | None = Field(None, gt=0, le=1)
    round_timeout_s: float | None = Field(None, gt=0, le=1e7)
    patience_s: float | None = Field(None, ge=0, le=1e7)


class Checked(Frozen):
    """Whether a contract is valid, and what it would cost a site."""

    valid: bool
    problems: dict[str, str] = Field(description="by field; of the whole: empty")
    digest: str | None = None
    name: str | None = None
    needs_command: str | None = Field(
        None, description="why it cannot be launched here, where it cannot"
    )


class SiteVerdict(Frozen):
    """What a site says that it would do; more may be told."""

    model_config = Frozen.model_config | {"extra": "allow"}

    site: str
    verdict: str = Field(description="accept, refuse, offline, no answer")
    code: str | None = None


class Verdicts(Frozen):
    """What the sites say."""

    sites: tuple[SiteVerdict, ...]


class Launched(Frozen):
    """A run that was submitted, or was there already."""

    run: str = Field(description="digest of its contract")
    state: str


@contextmanager
def as_file(home: AggregatorHome, toml: str) -> Iterator[Path]:
    """The contract as a file that a command can read, for that long."""
    descriptor, name = tempfile.mkstemp(prefix=".contract-", suffix=".toml", dir=home.root)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(toml)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def checked(draft: Draft) -> Checked:
    """What is wrong with it, and whether it can be launched from here."""
    contract = draft.contract
    if contract is None:
        return Checked(valid=False, problems=dict(draft.problems))
    why = None
    if contract.prior.kind != "phantom":
        why = "its prior needs a folder of public volumes on the aggregator: --public FOLDER"
    elif contract.privacy.directions and contract.privacy.basis is None:
        why = "its public directions are computed before it is fixed, which takes minutes"
    return Checked(
        valid=True, problems={}, digest=contract.digest(), name=contract.name, needs_command=why
    )


def dry_run(request: Request, asked: Order) -> Verdicts:
    """Asks the sites that are online; nothing is computed. Raises ``NotDoneError``."""
    home, draft = _launchable(request, asked)
    with (
        recorded(request, "dry run", run=_digest(draft)) as recording,
        as_file(home, asked.toml) as at,
    ):
        arguments = ["launch", str(at), "--dry-run", *_options(asked, but=tuple(TERMS))]
        found = _order(home, at, arguments, within_s=ASKED_WITHIN_S)
        verdicts = Verdicts.model_validate(found)
        recording.told.append(", ".join(f"{one.site}: {one.verdict}" for one in verdicts.sites))
    return verdicts


def launch(request: Request, asked: Order) -> Launched:
    """Signs the contract and submits the run. Raises ``NotDoneError``."""
    home, draft = _launchable(request, asked)
    with (
        recorded(request, "launch", run=_digest(draft)) as recording,
        as_file(home, asked.toml) as at,
    ):
        arguments = ["launch", str(at), "--detach", *_options(asked)]
        request.state.begun = recording.number
        found = _order(home, at, arguments, within_s=SUBMITTED_WITHIN_S)
        recording.told.append(f"the run is {found['state']}")
    return Launched(run=found["digest"], state=found["state"])


def _order(
    home: AggregatorHome, file: Path, arguments: list[str], *, within_s: float
) -> dict[str, Any]:
    try:
        return order(home, arguments, within_s=within_s)
    except NotDoneError as error:
        text = error.error.replace(file.name, "the contract")
        raise NotDoneError(error.status, text, error.hint) from None


def _launchable(request: Request, asked: Order) -> tuple[AggregatorHome, Draft]:
    home: AggregatorHome = request.app.state.home
    draft = draft_of_text(asked.toml)
    found = checked(draft)
    if not found.valid:
        said = "; ".join(f"{name or 'contract'}: {text}" for name, text in found.problems.items())
        raise refused(home, f"the contract is not valid: {said}", hint="correct it")
    if found.needs_command:
        raise refused(home, found.needs_command, hint="launch it by command: aggregator launch")
    return home, draft


def _digest(draft: Draft) -> str:
    return draft.contract.digest() if draft.contract else ""


def _options(asked: Order, *, but: tuple[str, ...] = ()) -> list[str]:
    options = [part for site in asked.sites for part in ("--site", site)]
    options += ["--coordinator", asked.coordinator] if asked.coordinator else []
    for name, (option, _) in TERMS.items():
        value = getattr(asked, name)
        if value is not None and name not in but:
            options += [option, repr(value)]
    return options


@router.get("/desk/launch", include_in_schema=False, dependencies=[Depends(reader)])
def form_page(request: Request, task: Annotated[str, Query(max_length=32)] = TASKS[0]) -> Response:
    """The form of a task's contract, empty."""
    return _page(request, task if task in TASKS else TASKS[0], {})


@router.post("/desk/launch", include_in_schema=False)
def send_form(request: Request, _: Acting, given: Fields) -> Response:
    """Checks what was filled in; asks the sites about it, or launches it, where that was asked."""
    task, do = given.get("task", TASKS[0]), given.get("do", "check")
    pasted = given.get("toml", "").strip()
    draft = draft_of_text(pasted) if pasted else draft_of_form(task, given)
    found, values = checked(draft), {name: text for name, text in given.items() if text}
    if found.valid and do == "download":
        named = {"Content-Disposition": f'attachment; filename="{found.name}.toml"'}
        return Response(draft.toml, headers=named, media_type="application/toml")
    if not found.valid or do not in ("dry-run", "launch"):
        return _page(request, task, values, draft=draft, found=found)
    try:
        asked = _order_of(draft, given)
        if do == "launch":
            done = launch(request, asked)
            return RedirectResponse(
                f"/desk/runs/{done.run[:16]}?done={request.state.begun}", status_code=303
            )
        said, problem = dry_run(request, asked), ""
    except (NotDoneError, ValidationError) as error:
        problem = error.error if isinstance(error, NotDoneError) else _said(error)
        return _page(request, task, values, draft=draft, found=found, problem=problem, status=409)
    return _page(request, task, values, draft=draft, found=found, verdicts=said)


def row_of(verdict: SiteVerdict) -> dict[str, str]:
    """A site's verdict in words, for the table."""
    told = verdict.model_extra or {}
    why = next((text for code, text in REFUSALS.items() if code == verdict.code), verdict.code)
    if told.get("incident"):
        why = f"{why} (incident {told['incident']})"
    patients = told.get("patients_at_least")
    return {
        "site": verdict.site,
        "verdict": verdict.verdict,
        "why": why or SITES.get(verdict.verdict, ""),
        "patients": "" if patients is None else f"at least {patients}",
        "cost": _cost_in_words(told.get("cost") or {}),
    }


def _cost_in_words(cost: dict[str, Any]) -> str:
    if not cost:
        return ""
    parts = [f"{cost['rounds']} rounds", f"{cost['releases']} gradient vectors"]
    if cost.get("epsilon") is not None:
        parts.append(f"ε {cost['epsilon']:g} at δ {cost['delta']:g}")
    parts += [f"{readable_size(cost['bytes_down'])} down", f"{readable_size(cost['bytes_up'])} up"]
    if cost.get("seconds") is not None:
        parts.append(f"about {cost['seconds']:.0f} s of computing")
    return ", ".join(parts)


def _order_of(draft: Draft, given: dict[str, str]) -> Order:
    """Raises ``ValidationError``."""
    chosen = [name.removeprefix("site.") for name in given if name.startswith("site.")]
    terms = {name: given[name].strip() for name in TERMS if given.get(name, "").strip()}
    return Order.model_validate(
        {
            "toml": draft.toml,
            "sites": chosen,
            "coordinator": given.get("coordinator") or None,
            **{name: _number(text) for name, text in terms.items()},
        }
    )


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _said(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    )


def _page(
    request: Request,
    task: str,
    given: dict[str, str],
    *,
    draft: Draft | None = None,
    found: Checked | None = None,
    verdicts: Verdicts | None = None,
    problem: str = "",
    status: int = 200,
) -> Response:
    home: AggregatorHome = request.app.state.home
    try:
        sites = sorted(one.name for one in enrolled_sites(home))
        signers = [one.name for one in coordinators(home) if not one.revoked]
    except (EnrolmentError, CoordinatorError) as error:
        raise refused(home, str(error), hint="mend or remove it in the home") from None
    problems = dict(draft.problems) if draft else {}
    shown = groups(task if task in TASKS else TASKS[0], given=given, problems=problems)
    placed = {entry.path for group in shown for entry in group.entries}
    return render(
        request,
        "launch.html",
        status=422 if problems else status,
        task=task,
        tasks=TASKS,
        groups=shown,
        given=given,
        draft=draft,
        found=found,
        others={name: text for name, text in problems.items() if name not in placed},
        verdicts=[row_of(one) for one in verdicts.sites] if verdicts else None,
        problem=problem,
        sites=sites,
        signers=signers,
        terms={name: about for name, (_, about) in TERMS.items()},
    )


@router.post("/api/desk/check", dependencies=[*strict, Depends(writer)], response_model=Checked)
def check_by_program(asked: Order) -> Checked:
    """Whether a contract is valid, its digest, and what is wrong with it."""
    return checked(draft_of_text(asked.toml))


@router.post(
    "/api/desk/dry-run",
    dependencies=[*strict, Depends(writer)],
    response_model=Verdicts,
    responses=NOT_DONE,
)
def dry_run_by_program(request: Request, asked: Order) -> Verdicts:
    """Asks the sites that are online whether they would take part, and what it would cost them."""
    return dry_run(request, asked)


@router.post(
    "/api/desk/launch",
    dependencies=[*strict, Depends(writer)],
    response_model=Launched,
    responses=NOT_DONE,
)
def launch_by_program(request: Request, asked: Order) -> Launched:
    """Signs a contract and submits its run; the same contract again goes on with the same run."""
    return launch(request, asked)

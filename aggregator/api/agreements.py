"""Data-use agreements of gated datasets: reading one, and accepting it."""

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Request
from pydantic import BeforeValidator, Field

from aggregator.access.agreements import AgreementChangedError, Agreements
from aggregator.api.datasets import Part, find_dataset, strict
from aggregator.api.errors import ApiError, not_found
from aggregator.api.models import AGREED, AcceptedAnswer, AgreementAnswer
from aggregator.api.principal import principal, require_reading
from aggregator.catalog import Dataset
from shared.frozen import Frozen

router = APIRouter()
PATH = "/api/datasets/{namespace}/{name}/agreement"


def _number(value: object) -> object:
    # In JSON 1.0 is an integer too; pydantic would take "1" and true as well.
    if isinstance(value, str | bool):
        raise ValueError("is not a number")
    return value


class Acceptance(Frozen):
    """What is posted."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_number)]
    """The version that was read."""
    accept: Literal[True]


@router.get(PATH, dependencies=strict, response_model=AgreementAnswer)
def agreement(request: Request, namespace: Part, name: Part) -> AgreementAnswer:
    """The agreement in its present version, and whether who asks has accepted it."""
    dataset = _gated(request, namespace, name)
    who, agreements = principal(request), _agreements(request)
    return AgreementAnswer(
        version=dataset.agreement_version,
        text=dataset.agreement_text,
        accepted=bool(who.name) and agreements.accepted(who, dataset),
    )


@router.post(PATH, dependencies=strict, response_model=AcceptedAnswer, responses=AGREED)
def accept(
    request: Request, namespace: Part, name: Part, acceptance: Annotated[Acceptance, Body()]
) -> AcceptedAnswer:
    """Accepts the agreement for the owner of the token; again changes nothing."""
    dataset = _gated(request, namespace, name)
    who = principal(request)
    if not who.covers(dataset):
        require_reading(request, dataset)
    try:
        _agreements(request).accept(who, dataset, acceptance.version)
    except AgreementChangedError as error:
        raise ApiError(409, str(error), "read it again, then accept that version") from None
    return AcceptedAnswer(version=acceptance.version, accepted=True)


def _gated(request: Request, namespace: str, name: str) -> Dataset:
    dataset = find_dataset(request, namespace, name)
    if dataset.visibility != "gated":
        raise not_found(
            "EntryNotFound", f"{namespace}/{name} has no agreement to accept", "download it"
        )
    return dataset


def _agreements(request: Request) -> Agreements:
    found = request.app.state.agreements
    assert isinstance(found, Agreements)
    return found

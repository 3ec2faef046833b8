"""Who asks: resolved once a request, before anything else of it is looked at."""

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from aggregator.access.agreements import Agreements
from aggregator.access.principals import ANONYMOUS, Principal, Standing, may_read
from aggregator.access.recall import Recall
from aggregator.access.tokens import PREFIX, Tokens, digest, principal_of
from aggregator.api.errors import ApiError, coded, not_found
from aggregator.catalog import Dataset

FOREIGN = "hf_"
"""Tokens of the Hugging Face hub, which its client sends to every endpoint: none of ours."""


def principal(request: Request) -> Principal:
    """Who asks; the dependency of routes, and what their functions call."""
    found = request.state.principal
    assert isinstance(found, Principal)
    return found


async def resolve(headers: Headers, *, tokens: Tokens, recall: Recall) -> Principal:
    """Whose token a request carries; raises the 401 for one that is not valid."""
    header = headers.get("Authorization")
    scheme, _, secret = (header or "").partition(" ")
    secret = secret.strip()
    if header is None or (scheme.lower() == "bearer" and secret.startswith(FOREIGN)):
        return ANONYMOUS
    found = None
    if scheme.lower() == "bearer" and secret.startswith(PREFIX):
        key = digest(secret)
        if not recall.knows(("token", key)):
            await run_in_threadpool(recall.answer, ("token", key), lambda: tokens.find(key))
        found = principal_of(recall.answer(("token", key), lambda: tokens.find(key)))
    if found is None:
        # The words by which Hugging Face's client tells this from a dataset that is absent.
        refusal = coded(
            401,
            "InvalidToken",
            "Invalid credentials in Authorization header",
            "the token is unknown, expired or revoked: ask the coordinator for another, or"
            " ask without one for what is public",
        )
        refusal.headers["WWW-Authenticate"] = "Bearer"
        raise refusal
    return found


def standing(request: Request, dataset: Dataset) -> Standing:
    """Where who asks stands towards a dataset."""
    who = principal(request)
    agreements: Agreements = request.app.state.agreements
    recall: Recall = request.app.state.recall
    return may_read(
        who,
        dataset,
        accepted=lambda: recall.answer(
            acceptance_key(who, dataset), lambda: agreements.accepted(who, dataset)
        ),
    )


def acceptance_key(who: Principal, dataset: Dataset) -> tuple[str, str, str, str, int]:
    """By which it is recalled whether somebody accepted the present agreement."""
    return ("accepted", who.name, dataset.namespace, dataset.name, dataset.agreement_version)


def absent(namespace: str, name: str) -> ApiError:
    """The 404 of a dataset that is not there, or not for who asks: they are the same."""
    return not_found(
        "RepoNotFound", f"no dataset {namespace}/{name}", "GET /api/datasets lists them"
    )


def require_reading(request: Request, dataset: Dataset) -> None:
    """Raises what stands between who asks and the files of a dataset."""
    found = standing(request, dataset)
    name = f"{dataset.namespace}/{dataset.name}"
    if found is Standing.READS:
        return
    if found is Standing.ABSENT:
        raise absent(dataset.namespace, dataset.name)
    if found is Standing.NEEDS_TOKEN:
        refusal = coded(
            401,
            "GatedRepo",
            f"Access to {name} is restricted: it needs a token of this server, and that its"
            f" data-use agreement (version {dataset.agreement_version}) is accepted",
            "ask the coordinator for a token",
        )
        refusal.headers["WWW-Authenticate"] = "Bearer"
        raise refusal
    if found is Standing.NEEDS_SCOPE:
        raise coded(
            403,
            "GatedRepo",
            f"Access to {name} is restricted, and your token does not open it",
            "ask the coordinator for a token with the scope read:dataset for it",
        )
    raise coded(
        403,
        "GatedRepo",
        f"Access to {name} is restricted: accept version {dataset.agreement_version} of its"
        f" data-use agreement first (distilled accept {dataset.name} --from THIS-SERVER)",
        f"GET /api/datasets/{name}/agreement has the text, POST accepts it",
    )
